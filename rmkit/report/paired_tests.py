"""A reward model type against IM-RM on the same pairs: differences in accuracy, their intervals and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rmkit.report import statistics
from rmkit.report.comparison import Comparison, slug
from rmkit.report.names import IM
from rmkit.report.set_pairs import SetPairs
from rmkit.report.tables import Cell, Table, number, signed

LEVEL = 0.05
ALL = "all models"


def paired_rows(comparison: Comparison, sets: Sequence[SetPairs]) -> pd.DataFrame:
    """One row per set and model, and one for all models: the difference in accuracy with its interval and tests.

    The difference is averaged pair by pair over seeds (and models); the interval is over prompts, for these models.
    Columns starting with explicit_ are about the first type of the comparison, those with implicit_ about IM-RM.
    """
    rows = []
    cells = set(zip(comparison.frame["model"], comparison.frame["seed"], strict=True))
    models = sorted({model for model, _ in cells})
    for pairs in sets:
        for model in [ALL, *(models if len(models) > 1 else [])]:
            chosen = [cell for cell in sorted(cells) if model in (ALL, cell[0])]
            row = {"evaluation": pairs.category, "dataset": pairs.dataset, "model": model}
            rows.append(row | _paired(comparison.first, pairs, chosen))
    return pd.DataFrame(rows)


def _paired(first_type: str, pairs: SetPairs, cells: Sequence[tuple[str, int]]) -> dict[str, Any]:
    first = pairs.correct[[pairs.rows[first_type, *cell] for cell in cells]]
    second = pairs.correct[[pairs.rows[IM, *cell] for cell in cells]]
    present = ~np.isnan(first - second)
    some = present.any(axis=0)
    difference = np.nanmean((first - second)[:, some], axis=0)
    clusters = None if pairs.prompts is None else pairs.prompts[some]
    interval = statistics.bootstrap_mean(difference, clusters)
    tests = [
        statistics.mcnemar(first[row, seen], second[row, seen], None if pairs.prompts is None else pairs.prompts[seen])
        for row, seen in enumerate(present)
    ]
    discordant = float(np.mean((first != second)[present]))
    prompts = int(some.sum()) if clusters is None else len(np.unique(clusters))
    return {
        "pairs": int(some.sum()),
        "prompts": prompts,
        "explicit_accuracy": float(np.nanmean(first[present])),
        "implicit_accuracy": float(np.nanmean(second[present])),
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "mcnemar_tests": len(tests),
        "explicit_better": sum(test.p_value < LEVEL and test.first_only > test.second_only for test in tests),
        "implicit_better": sum(test.p_value < LEVEL and test.first_only < test.second_only for test in tests),
        "median_p_value": float(np.median([test.p_value for test in tests])),
        "discordant": discordant,
        "detectable_difference": statistics.detectable_difference(prompts, discordant),
    }


def paired_table(comparison: Comparison, rows: pd.DataFrame) -> Table:
    """The difference over all models by set, with its interval and tests."""
    body = []
    for row in rows[rows["model"] == ALL].to_dict("records"):
        prompts = f"{row['prompts']} prompts" if row["prompts"] < row["pairs"] else ""
        body.append(
            [
                Cell(row["dataset"], number=False),
                Cell(f"{row['pairs']}", prompts),
                _difference(row),
                Cell(f"{row['explicit_better']} : {row['implicit_better']}", f"of {row['mcnemar_tests']}"),
                Cell(_p_value(row["median_p_value"])),
                Cell(number(100 * row["detectable_difference"], 1)),
            ]
        )
    note = (
        "Difference in accuracy: percentage points, mean over seeds and models, with a 95% interval (paired bootstrap "
        "over prompts, 2000 resamples); bold if the interval excludes 0. McNemar: among pairs of runs with the same "
        f"model and seed, how many have {comparison.first} : IM-RM better at p < 0.05 (1 in 20 by chance), and the "
        "median p. Detectable: the smallest true difference, in points, that one such test finds with probability 0.8, "
        "at the rate at which the two disagree."
    )
    header = ["Dataset", "Pairs", f"{comparison.first} − IM-RM", "McNemar", "Median p", "Detectable"]
    name = f"{slug(comparison.setting)}_paired_{slug(comparison.first)}"
    title = f"{comparison.first} against IM-RM on the same pairs, trained on {comparison.setting}."
    return Table(
        name, title, header, body, rows.assign(training=comparison.setting, reward_model=comparison.first), note
    )


def paired_by_model(comparison: Comparison, rows: pd.DataFrame) -> Table:
    """The same difference by model: one row per set, one column per model."""
    shown = rows[rows["model"] != ALL]
    models, datasets = sorted(shown["model"].unique(), key=str.casefold), list(dict.fromkeys(shown["dataset"]))
    cells = {(row["dataset"], row["model"]): _difference(row) for row in shown.to_dict("records")}
    body = [[Cell(name, number=False), *(cells[name, model] for model in models)] for name in datasets]
    note = "Percentage points, mean over seeds, with a 95% interval; bold if the interval excludes 0."
    name = f"{slug(comparison.setting)}_paired_by_model_{slug(comparison.first)}"
    title = f"{comparison.first} − IM-RM on the same pairs by language model, trained on {comparison.setting}."
    return Table(
        name,
        title,
        ["Dataset", *models],
        body,
        shown.assign(training=comparison.setting, reward_model=comparison.first),
        note,
    )


def _difference(row: dict[str, Any]) -> Cell:
    low, high = (signed(100 * row[end]) for end in ("low", "high"))
    return Cell(signed(100 * row["difference"]), f"{low} to {high}", bold=row["low"] > 0 or row["high"] < 0)


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
