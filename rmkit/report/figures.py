"""The figures of the report: each takes a tidy frame (columns as `rmkit.report.runs.Runs.metrics`) and gives a Figure.

runs = load(["runs/a", "runs/b"])
svg = to_svg(accuracy_by_epoch(runs.metrics))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmkit.report import style
from rmkit.report.names import CATEGORIES, DATASETS, IM
from rmkit.report.statistics import Calibration, Floats
from rmkit.report.style import save, to_svg

P = ParamSpec("P")
PANELS_IN_A_ROW = 3
MAX_PANELS = 12


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
def accuracy_by_epoch(frame: pd.DataFrame, columns: int = PANELS_IN_A_ROW) -> Figure:
    """Accuracy against epoch: a panel a data set, a line a reward model type, bands of one standard deviation of seeds.

    Args:
        frame: rows of one setting with variant, dataset, category, training, seed, epoch, repeats_epoch and accuracy.
        columns: panels side by side.
    """
    shown = frame[~frame["training"] & ~frame["repeats_epoch"]]
    last = float(shown["epoch"].max())
    figure, axes = _lines(shown, "epoch", columns, right=last * (1.0 + 0.2 * min(columns, shown["dataset"].nunique())))
    step = max(1, math.ceil(last / 5))
    for axis in axes:
        axis.set_xticks(range(0, int(last) + 1, step))
    figure.supxlabel("epoch", fontsize=8)
    return figure


@_styled
def accuracy_by_hyperparameter(frame: pd.DataFrame, name: str, columns: int = PANELS_IN_A_ROW) -> Figure:
    """Accuracy against the learning rate or beta (Figure 6): a panel a data set, a line a type, seeds as bars.

    Args:
        frame: final rows of one setting with variant, dataset, category, seed, accuracy and the hyperparameter, which
            is missing for types that have none: they are drawn as a level.
        name: learning_rate or beta.
        columns: panels side by side.
    """
    values = sorted(frame[name].dropna().unique())
    ratio = values[-1] / values[0] if len(values) > 1 else 10.0
    right = values[-1] * ratio ** (0.2 * min(columns, frame["dataset"].nunique()))
    figure, axes = _lines(frame, name, columns, right=right, left=values[0] / ratio**0.08, log=True)
    for axis in axes:
        texts = [f"{value:g}".replace("e-0", "e-") for value in values]
        axis.set_xticks(values, texts, rotation=50, rotation_mode="anchor", ha="right", va="center")
        axis.minorticks_off()
    figure.supxlabel("β" if name == "beta" else "learning rate", fontsize=8)
    return figure


def _lines(
    frame: pd.DataFrame, x: str, columns: int, *, right: float, left: float = 0.0, log: bool = False
) -> tuple[Figure, list[Axes]]:
    """Lines with names at their ends, a panel a data set; rows without `x` are drawn as a level across the panel."""
    names, variants = sets_in_order(frame), style.in_order(frame["variant"])
    palette = style.colours(variants)
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    width = style.TEXT_WIDTH * {1: 0.55, 2: 0.8}.get(columns, 1.0)
    figure, axes = style.new_figure(rows, columns, width, 1.5 * rows + 0.3, sharex=True, sharey=True)
    means = over_seeds(frame, ["variant", "dataset", x])
    last = float(frame[x].max())
    for axis, name in zip(axes, names, strict=False):
        if log:
            axis.set_xscale("log")
        axis.set(xlim=(left, right or 1.0), ylim=(0, 1), yticks=[0, 0.5, 1], title=_words(name))
        axis.spines["bottom"].set_bounds(left, last)
        axis.plot([left, last], [0.5, 0.5], color=style.MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axis.grid(visible=False)
        axis.hlines([0.25, 0.75, 1.0], left, last, color=style.RULE, linewidth=0.5, zorder=0)
        ends = {}
        for variant in variants:
            line = means[(means["variant"] == variant) & (means["dataset"] == name)].sort_values(x)
            if not line.empty:
                ends[variant] = (last, _line(axis, line, x, variant, palette[variant], (left, last)))
        style.label_lines(axis, ends, palette, gap=0.115)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    if columns > 1 and len(names) % columns:  # panels without one below them carry the numbers
        for axis in axes[len(names) - columns : len(names)]:
            axis.tick_params(labelbottom=True)
    figure.supylabel("accuracy", fontsize=8)
    return figure, axes[: len(names)]


def _line(axis: Axes, line: pd.DataFrame, x: str, variant: str, colour: str, across: tuple[float, float]) -> float:
    """One line with its band; returns the height of its right end."""
    sd = line["sd"].fillna(0.0)
    if line[x].isna().all():
        height = float(line["mean"].iloc[0])
        axis.plot(across, [height, height], color=colour, linestyle=(0, (5, 2)))
        axis.fill_between(across, height - sd.iloc[0], height + sd.iloc[0], color=colour, alpha=0.18, linewidth=0)
        return height
    dashes = "-" if variant in style.COLOURS else (0, (4, 2))
    marker = style.MARKERS[style.family(variant)]
    axis.plot(line[x], line["mean"], color=colour, marker=marker, linestyle=dashes, zorder=3, clip_on=False)
    axis.fill_between(line[x], line["mean"] - sd, line["mean"] + sd, color=colour, alpha=0.18, linewidth=0)
    return float(line["mean"].iloc[-1])


@_styled
def win_rates(frame: pd.DataFrame, explicit: str) -> Figure:
    """Who is more accurate how often (Figures 2, 5, 8): a bar a category, or a set, of win-rates and ties.

    Args:
        frame: rows in the order of the bars with label, first, tie and second, in percent.
        explicit: the first type's name, left in every bar; the right one is IM-RM's.
    """
    figure, (axis,) = style.new_figure(1, 1, style.TEXT_WIDTH * 0.8, 0.34 * len(frame) + 0.42)
    parts = [("first", explicit, style.COLOURS[explicit]), ("tie", "tie", style.TIE), ("second", IM, style.COLOURS[IM])]
    places = np.arange(len(frame))[::-1]
    left = np.zeros(len(frame))
    for column, _, colour in parts:
        widths = frame[column].to_numpy(dtype=float)
        axis.barh(places, widths, left=left, color=colour, height=0.72, edgecolor="white", linewidth=0.8)
        for place, start, width in zip(places, left, widths, strict=True):
            if width >= 5:
                ink = "#1a1a1a" if column == "tie" else "white"  # on a colour: the same on light and dark pages
                axis.text(
                    start + width / 2,
                    place,
                    f"{width:.0f}%",
                    ha="center",
                    va="center",
                    color=ink,
                    weight="bold",
                    size=8,
                )
        left = left + widths
    axis.set_yticks(places, [_words(label) for label in frame["label"]], fontsize=8)
    axis.set(xlim=(0, 100), xticks=[])
    axis.grid(visible=False)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    for x, (_, name, colour), align in zip((0, 50, 100), parts, ("left", "center", "right"), strict=True):
        ink = style.MUTED if name == "tie" else colour
        text = "tie (within 1%)" if name == "tie" else f"{name} wins"
        axis.text(x, len(frame) - 0.45, text, ha=align, va="bottom", color=ink, weight="bold", size=7.5)
    return figure


@_styled
def paired_differences(frame: pd.DataFrame, explicit: str) -> Figure:
    """Accuracy of the explicit type less that of IM-RM: by data set, all models with their interval, each as a dot.

    Args:
        frame: rows with dataset, model (one of them `all models`), difference, low and high, as shares.
        explicit: the first type's name.
    """
    names = list(dict.fromkeys(frame["dataset"]))
    figure, (axis,) = style.new_figure(1, 1, style.TEXT_WIDTH * 0.8, 0.3 * len(names) + 0.75)
    axis.axvline(0, color=style.MUTED, linewidth=0.8)
    for place, name in enumerate(reversed(names)):
        rows = frame[frame["dataset"] == name]
        together = rows[rows["model"] == "all models"].iloc[0]
        each = 100 * rows.loc[rows["model"] != "all models", "difference"]
        colour = style.COLOURS[explicit if together["difference"] > 0 else IM]
        axis.scatter(each, np.full(len(each), place), 12, color=style.TIE, linewidth=0, zorder=2)
        axis.hlines(place, 100 * together["low"], 100 * together["high"], color=colour, linewidth=2.2, zorder=3)
        axis.scatter([100 * together["difference"]], [place], 30, color=colour, zorder=4)
    limit = 108 * max(frame[["difference", "low", "high"]].abs().to_numpy().max(), 0.01)
    axis.set(xlim=(-limit, limit), ylim=(-0.6, len(names) - 0.4))
    axis.set_yticks(range(len(names)), [_words(name) for name in reversed(names)], fontsize=8)
    axis.grid(visible=False, axis="y")
    axis.grid(visible=True, axis="x")
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("difference in accuracy, percentage points")
    for x, name, align in ((-limit, IM, "left"), (limit, explicit, "right")):
        axis.text(
            x, len(names) - 0.4, f"{name} better", ha=align, va="bottom", color=style.COLOURS[name], weight="bold"
        )
    return figure


@_styled
def accuracy_bars(frame: pd.DataFrame, panels: str | None = None) -> Figure:
    """Accuracy by data set, a bar a variant, with one standard deviation over seeds (Figures 7, 9, 10).

    Args:
        frame: final rows of one setting with variant, dataset, category, seed and accuracy.
        panels: the column that a panel shows one value of, such as model; None for a single panel.
    """
    values = sorted(frame[panels].unique(), key=str.casefold)[:MAX_PANELS] if panels else [None]
    names, variants = sets_in_order(frame), style.in_order(frame["variant"])
    palette = style.colours(variants)
    columns = 1 if len(names) * len(variants) > 12 or len(values) == 1 else 2
    rows = -(-len(values) // columns)
    height = (1.15 if rows > 1 else 1.6) * rows + 0.65
    figure, axes = style.new_figure(rows, columns, style.TEXT_WIDTH, height, sharex=True, sharey=True)
    width = 0.8 / len(variants)
    for axis, value in zip(axes, values, strict=False):
        chosen = frame if value is None else frame[frame[panels] == value]
        means = over_seeds(chosen, ["variant", "dataset"]).set_index(["variant", "dataset"])
        for number, variant in enumerate(variants):
            at = [means.loc[(variant, name)] if (variant, name) in means.index else None for name in names]
            x = [place + (number - (len(variants) - 1) / 2) * width for place in range(len(names))]
            heights = [math.nan if each is None else float(each["mean"]) for each in at]
            errors = [0.0 if each is None else float(np.nan_to_num(each["sd"])) for each in at]
            axis.bar(
                x,
                heights,
                width * 0.92,
                yerr=errors,
                color=palette[variant],
                hatch=style.hatch(variant),
                edgecolor="white",
                linewidth=0,
                error_kw={"elinewidth": 0.8, "capsize": 1.6, "capthick": 0.8, "ecolor": style.INK},
            )
        axis.axhline(0.5, color=style.MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        axis.set(ylim=(0, 1), yticks=[0, 0.5, 1], title=value or "")
        axis.set_xticks(range(len(names)), [_wrapped(name) for name in names], fontsize=7)
        axis.tick_params(axis="x", length=0)
    for axis in axes[len(values) :]:
        axis.set_visible(False)
    style.key(figure, variants, palette)
    figure.supylabel("accuracy", fontsize=8)
    return figure


@_styled
def reliability(curves: Mapping[str, Mapping[str, Calibration]], columns: int = PANELS_IN_A_ROW) -> Figure:
    """Accuracy against confidence sigma(|margin|): a panel a category, a line a variant; a point's size is its pairs.

    Args:
        curves: category -> variant -> its calibration.
        columns: panels side by side.
    """
    variants = style.in_order({variant for each in curves.values() for variant in each})
    palette = style.colours(variants)
    columns = min(columns, len(curves))
    rows = -(-len(curves) // columns)
    width = style.TEXT_WIDTH * {1: 0.55, 2: 0.8}.get(columns, 1.0)
    figure, axes = style.new_figure(rows, columns, width, 1.7 * rows + 0.55, sharex=True, sharey=True)
    for axis, (category, each) in zip(axes, curves.items(), strict=False):
        axis.plot([0.5, 1], [0.5, 1], color=style.MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        for variant in style.in_order(each):
            curve, colour = each[variant], palette[variant]
            shown = curve.pairs > 0
            sizes = 4 + 46 * curve.pairs[shown] / max(curve.pairs.max(), 1)
            axis.plot(curve.confidence[shown], curve.accuracy[shown], color=colour, linewidth=1.0)
            axis.scatter(
                curve.confidence[shown],
                curve.accuracy[shown],
                sizes,
                colour,
                marker=style.MARKERS[style.family(variant)],
            )
        axis.set(
            xlim=(0.48, 1.02), ylim=(0, 1.03), title=category, xticks=[0.5, 0.75, 1], yticks=[0, 0.25, 0.5, 0.75, 1]
        )
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    style.key(figure, variants, palette)
    figure.supxlabel("confidence σ(|margin|)", fontsize=8)
    figure.supylabel("accuracy", fontsize=8)
    return figure


@_styled
def agreement_matrix(matrix: Floats, labels: Sequence[str]) -> Figure:
    """Share of pairs that two models rank alike, as a heat map with numbers [labels, labels]."""
    size = len(labels)
    side = min(style.TEXT_WIDTH, 1.7 + 0.36 * size)
    figure, (axis,) = style.new_figure(1, 1, side, side * 0.92)
    lowest = min(0.5, float(np.nanmin(matrix)))
    lower = np.where(np.tri(size, dtype=bool), matrix, np.nan)  # the upper half says the same
    image = axis.pcolormesh(lower, cmap="Blues", vmin=lowest, vmax=1, edgecolor="white", linewidth=0.5)
    small = size > 12
    for row, column in zip(*np.tril_indices(size), strict=True):
        value = float(matrix[row, column])
        ink = "white" if value > lowest + 0.6 * (1 - lowest) else "#101010"
        text = "" if math.isnan(value) else f"{100 * value:.0f}"
        axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, size=5 if small else 7)
    middles = np.arange(size) + 0.5
    axis.set_xticks(middles, labels, rotation=90, fontsize=5.5 if small else 7)
    axis.set_yticks(middles, labels, fontsize=5.5 if small else 7)
    axis.invert_yaxis()
    axis.set_aspect("equal")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axis, shrink=0.6, pad=0.02, format=lambda value, _: f"{100 * value:.0f}%")
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _words(name: str) -> str:
    return name.replace("_", " ")


def _wrapped(name: str) -> str:
    """A set's name on two lines, as in the paper's figures."""
    return _words(name).replace(": ", ":\n")


__all__ = [
    "accuracy_bars",
    "accuracy_by_epoch",
    "accuracy_by_hyperparameter",
    "agreement_matrix",
    "over_seeds",
    "paired_differences",
    "reliability",
    "save",
    "sets_in_order",
    "to_svg",
    "win_rates",
]
