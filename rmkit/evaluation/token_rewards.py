"""Where a reward comes from, token by token.

An implicit reward is a sum over the tokens of the response, beta * (ln pi - ln pi_ref) of each (Eq. 2). An explicit one
is not: what can be said is the reward of every prefix, y_{<=k} (Eq. 1 at h_{x, y_{<=k}}), and what a token changes in
it. The head was trained at the end of whole responses only, so values in the middle are to be read with care. An EX-GRM
is asked about the text of every prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rmkit.errors import RmkitError
from rmkit.evaluation.scorer import RewardScorer
from rmkit.runs.directory import RunDirectory
from rmkit.runs.explanation import Explanation


@dataclass(frozen=True)
class WrongResponse:
    """A response of a pair that a run ranks wrong: its texts and where its explanation goes."""

    prompt: str
    response: str
    file: str


def explain(scorer: RewardScorer, prompt: str, response: str, batch_size: int = 8) -> Explanation:
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
        return Explanation(prompt=prompt, response=response, tokens=tokens, implicit_terms=terms.tolist())
    rewards = scorer.prefix_rewards(prompt, response, batch_size)
    return Explanation(prompt=prompt, response=response, tokens=tokens, explicit_prefix_rewards=rewards.tolist())


def merge_explanations(explanation: Explanation, against: Explanation | None) -> Explanation:
    """Both in one, where the two models have the same tokens and one's part is the other's gap; else the first."""
    if against is None or against.tokens != explanation.tokens:
        return explanation
    terms, rewards = explanation.implicit_terms, explanation.explicit_prefix_rewards
    return Explanation(
        prompt=explanation.prompt,
        response=explanation.response,
        tokens=explanation.tokens,
        implicit_terms=against.implicit_terms if terms is None else terms,
        explicit_prefix_rewards=against.explicit_prefix_rewards if rewards is None else rewards,
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
