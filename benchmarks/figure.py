"""The figure of a table: speed-up by workload, micro-batch and baseline. No torch."""

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
DPI = 300  # of the PNG: the layout depends on the width of texts, which depends on it


def draw(entries: Sequence[Entry], path: Path) -> None:
    """Write a PNG of the median speed-ups, with whiskers from min to max."""
    with matplotlib.rc_context(RC):
        figure = ratios(entries)
    with replacing(path) as temporary:
        write_png(figure, temporary)


def ratios(entries: Sequence[Entry]) -> Figure:
    """Horizontal bars grouped by workload and micro-batch, with a line at equal speed."""
    groups = list(dict.fromkeys((entry.work, entry.micro_batch) for entry in entries))
    ordered = sorted(entries, key=lambda entry: (groups.index((entry.work, entry.micro_batch)), entry.baseline))
    height = 0.7 + 0.21 * len(ordered) + 0.12 * len(groups)
    figure = Figure(figsize=(TEXT_WIDTH, height), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    place, before = 0.0, None
    ticks: dict[tuple[str, int], list[float]] = {}
    for entry in ordered:
        group = (entry.work, entry.micro_batch)
        place += 1.0 if group == before else 1.6
        before = group
        ticks.setdefault(group, []).append(place)
        axes.barh(place, entry.ratio_median, height=_BAR, color=_PALETTE[entry.baseline])
        around = [[entry.ratio_median - entry.ratio_min], [entry.ratio_max - entry.ratio_median]]
        axes.errorbar(entry.ratio_median, place, xerr=around, color=INK, linewidth=0.8, capsize=2)
        axes.annotate(
            f"{entry.ratio_median:.2f}x",
            (entry.ratio_max, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axes.axvline(1.0, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_yticks([sum(places) / len(places) for places in ticks.values()])
    axes.set_yticklabels([f"{work}, {micro_batch} {_unit(work)}" for work, micro_batch in ticks])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(entry.ratio_max for entry in ordered))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set_xlabel("speed-up over the baseline (median, whiskers min and max)")
    used = [name for name in BASELINES if any(entry.baseline == name for entry in ordered)]
    handles = [Patch(facecolor=_PALETTE[name], label=BASELINES[name]) for name in used]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, handlelength=1.1)
    return figure


def _unit(work: str) -> str:
    return "responses" if work == "scoring" else "pairs"
