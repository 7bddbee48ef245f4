"""The scores of all runs on the same pairs, set by set."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from rmkit.report.aggregate import sets_in_order
from rmkit.report.runs import Runs
from rmkit.report.statistics import Floats


@dataclass(frozen=True)
class SetPairs:
    """The main runs' scores on one evaluation set of a setting; NaN where a run lacks a pair.

    Attributes:
        dataset: its name in the report.
        name: its name in the runs.
        frame: one row per run: run, model, seed, reward_model, variant.
        index: the pairs [pairs] that any run has.
        correct: 1, 1/2 or 0 [runs, pairs].
        normalized: margins in standard deviations of the run's rewards [runs, pairs].
        prompts: a number [pairs] that pairs with the same prompt share; None if the texts are missing.
    """

    dataset: str
    name: str
    category: str
    frame: pd.DataFrame
    index: np.ndarray
    correct: Floats
    normalized: Floats
    prompts: np.ndarray | None

    @cached_property
    def rows(self) -> dict[tuple[str, str, int], int]:
        """(reward model, model, seed) -> row."""
        keys = zip(self.frame["reward_model"], self.frame["model"], self.frame["seed"], strict=True)
        return {key: row for row, key in enumerate(keys)}


def sets_of_pairs(runs: Runs, setting: str) -> list[SetPairs]:
    """All evaluation sets of a setting, with the scores of its main runs."""
    final = runs.final[(runs.final["setting"] == setting) & runs.final["main"]]
    return [_set_pairs(runs, dataset, final[final["dataset"] == dataset]) for dataset in sets_in_order(final)]


def _set_pairs(runs: Runs, dataset: str, frame: pd.DataFrame) -> SetPairs:
    frame = frame.reset_index(drop=True)
    name = str(frame["set"].iloc[0])
    scores = [runs.scores[run, name] for run in frame["run"]]
    index = np.unique(np.concatenate([found.index for found in scores]))
    correct, normalized = (np.full((len(frame), len(index)), np.nan) for _ in range(2))
    for row, found in enumerate(scores):
        at = np.searchsorted(index, found.index)
        correct[row, at], normalized[row, at] = found.correct, found.normalized
    prompts = _prompts(runs, frame, name, index)
    return SetPairs(dataset, name, str(frame["category"].iloc[0]), frame, index, correct, normalized, prompts)


def _prompts(runs: Runs, frame: pd.DataFrame, name: str, index: np.ndarray) -> np.ndarray | None:
    """A number per distinct prompt [pairs]. Reads runs of several models only if one lacks pairs that were too long."""
    texts: dict[int, str] = {}
    for run in frame.drop_duplicates("model")["run"]:
        read = runs.examples(run, name, ["prompt"])
        if read is not None:
            texts |= dict(zip(read.index, read["prompt"], strict=True))
        if all(pair in texts for pair in index):
            return np.unique([texts[pair] for pair in index], return_inverse=True)[1]
    return None
