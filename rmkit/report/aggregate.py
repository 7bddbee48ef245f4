"""What tables and figures share: means over seeds, and the order of data sets."""

from __future__ import annotations

import pandas as pd

from rmkit.report.names import CATEGORIES, DATASETS


def over_seeds(frame: pd.DataFrame, by: list[str], value: str = "accuracy") -> pd.DataFrame:
    """Mean and sample standard deviation of `value` over seeds, after a mean over everything but `by` and the seed.

    Returns:
        A frame of `by`, mean, sd (NaN with one seed) and seeds.
    """
    by_seed = frame.groupby([*by, "seed"], sort=False, dropna=False, observed=True)[value].mean().reset_index()
    grouped = by_seed.groupby(by, sort=False, dropna=False, observed=True)[value]
    return grouped.agg(mean="mean", sd="std", seeds="count").reset_index()


def sets_in_order(frame: pd.DataFrame) -> list[str]:
    """The data sets of a frame by category, in the paper's order; within a category the paper's sets come first."""
    categories = list(CATEGORIES.values())
    found = frame.drop_duplicates("dataset")
    category = dict(zip(found["dataset"], found["category"], strict=True))

    def rank(name: str) -> tuple[int, int]:
        first = categories.index(category[name]) if category[name] in categories else len(categories)
        return first, DATASETS.index(name) if name in DATASETS else len(DATASETS)

    return sorted(category, key=rank)
