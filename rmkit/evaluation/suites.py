"""Suites: YAML files that list evaluation sets and how their scores are averaged.

    root: data                       # paths are relative to it, as to data.root in a recipe; --root overrides it
    sets:
      - {name: french, path: ultrafeedback_french, split: test, category: token-level shift}

The category of a set depends on the training set (Section 5.2), so there is one suite per training set. Benchmarks with
sections of their own give their sets a `section` and a `weight` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import PositiveFloat, model_validator

from rmkit.config.recipe import EvaluationSet, Templated
from rmkit.config.resources import find_suite
from rmkit.config.strict_yaml import StrictModel, load_yaml, validate
from rmkit.data.conversations import parse_response
from rmkit.data.formats import find_unused
from rmkit.data.preferences import COLUMNS, PreferenceData, PreferencePair, drop_identical, parse_row
from rmkit.data.rows import iter_rows, limit_rows, load_rows, match_rows
from rmkit.data.sources.use import load_set as load_pairs
from rmkit.data.sources.use import locate
from rmkit.errors import RmkitError

OVERALL = "overall"


class SuiteSet(EvaluationSet):
    """A set of a suite.

    `score: best_of` is for rows with several rejected responses (RewardBench 2): a row counts if its chosen response
    has the highest reward. `section` and `weight` define how the set enters the benchmark's own scores.
    """

    score: Literal["accuracy", "best_of"] = "accuracy"
    section: str | None = None
    weight: PositiveFloat = 1.0


class Suite(StrictModel):
    """The content of a suite file. A relative `root` is below the working directory."""

    root: Path | None = None
    sets: list[SuiteSet]

    @model_validator(mode="after")
    def _check_names(self) -> Suite:
        names = [suite_set.name for suite_set in self.sets]
        if not names:
            raise ValueError("a suite needs at least one set")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sets are named {twice[0]}: give every set its own name")
        return self

    @property
    def categories(self) -> dict[str, str | None]:
        """Category by set name."""
        return {suite_set.name: suite_set.category for suite_set in self.sets}


def load_suite(path: Path | str, root: Path | str | None = None) -> Suite:
    """Read a suite file, or a shipped suite by its name; `root` goes before the file's own.

    Raises:
        RmkitError: naming the file, the key and the nearest known key.
    """
    file = find_suite(path)
    suite = validate(Suite, load_yaml(file), str(file))
    return suite if root is None else suite.model_copy(update={"root": Path(root)})


def load_set(suite_set: SuiteSet, root: Path | None, identical: Literal["drop", "error"] = "drop") -> PreferenceData:
    """The pairs of a set. A row of a `best_of` set gives one pair per rejected response, all with the row's index.

    Raises:
        RmkitError: see `rmkit.data.preferences.load_preferences`.
    """
    if suite_set.score == "accuracy":
        return load_pairs(suite_set, root=root, identical=identical)
    path = locate(suite_set, root)
    unread = [key for key, value in {"columns": suite_set.columns, "pairing": suite_set.pairing}.items() if value]
    if unread:
        raise RmkitError(
            f"{suite_set.name} has {unread[0]}, which sets with score: best_of do not take.",
            "Rename the columns of the data to prompt, chosen and rejected, and remove pairing.",
        )
    loaded = load_rows(
        path,
        split=suite_set.split,
        root=root,
        subset=suite_set.subset,
        revision=suite_set.revision,
        where=suite_set.where,
        columns=COLUMNS,
    )
    index = limit_rows(match_rows(loaded, suite_set.where, path), suite_set.limit, suite_set.limit_seed)
    numbered = zip(index.tolist(), iter_rows(loaded.rows.select(index)), strict=True)
    pairs = [pair for number, row in numbered for pair in _best_of_pairs(path, number, row, suite_set.templated)]
    unused = ", ".join(find_unused(loaded.names, COLUMNS))
    form = f"best of several, not used: {unused}" if unused else None
    return replace(
        drop_identical(pairs, suite_set.name, identical),
        split=loaded.split,
        format=form,
        templated=suite_set.templated,
    )


def _best_of_pairs(path: str, index: int, row: Mapping[str, object], templated: Templated) -> list[PreferencePair]:
    chosen, rejected = row["chosen"], row["rejected"]
    chosen = chosen if isinstance(chosen, list) and not _are_messages(chosen) else [chosen]
    if len(chosen) != 1 or not isinstance(rejected, list) or not rejected:
        raise RmkitError(
            f"{path}: row {index} does not have one chosen response and a list of rejected ones.",
            "Leave such rows out with `where`, or give `score: accuracy`.",
        )
    first, *others = (
        parse_response(each, f"{path}: row {index}, column {column}") if _are_messages(each) else each
        for column, responses in (("chosen", chosen), ("rejected", rejected))
        for each in responses
    )
    return [parse_row(path, index, {**row, "chosen": first, "rejected": each}, templated) for each in others]


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, Mapping) for each in value)


def best_of_accuracy(index: ArrayLike, chosen: ArrayLike, rejected: ArrayLike) -> dict[str, float]:
    """The share of rows whose chosen response has the highest reward; k responses tied for it count 1/k.

    Args:
        index: [pairs] the row of each pair, as in rewards/<set>.parquet. Rows that lost a pair (to the length limit,
            for example) would be easier, so they are not counted.
        chosen, rejected: rewards [pairs].

    Returns:
        `best_of_accuracy`, `rows` and `incomplete_rows`.
    """
    chosen, rejected = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    _, first, row_of, counts = np.unique(np.asarray(index), return_index=True, return_inverse=True, return_counts=True)
    rewards = chosen[first]  # of each row's one chosen response
    higher = np.bincount(row_of, weights=rejected > rewards[row_of])
    tied = np.bincount(row_of, weights=rejected == rewards[row_of])
    scores = np.where(higher > 0, 0.0, 1.0 / (1.0 + tied))
    complete = counts == counts.max()
    return {
        "best_of_accuracy": float(np.mean(scores[complete])),
        "rows": int(complete.sum()),
        "incomplete_rows": int((~complete).sum()),
    }


def section_scores(suite: Suite, accuracies: Mapping[str, float]) -> dict[str, float]:
    """The weighted mean accuracy of every section and `overall`, the plain mean of the sections.

    Args:
        accuracies: by set name; sets without a score are skipped.

    Returns:
        Scores by section; empty if no set has a section.
    """
    sections: dict[str, list[tuple[float, float]]] = {}
    for suite_set in suite.sets:
        if suite_set.section is not None and suite_set.name in accuracies:
            sections.setdefault(suite_set.section, []).append((accuracies[suite_set.name], suite_set.weight))
    means = {
        section: float(np.average([score for score, _ in scored], weights=[weight for _, weight in scored]))
        for section, scored in sections.items()
    }
    return means | {OVERALL: float(np.mean(list(means.values())))} if means else {}
