"""Where a reward comes from, token by token.

An implicit reward is a sum over the tokens of the response, beta * (ln pi - ln pi_ref) of each (Eq. 2). An explicit one
is not: what can be said is the reward of every prefix, y_{<=k} (Eq. 1 at h_{x, y_{<=k}}), and what a token changes in
it. The head was trained at the end of whole responses only, so values in the middle are to be read with care. An EX-GRM
is asked about the text of every prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from rmkit.errors import RmkitError
from rmkit.evaluation.scorer import Scorer
from rmkit.runs.directory import RunDirectory


@dataclass(frozen=True)
class Explanation:
    """The reward of a response by its tokens, end-of-turn token and template suffix included.

    Attributes:
        tokens: [tokens] their texts.
        implicit_terms: [tokens] what each adds to an implicit reward; their sum is the reward.
        explicit_prefix_rewards: [tokens] the reward of the response up to each; the last is the reward.
    """

    prompt: str
    response: str
    tokens: list[str]
    implicit_terms: list[float] | None = None
    explicit_prefix_rewards: list[float] | None = None

    @property
    def rewards(self) -> dict[str, float]:
        """The reward of the response by what it is shown as: implicit, explicit."""
        found = {}
        if self.implicit_terms is not None:
            found["implicit"] = float(np.sum(self.implicit_terms))
        if self.explicit_prefix_rewards is not None:
            found["explicit"] = self.explicit_prefix_rewards[-1]
        return found

    @property
    def increments(self) -> list[float] | None:
        """What each token changes in the explicit reward [tokens]; the first is the reward of the first prefix."""
        rewards = self.explicit_prefix_rewards
        return None if rewards is None else [float(each) for each in np.diff(rewards, prepend=0.0)]

    def content(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return asdict(self)


@dataclass(frozen=True)
class WrongResponse:
    """A response of a pair that a run ranks wrong: its texts and where its explanation goes."""

    prompt: str
    response: str
    file: str


def explain(scorer: Scorer, prompt: str, response: str, batch_size: int = 8) -> Explanation:
    """The reward of a response by its tokens: terms for a type whose reward is a sum of them, else prefix rewards.

    Raises:
        RmkitError: if a text is empty.
    """
    for kind, text in (("prompt", prompt), ("response", response)):
        if not text.strip():
            raise RmkitError(f"The {kind} is empty.", "Give non-empty texts.")
    encoder = scorer.reward_model.encoder
    (sequence,) = encoder.response_sequences([prompt], [response])
    tokens = encoder.response_tokens(sequence)
    terms = scorer.token_terms(prompt, response)
    if terms is not None:
        return Explanation(prompt, response, tokens, implicit_terms=terms.tolist())
    rewards = scorer.prefix_rewards(prompt, response, batch_size)
    return Explanation(prompt, response, tokens, explicit_prefix_rewards=rewards.tolist())


def together(explanation: Explanation, against: Explanation | None) -> Explanation:
    """Both in one, where the two models have the same tokens and one's part is the other's gap; else the first."""
    if against is None or against.tokens != explanation.tokens:
        return explanation
    terms, rewards = explanation.implicit_terms, explanation.explicit_prefix_rewards
    return Explanation(
        explanation.prompt,
        explanation.response,
        explanation.tokens,
        against.implicit_terms if terms is None else terms,
        against.explicit_prefix_rewards if rewards is None else rewards,
    )


def most_wrong(run: RunDirectory, number: int) -> list[WrongResponse]:
    """Both responses of the pairs that a run ranks wrong by the widest margins, so many of each evaluation set.

    Raises:
        RmkitError: if the run is not finished or lacks rewards or texts.
    """
    found = []
    for name in run.read()["metrics"]:
        rewards = _table(run.rewards(name))
        texts = {row["index"]: row for row in _table(run.examples(name)).to_pylist()}
        column = "log_reward" if "chosen_log_reward" in rewards.column_names else "reward"
        chosen, rejected = (rewards[f"{each}_{column}"].to_numpy() for each in ("chosen", "rejected"))
        margins = chosen - rejected
        for at in [at for at in np.argsort(margins, kind="stable")[:number] if margins[at] < 0]:
            index = rewards["index"][int(at)].as_py()
            found += [
                WrongResponse(texts[index]["prompt"], texts[index][side], f"{name}_{index}_{side}.json")
                for side in ("chosen", "rejected")
            ]
    return found


def _table(path: Path) -> Any:
    try:
        return pq.read_table(path)
    except (OSError, ValueError) as error:
        raise RmkitError(f"{path} cannot be read: {error}.", "Run the recipe again.") from None


def shades(values: Sequence[float], kind: Literal["terms", "increments"]) -> list[float]:
    """Values as shares of the largest [tokens], in [-1, 1].

    The first increment is the whole reward of the first prefix: it would drown the others and is left at 0.
    """
    shown = [0.0, *values[1:]] if kind == "increments" else list(values)
    largest = max(map(abs, shown), default=0.0) or 1.0
    return [value / largest for value in shown]


def html(explained: Sequence[tuple[str, Explanation]]) -> str:
    """A page that stands by itself, from explanations with their models' names; all texts are escaped."""
    import pandas as pd

    from rmkit.report.html import Section, Texts, Tokens, page
    from rmkit.report.tables import Cell, Table

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
