"""The figure of a table: how many times faster, by work, micro-batch and baseline. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.results import BASELINES, Entry
from rmkit.files import replacing
from rmkit.report.palette import BLUE, GREEN, ORANGE
from rmkit.report.style import INK, MUTED, RC, TEXT_WIDTH, TIE, write_png

_PALETTE = {"stock": BLUE.light, "stock_best": ORANGE.light, "padded": GREEN.light, "plain": TIE}
_BAR = 0.8
DPI = 300  # as it is written: the layout measures texts, whose width depends on it


def draw(entries: Sequence[Entry], path: Path) -> None:
    """Write a PNG of the median ratios, with whiskers from the least to the most."""
    with matplotlib.rc_context(RC):
        figure = ratios(entries)
    with replacing(path) as temporary:
        write_png(figure, temporary)


def ratios(entries: Sequence[Entry]) -> Figure:
    """Horizontal bars, grouped by work and micro-batch; a line where rmkit would be as fast as the baseline."""
    groups = list(dict.fromkeys((each.work, each.micro_batch) for each in entries))
    ordered = sorted(entries, key=lambda each: (groups.index((each.work, each.micro_batch)), each.baseline))
    height = 0.7 + 0.21 * len(ordered) + 0.12 * len(groups)
    figure = Figure(figsize=(TEXT_WIDTH, height), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    place, before = 0.0, None
    ticks: dict[tuple[str, int], list[float]] = {}
    for each in ordered:
        group = (each.work, each.micro_batch)
        place += 1.0 if group == before else 1.6
        before = group
        ticks.setdefault(group, []).append(place)
        axes.barh(place, each.ratio_median, height=_BAR, color=_PALETTE[each.baseline])
        around = [[each.ratio_median - each.ratio_min], [each.ratio_max - each.ratio_median]]
        axes.errorbar(each.ratio_median, place, xerr=around, color=INK, linewidth=0.8, capsize=2)
        axes.annotate(
            f"{each.ratio_median:.2f}x",
            (each.ratio_max, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axes.axvline(1.0, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_yticks([sum(places) / len(places) for places in ticks.values()])
    axes.set_yticklabels([f"{work}, {micro_batch} {_unit(work)}" for work, micro_batch in ticks])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(each.ratio_max for each in ordered))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set_xlabel("times as fast as the baseline (median, least and most)")
    used = [name for name in BASELINES if any(each.baseline == name for each in ordered)]
    handles = [Patch(facecolor=_PALETTE[name], label=BASELINES[name]) for name in used]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, handlelength=1.1)
    return figure


def _unit(work: str) -> str:
    return "responses" if work == "scoring" else "pairs"
