"""How `rmkit explain` shows a reward token by token: on a page, in the report and in a terminal. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable
from rich.text import Text

from rmkit.report.html import Section, Texts, Tokens, page
from rmkit.report.tables import Cell, Table
from rmkit.runs.explanation import Explanation

_LARGEST = 10


@dataclass(frozen=True)
class TokenValues:
    """One way to attribute a reward to tokens: `terms` of a sum, or `increments` of the reward of the prefix."""

    name: Literal["terms", "increments"]
    label: str
    values: Sequence[float]

    @property
    def shades(self) -> list[float]:
        """Values divided by the largest absolute value [tokens], in [-1, 1].

        The first increment is the whole reward of the first prefix, which would outweigh all others: its shade is 0.
        """
        shown = [0.0, *self.values[1:]] if self.name == "increments" else list(self.values)
        largest = max(map(abs, shown), default=0.0) or 1.0
        return [value / largest for value in shown]


def token_values(explanation: Explanation) -> list[TokenValues]:
    """The attributions that an explanation contains."""
    found = []
    rewards = explanation.rewards
    if explanation.implicit_terms is not None:
        label = f"β (ln π − ln π_ref) of each token; reward {rewards['implicit']:.4g}"
        found.append(TokenValues("terms", label, explanation.implicit_terms))
    if explanation.increments is not None:
        label = f"Change in the reward of the prefix with each token; reward {rewards['explicit']:.4g}"
        found.append(TokenValues("increments", label, explanation.increments))
    return found


def tokens_item(title: str, explanation: Explanation, note: str = "") -> Tokens:
    """The coloured tokens of an explanation, one row per attribution."""
    texts = [visible(token) for token in explanation.tokens]
    rows = [(part.label, list(zip(texts, part.values, part.shades, strict=True))) for part in token_values(explanation)]
    return Tokens(title, rows, note)


def html(explained: Sequence[tuple[str, Explanation]]) -> str:
    """A self-contained page from (model, explanation) of the same texts."""
    first = explained[0][1]
    sections = [Section("Texts", [Texts("", [("Prompt", {"": first.prompt}), ("Response", {"": first.response})])])]
    for model, explanation in explained:
        name = model.replace("/", "/\u200b")
        sections.append(Section(name, [tokens_item("", explanation), _values_table(explanation)]))
    lead = "Blue tokens raise the reward, orange tokens lower it, deeper colours by more. The tables list all values."
    return page("Rewards by token", sections, lead)


def _values_table(explanation: Explanation) -> Table:
    columns: dict[str, Any] = {"token": explanation.tokens}
    columns |= {part.name: part.values for part in token_values(explanation)}
    if explanation.explicit_prefix_rewards is not None:
        columns["prefix rewards"] = explanation.explicit_prefix_rewards
    frame = pd.DataFrame(columns)
    cells = [
        [Cell(visible(row[0]).strip("\n"), number=False), *(Cell(f"{value:+.4g}") for value in row[1:])]
        for row in frame.itertuples(index=False)
    ]
    return Table("tokens", "All tokens.", [name.capitalize() for name in columns], cells, frame)


def visible(token: str) -> str:
    """A token's text with line breaks marked; … for a token that is only part of a character."""
    return token.replace("\n", "⏎\n") if token else "…"


def show(model: str, explanation: Explanation) -> None:
    """Print the coloured tokens and the largest values."""
    console = Console(highlight=False)
    console.print(f"\n{model}", style="bold", markup=False)
    for part in token_values(explanation):
        console.print(part.label, markup=False)
        shaded = zip(explanation.tokens, part.shades, strict=True)
        console.print(Text.assemble(*((visible(token), _terminal_style(shade)) for token, shade in shaded)))
        table = TerminalTable("token", "adds", title=f"largest of {len(part.values)}", title_justify="left")
        table.columns[1].justify = "right"
        for at in sorted(range(len(part.values)), key=lambda at: -abs(part.values[at]))[:_LARGEST]:
            table.add_row(f"{escape(repr(explanation.tokens[at]))} ({at + 1})", f"{part.values[at]:+.4g}")
        console.print(table)


def _terminal_style(shade: float) -> str:
    """Blue raises the reward, orange lowers it; bold for large, dim for very small amounts."""
    if abs(shade) < 0.02:
        return "dim"
    return ("bold " if abs(shade) > 0.5 else "") + ("bright_blue" if shade > 0 else "orange3")
