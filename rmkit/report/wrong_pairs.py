"""The pairs that a type ranks wrong most confidently, as texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rmkit.report.comparison import count
from rmkit.report.html import Texts
from rmkit.report.runs import Runs
from rmkit.report.set_pairs import SetPairs
from rmkit.report.statistics import Floats
from rmkit.report.style import in_order
from rmkit.report.tables import signed

WRONG_PAIRS = 10
LONGEST_TEXT = 1500  # characters shown; examples/ has the whole text


def wrong_pairs(runs: Runs, pairs: SetPairs) -> list[Texts]:
    """The pairs of a set that a type ranks wrong by the widest margins, with their texts: one list per type."""
    means = {name: _mean_margins(pairs, name) for name in in_order(pairs.frame["reward_model"])}
    lists = []
    for name, margins in means.items():
        order = [at for at in np.argsort(margins, kind="stable") if margins[at] < 0][:WRONG_PAIRS]
        texts = _texts(runs, pairs, [int(pairs.index[at]) for at in order])
        entries = []
        for at in order:
            heading = ", ".join(f"{other} {signed(means[other][at], 2)}" for other in means)
            row = texts.get(int(pairs.index[at]))
            parts = {} if row is None else {label: _cut(row[label]) for label in ("prompt", "chosen", "rejected")}
            entries.append((f"Pair {pairs.index[at]}: {heading}", parts))
        if entries:
            note = "Signed margins, mean over runs, in standard deviations of each run's rewards; worst first."
            lists.append(Texts(f"{pairs.dataset}, {name}.", entries, note))
    return lists


def _mean_margins(pairs: SetPairs, name: str) -> Floats:
    """Normalized margins [pairs], averaged over the runs of a type that have the pair; NaN if none has."""
    margins = pairs.normalized[(pairs.frame["reward_model"] == name).to_numpy()]
    seen = (~np.isnan(margins)).sum(axis=0)
    return np.where(seen > 0, np.nansum(margins, axis=0) / np.maximum(seen, 1), np.nan)


def _texts(runs: Runs, pairs: SetPairs, wanted: Sequence[int]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for run in pairs.frame.drop_duplicates("model")["run"]:
        missing = [index for index in wanted if index not in found]
        if not missing:
            break
        read = runs.examples(run, pairs.name, ["prompt", "chosen", "rejected"])
        if read is not None:
            there = read.loc[[index for index in missing if index in read.index]]
            found |= {
                int(index): {str(key): str(value) for key, value in row.items()} for index, row in there.iterrows()
            }
    return found


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … ({count(len(text), 'character')} in all)"
