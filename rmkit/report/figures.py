"""The figures of the report: each takes a tidy frame (columns as `rmkit.report.runs.Runs.metrics`) and gives a Figure.

runs = load(["runs/a", "runs/b"])
svg = to_svg(accuracy_by_epoch(runs.metrics))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmkit.report import style
from rmkit.report.names import CATEGORIES, DATASETS
from rmkit.report.style import save, to_svg

P = ParamSpec("P")


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw under the report's settings, whatever the caller's are."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(style.RC):
            return draw(*args, **kwargs)

    return styled


def over_seeds(frame: pd.DataFrame, by: list[str], value: str = "accuracy") -> pd.DataFrame:
    """Mean and sample standard deviation over seeds of `value`, averaged first over everything but `by` and the seed.

    Returns:
        A frame of `by`, mean, sd (NaN with one seed) and seeds.
    """
    each_seed = frame.groupby([*by, "seed"], sort=False, dropna=False, observed=True)[value].mean().reset_index()
    grouped = each_seed.groupby(by, sort=False, dropna=False, observed=True)[value]
    return grouped.agg(mean="mean", sd="std", seeds="count").reset_index()


def sets_in_order(frame: pd.DataFrame) -> list[str]:
    """The frame's data sets: by category in the paper's order, within one the paper's sets first, then as they came."""
    categories = list(CATEGORIES.values())
    found = frame.drop_duplicates("dataset")
    category = dict(zip(found["dataset"], found["category"], strict=True))

    def place(name: str) -> tuple[int, int]:
        at = categories.index(category[name]) if category[name] in categories else len(categories)
        return at, DATASETS.index(name) if name in DATASETS else len(DATASETS)

    return sorted(category, key=place)


@_styled
def accuracy_by_epoch(frame: pd.DataFrame, columns: int = 3) -> Figure:
    """Accuracy against epoch: a panel a data set, a line a reward model type, bands of one standard deviation of seeds.

    Args:
        frame: rows of one setting with variant, dataset, category, seed, state, epoch, repeats_epoch and accuracy.
        columns: panels side by side.
    """
    shown = frame[~frame["training"] & ~frame["repeats_epoch"]]
    names = sets_in_order(shown)
    variants = style.in_order(shown["variant"])
    palette = style.colours(variants)
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    width = style.TEXT_WIDTH * max(columns, 2) / 3 if columns < 3 else style.TEXT_WIDTH
    figure, axes = style.new_figure(rows, columns, width, 1.55 * rows + 0.25, sharex=True, sharey=True)
    means = over_seeds(shown, ["variant", "dataset", "epoch"])
    last = float(shown["epoch"].max())
    for axis, name in zip(axes, names, strict=False):
        ends = {}
        for variant in variants:
            line = means[(means["variant"] == variant) & (means["dataset"] == name)].sort_values("epoch")
            if line.empty:
                continue
            colour, marker = palette[variant], style.MARKERS[style.family(variant)]
            dashes = "-" if variant in style.COLOURS else (0, (4, 2))
            axis.plot(
                line["epoch"], line["mean"], color=colour, marker=marker, linestyle=dashes, clip_on=False, zorder=3
            )
            spread = line["sd"].fillna(0.0)
            axis.fill_between(
                line["epoch"], line["mean"] - spread, line["mean"] + spread, color=colour, alpha=0.18, linewidth=0
            )
            ends[variant] = (float(line["epoch"].iloc[-1]), float(line["mean"].iloc[-1]))
        style.label_lines(axis, ends, palette, gap=0.1)
        _chance(axis)
        axis.set_title(name)
        axis.set_xlim(0, last * (1.0 + 0.22 * columns) if last else 1.0)
        axis.set_xticks(_epoch_ticks(last))
        axis.set_ylim(0, 1)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("accuracy", fontsize=8)
    return figure


def _chance(axis: Axes) -> None:
    axis.axhline(0.5, color=style.MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)


def _epoch_ticks(last: float) -> list[int]:
    step = max(1, int(np.ceil(last / 5)))
    return list(range(0, int(last) + 1, step))


__all__ = ["accuracy_by_epoch", "over_seeds", "save", "sets_in_order", "to_svg"]
