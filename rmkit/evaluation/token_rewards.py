"""Rewards by token.

An implicit reward is a sum of beta * (ln pi - ln pi_ref) over the tokens of the response (Eq. 2). An explicit reward
is not a sum; instead the reward of every prefix y_{<=k} is computed (Eq. 1 at h_{x, y_{<=k}}), and its change from
token to token. The head was trained at the end of complete responses only, so read values in the middle with care. An
EX-GRM scores the text of every prefix.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rmkit.data.conversations import TEMPLATE_FIELDS, Prompt, Response, as_text, contents, parse_prompt, parse_response
from rmkit.data.templated import KNOWN_MARKS, READ_AS_TEXT
from rmkit.errors import RmkitError
from rmkit.evaluation.scorer import RewardScorer
from rmkit.runs.directory import RunDirectory
from rmkit.runs.explanation import Explanation
from rmkit.runs.rewards import PairRewards


@dataclass(frozen=True)
class WrongResponse:
    """A response of a pair that a run ranks wrong: its texts and the file name of its explanation."""

    prompt: Prompt
    response: Response
    file: str


def explain(scorer: RewardScorer, prompt: Prompt, response: Response, batch_size: int = 8) -> Explanation:
    """The reward of a response by token: terms for types whose reward is a sum over tokens, else prefix rewards.

    Warns of texts to which a chat template was already applied.

    Raises:
        RmkitError: if a text is empty.
    """
    prompt = parse_prompt(prompt, "The prompt")
    response = parse_response(response, "The response")
    if any(map(KNOWN_MARKS.spelled_in, (*contents(prompt), *contents(response)))):
        warnings.warn(f"explain: The prompt or the response {READ_AS_TEXT}", stacklevel=2)
    shown, text = as_text(prompt), as_text(response)
    encoder = scorer.reward_model.encoder
    (sequence,) = encoder.response_sequences([prompt], [response])
    tokens = encoder.response_tokens(sequence)
    terms = scorer.token_terms(prompt, response)
    if terms is not None:
        return Explanation(prompt=shown, response=text, tokens=tokens, implicit_terms=terms.tolist())
    rewards = scorer.prefix_rewards(prompt, response, batch_size)
    return Explanation(prompt=shown, response=text, tokens=tokens, explicit_prefix_rewards=rewards.tolist())


def merge_explanations(explanation: Explanation, against: Explanation | None) -> Explanation:
    """Two explanations of one response in one, if the models have the same tokens; else the first."""
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


def most_wrong(run_dir: RunDirectory, number: int) -> list[WrongResponse]:
    """Both responses of the pairs that a run ranks wrong by the widest margins, up to `number` per evaluation set.

    Raises:
        RmkitError: if the run is not finished or lacks rewards or texts.
    """
    found = []
    for name in run_dir.read()["metrics"]:
        rewards = PairRewards.read(run_dir.rewards(name))
        texts = {row["index"]: row for row in _read_rows(run_dir.examples(name))}
        margins = rewards.ranking[:, 0] - rewards.ranking[:, 1]
        widest = np.argsort(margins, kind="stable")[:number]
        for index in rewards.index[widest[margins[widest] < 0]].tolist():
            found += [
                WrongResponse(_prompt(texts[index]), _response(texts[index], side), f"{name}_{index}_{side}.json")
                for side in ("chosen", "rejected")
            ]
    return found


def _prompt(row: dict[str, Any]) -> Prompt:
    """The prompt of a row of examples/<set>.parquet; `messages` holds the conversations of a set that has some."""
    besides = {key: row.get(key) for key in TEMPLATE_FIELDS}
    return parse_prompt(row.get("messages") or row["prompt"], "the prompt", **besides)


def _response(row: dict[str, Any], side: str) -> Response:
    return parse_response(row.get(f"{side}_messages") or row[side], f"the {side} response")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return list(pq.read_table(path).to_pylist())
    except (OSError, ValueError) as error:
        raise RmkitError(f"{path} cannot be read: {error}.", "Run the recipe again.") from None
