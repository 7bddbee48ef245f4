"""The figures of the report: functions from tidy frames (columns as in `rmkit.report.runs.Runs.metrics`) to Figures.

runs = load(["runs/a", "runs/b"])
figure = accuracy_by_epoch(runs.metrics)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmkit.report import style
from rmkit.report.aggregate import over_seeds, sets_in_order
from rmkit.report.names import IM
from rmkit.report.statistics import Calibration, Floats

P = ParamSpec("P")
PANELS_IN_A_ROW = 3
MAX_PANELS = 12


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with the report's matplotlib settings, whatever the caller's are."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(style.RC):
            return draw(*args, **kwargs)

    return styled


@_styled
def accuracy_by_epoch(frame: pd.DataFrame, columns: int = PANELS_IN_A_ROW) -> Figure:
    """Accuracy by epoch: one panel per data set, one line per variant, bands of one standard deviation over seeds.

    Args:
        frame: rows of one setting with variant, dataset, category, training, seed, epoch, repeats_epoch and accuracy.
        columns: number of panels per row.
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
    """Accuracy by learning rate or beta (Figure 6): one panel per data set, one line per variant, bands over seeds.

    Args:
        frame: final rows of one setting with variant, dataset, category, seed, accuracy and the hyperparameter; where
            that is missing, because the type has none, the line is a dashed level.
        name: learning_rate or beta.
        columns: number of panels per row.
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
    """One panel per data set, lines labelled at their right ends; variants without `x` are level lines."""
    names, variants = sets_in_order(frame), style.in_order(frame["variant"])
    colours, markers = style.colours(variants), style.markers(variants)
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
                options: dict[str, Any] = {"color": colours[variant], "marker": markers[variant]}
                options["linestyle"] = "-" if style.is_standard(variant) else (0, (4, 2))
                ends[variant] = (last, _line(axis, line, x, options, (left, last)))
        style.label_lines(axis, ends, colours, gap=0.115)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    if columns > 1 and len(names) % columns:  # tick labels on panels that have none below
        for axis in axes[len(names) - columns : len(names)]:
            axis.tick_params(labelbottom=True)
    figure.supylabel("accuracy", fontsize=8)
    return figure, axes[: len(names)]


def _line(axis: Axes, line: pd.DataFrame, x: str, options: dict[str, Any], across: tuple[float, float]) -> float:
    """One line with its band; returns the height of its right end."""
    sd, colour = line["sd"].fillna(0.0), options["color"]
    if line[x].isna().all():
        height = float(line["mean"].iloc[0])
        axis.plot(across, [height, height], color=colour, linestyle=(0, (5, 2)))
        axis.fill_between(across, height - sd.iloc[0], height + sd.iloc[0], color=colour, alpha=0.18, linewidth=0)
        return height
    axis.plot(line[x], line["mean"], zorder=3, clip_on=False, **options)
    axis.fill_between(line[x], line["mean"] - sd, line["mean"] + sd, color=colour, alpha=0.18, linewidth=0)
    return float(line["mean"].iloc[-1])


@_styled
def win_rates(frame: pd.DataFrame, first: str) -> Figure:
    """How often each type is more accurate (Figures 2, 5, 8): one bar per category or set, of wins and ties.

    Args:
        frame: rows in the order of the bars with label, first, tie and second, in percent.
        first: the type compared with IM-RM; it is left in every bar, IM-RM right.
    """
    figure, (axis,) = style.new_figure(1, 1, style.TEXT_WIDTH * 0.8, 0.34 * len(frame) + 0.42)
    colours = style.colours([first, IM])
    parts = [("first", colours[first]), ("tie", style.TIE), ("second", colours[IM])]
    places = np.arange(len(frame))[::-1]
    left = np.zeros(len(frame))
    for column, colour in parts:
        widths = frame[column].to_numpy(dtype=float)
        axis.barh(places, widths, left=left, color=colour, height=0.72, edgecolor="white", linewidth=0.8)
        ink = "#1a1a1a" if column == "tie" else "white"  # on a colour: the same on light and dark pages
        for place, start, width in zip(places, left, widths, strict=True):
            if width >= 5:
                middle = start + width / 2
                axis.text(middle, place, f"{width:.0f}%", ha="center", va="center", color=ink, weight="bold", size=8)
        left = left + widths
    axis.set_yticks(places, [_words(label) for label in frame["label"]], fontsize=8)
    axis.set(xlim=(0, 100), xticks=[])
    axis.grid(visible=False)
    axis.spines[["left", "bottom"]].set_visible(False)
    heads = (
        (0, "left", f"{first} wins", colours[first]),
        (50, "center", "tie (within 1%)", style.MUTED),
        (100, "right", f"{IM} wins", colours[IM]),
    )
    for x, align, text, colour in heads:
        axis.text(x, len(frame) - 0.45, text, ha=align, va="bottom", color=colour, weight="bold", size=7.5)
    return figure


@_styled
def paired_differences(frame: pd.DataFrame, first: str) -> Figure:
    """Accuracy of a type minus that of IM-RM by data set: all models with their interval, single models as dots.

    Args:
        frame: rows with dataset, model (one of them `all models`), difference, low and high, as shares.
        first: the type compared with IM-RM.
    """
    colours = style.colours([first, IM])
    names = list(dict.fromkeys(frame["dataset"]))
    figure, (axis,) = style.new_figure(1, 1, style.TEXT_WIDTH * 0.8, 0.3 * len(names) + 0.75)
    axis.axvline(0, color=style.MUTED, linewidth=0.8)
    for place, name in enumerate(reversed(names)):
        rows = frame[frame["dataset"] == name]
        overall = rows[rows["model"] == "all models"].iloc[0]
        by_model = 100 * rows.loc[rows["model"] != "all models", "difference"]
        colour = colours[first if overall["difference"] > 0 else IM]
        axis.scatter(by_model, np.full(len(by_model), place), 12, color=style.TIE, linewidth=0, zorder=2)
        axis.hlines(place, 100 * overall["low"], 100 * overall["high"], color=colour, linewidth=2.2, zorder=3)
        axis.scatter([100 * overall["difference"]], [place], 30, color=colour, zorder=4)
    limit = 108 * max(frame[["difference", "low", "high"]].abs().to_numpy().max(), 0.01)
    axis.set(xlim=(-limit, limit), ylim=(-0.6, len(names) - 0.4))
    axis.set_yticks(range(len(names)), [_words(name) for name in reversed(names)], fontsize=8)
    axis.grid(visible=False, axis="y")
    axis.grid(visible=True, axis="x")
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("difference in accuracy, percentage points")
    for x, name, align in ((-limit, IM, "left"), (limit, first, "right")):
        axis.text(x, len(names) - 0.4, f"{name} better", ha=align, va="bottom", color=colours[name], weight="bold")
    return figure


@_styled
def accuracy_bars(frame: pd.DataFrame, panels: str | None = None) -> Figure:
    """Accuracy by data set, one bar per variant, with one standard deviation over seeds (Figures 7, 9, 10).

    Args:
        frame: final rows of one setting with variant, dataset, category, seed and accuracy.
        panels: the column by which rows are split into panels, such as model; None for a single panel.
    """
    values = sorted(frame[panels].unique(), key=str.casefold)[:MAX_PANELS] if panels else [None]
    names, variants = sets_in_order(frame), style.in_order(frame["variant"])
    columns = 1 if len(names) * len(variants) > 12 or len(values) == 1 else 2
    rows = -(-len(values) // columns)
    height = (1.15 if rows > 1 else 1.6) * rows + 0.65
    figure, axes = style.new_figure(rows, columns, style.TEXT_WIDTH, height, sharex=True, sharey=True)
    for axis, value in zip(axes, values, strict=False):
        _bars(axis, frame if value is None else frame[frame[panels] == value], names, variants)
        axis.set(title=value or "")
    for axis in axes[len(values) :]:
        axis.set_visible(False)
    style.add_legend(figure, style.colours(variants))
    figure.supylabel("accuracy", fontsize=8)
    return figure


def _bars(axis: Axes, frame: pd.DataFrame, names: Sequence[str], variants: Sequence[str]) -> None:
    """One panel: a group of bars per data set, one bar per variant."""
    colours, width = style.colours(variants), 0.8 / len(variants)
    means = over_seeds(frame, ["variant", "dataset"]).set_index(["variant", "dataset"])
    for number, variant in enumerate(variants):
        rows = means.reindex([(variant, name) for name in names])
        axis.bar(
            np.arange(len(names)) + (number - (len(variants) - 1) / 2) * width,
            rows["mean"].to_numpy(dtype=float),
            width * 0.92,
            yerr=np.nan_to_num(rows["sd"].to_numpy(dtype=float)),
            color=colours[variant],
            hatch=style.hatch(variant),
            edgecolor="white",
            linewidth=0,
            error_kw={"elinewidth": 0.8, "capsize": 1.6, "capthick": 0.8, "ecolor": style.INK},
        )
    axis.axhline(0.5, color=style.MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    axis.set(ylim=(0, 1), yticks=[0, 0.5, 1])
    axis.set_xticks(range(len(names)), [_two_lines(name) for name in names], fontsize=7)
    axis.tick_params(axis="x", length=0)


@_styled
def reliability(curves: Mapping[str, Mapping[str, Calibration]], columns: int = PANELS_IN_A_ROW) -> Figure:
    """Accuracy by confidence sigma(|margin|): one panel per category, one line per type; point sizes show the pairs.

    Args:
        curves: category -> type -> its calibration.
        columns: number of panels per row.
    """
    types = style.in_order({name for by_type in curves.values() for name in by_type})
    colours, markers = style.colours(types), style.markers(types)
    columns = min(columns, len(curves))
    rows = -(-len(curves) // columns)
    width = style.TEXT_WIDTH * {1: 0.55, 2: 0.8}.get(columns, 1.0)
    figure, axes = style.new_figure(rows, columns, width, 1.7 * rows + 0.55, sharex=True, sharey=True)
    for axis, (category, by_type) in zip(axes, curves.items(), strict=False):
        axis.plot([0.5, 1], [0.5, 1], color=style.MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        for name in style.in_order(by_type):
            curve = by_type[name]
            shown = curve.pairs > 0
            x, y = curve.confidence[shown], curve.accuracy[shown]
            sizes = 4 + 46 * curve.pairs[shown] / max(curve.pairs.max(), 1)
            axis.plot(x, y, color=colours[name], linewidth=1.0)
            axis.scatter(x, y, sizes, colours[name], marker=markers[name])
        axis.set(
            xlim=(0.48, 1.02), ylim=(0, 1.03), title=category, xticks=[0.5, 0.75, 1], yticks=[0, 0.25, 0.5, 0.75, 1]
        )
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    style.add_legend(figure, colours)
    figure.supxlabel("confidence σ(|margin|)", fontsize=8)
    figure.supylabel("accuracy", fontsize=8)
    return figure


@_styled
def agreement_matrix(matrix: Floats, labels: Sequence[str]) -> Figure:
    """Share of pairs that two runs rank the same way, as a heat map with numbers [labels, labels]."""
    size = len(labels)
    side = min(style.TEXT_WIDTH, 1.7 + 0.36 * size)
    figure, (axis,) = style.new_figure(1, 1, side, side * 0.92)
    lowest = min(0.5, float(np.nanmin(matrix)))
    lower = np.where(np.tri(size, dtype=bool), matrix, np.nan)  # the matrix is symmetric
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


def _two_lines(name: str) -> str:
    """`UF: French` on two lines, as in the paper's figures."""
    return _words(name).replace(": ", ":\n")
