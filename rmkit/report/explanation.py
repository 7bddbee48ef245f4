"""The page of `rmkit explain`: where a reward comes from, token by token. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

from rmkit.report.html import Section, Texts, Tokens, page
from rmkit.report.tables import Cell, Table
from rmkit.runs.explanation import Explanation


def shades(values: Sequence[float], kind: Literal["terms", "increments"]) -> list[float]:
    """Values as shares of the largest [tokens], in [-1, 1].

    The first increment is the whole reward of the first prefix: it would drown the others and is left at 0.
    """
    shown = [0.0, *values[1:]] if kind == "increments" else list(values)
    largest = max(map(abs, shown), default=0.0) or 1.0
    return [value / largest for value in shown]


def html(explained: Sequence[tuple[str, Explanation]]) -> str:
    """A page that stands by itself, from explanations with their models' names; all texts are escaped."""
    first = explained[0][1]
    sections = [Section("Texts", [Texts("", [("Prompt", {"": first.prompt}), ("Response", {"": first.response})])])]
    for model, explanation in explained:
        rows = []
        columns: dict[str, list[Any]] = {"token": explanation.tokens}
        for name, kind, values in parts(explanation):
            shown = shades(values, kind)
            rows.append((name, list(zip(map(visible, explanation.tokens), values, shown, strict=True))))
            columns[kind] = values
        if explanation.explicit_prefix_rewards is not None:
            columns["prefix rewards"] = explanation.explicit_prefix_rewards
        frame = pd.DataFrame(columns)
        cells = [
            [Cell(visible(row[0]).strip("\n"), number=False), *(Cell(f"{value:+.4g}") for value in row[1:])]
            for row in frame.itertuples(index=False)
        ]
        table = Table("tokens", "Every token.", [name.capitalize() for name in columns], cells, frame)
        sections.append(Section(model.replace("/", "/\u200b"), [Tokens("", rows), table]))
    lead = "Blue tokens raise the reward, orange ones lower it, the deeper the more. The tables hold every value."
    return page("Rewards by token", sections, lead)


def parts(explanation: Explanation) -> list[tuple[str, Literal["terms", "increments"], list[float]]]:
    """What there is to show of an explanation: a line on it, what it is, and a value a token."""
    shown: list[tuple[str, Literal["terms", "increments"], list[float]]] = []
    rewards = explanation.rewards
    if explanation.implicit_terms is not None:
        line = f"Implicit: β (ln π − ln π_ref) of each token; reward {rewards['implicit']:.4g}"
        shown.append((line, "terms", explanation.implicit_terms))
    if explanation.increments is not None:
        line = f"Explicit: what each token changes in the reward of the prefix; reward {rewards['explicit']:.4g}"
        shown.append((line, "increments", explanation.increments))
    return shown


def visible(token: str) -> str:
    """A token's text, line breaks marked and pieces of characters shown as such."""
    return token.replace("\n", "⏎\n") if token else "…"
