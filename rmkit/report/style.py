"""The look of every figure: colours that colour-blind readers can tell apart, sizes of a paper's column, SVG and PNG.

SVGs carry no background, and their ink is `currentColor`, so that one file serves light and dark pages and print.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmkit.report.names import EX, GRM, IM

TEXT_WIDTH = 5.5  # inches: a single-column paper's line
INK, MUTED, RULE, TIE = "#1b1b1f", "#6a6a73", "#d5d5dc", "#b4b4bd"

# Okabe and Ito's palette, with the tints of the variants; a marker and hatch each, as colour alone must not carry it.
COLOURS = {EX: "#0072b2", IM: "#d55e00", GRM: "#00906a"}
MARKERS = {EX: "o", IM: "s", GRM: "^"}
_VARIANT_COLOURS = {EX: ["#56b4e9", "#8ecae6"], IM: ["#e69f00", "#f2c14e"], GRM: ["#66c2a5", "#a6dcc8"]}

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "rmkit",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def family(variant: str) -> str:
    """EX-RM (all repr) -> EX-RM."""
    return variant.partition(" (")[0]


def in_order(variants: Iterable[str]) -> list[str]:
    """EX-RMs, then IM-RMs, then EX-GRMs, each standard variant first."""
    return sorted(set(variants), key=lambda name: (list(COLOURS).index(family(name)), name))


def colours(variants: Sequence[str]) -> dict[str, str]:
    """variant -> colour; a family's variants are tints of its colour."""
    tints = {name: iter(_VARIANT_COLOURS[name] * 8) for name in COLOURS}
    return {each: COLOURS[each] if each in COLOURS else next(tints[family(each)]) for each in in_order(variants)}


def hatch(variant: str) -> str | None:
    return None if variant in COLOURS else "////"


def new_figure(rows: int, columns: int, width: float, height: float, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns panels (inches), laid out without overlap; axes in reading order."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)  # type: ignore[call-overload]
    return figure, list(axes.flat)


def key(figure: Figure, labels: Sequence[str], palette: dict[str, str]) -> None:
    """The labels above the panels, each in front of a swatch of its colour."""
    from matplotlib.patches import Patch

    patches = [
        Patch(facecolor=palette[each], hatch=hatch(each), edgecolor="white", linewidth=0, label=each) for each in labels
    ]
    figure.legend(handles=patches, loc="outside upper left", ncols=4, frameon=False, handlelength=1.1, fontsize=8)


def label_lines(axes: Axes, ends: dict[str, tuple[float, float]], palette: dict[str, str], gap: float) -> None:
    """Names beside the right ends (x, y) of lines, in their colours, at least `gap` (data units) apart."""
    placed = float("-inf")
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        placed = max(y, placed + gap)
        axes.annotate(
            name,
            (x, placed),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=palette[name],
            fontsize=7.5,
            fontweight="bold",
            annotation_clip=False,
        )


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element that can stand in an HTML page beside others; its ink is `currentColor`."""
    with matplotlib.rc_context(RC):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    on_page = {INK: "currentColor", RULE: f"var(--rule, {RULE})", MUTED: f"var(--muted, {MUTED})"}
    for colour, replacement in on_page.items():
        svg = svg.replace(colour, replacement)
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]  # ids must not meet those of another figure
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    return re.sub(r'(xlink:href="#|href="#|url\(#)([^")]+)', rf"\1{prefix}-\2", svg)


def save(figure: Figure, folder: Path, stem: str) -> None:
    """<stem>.svg and <stem>.png (300 dpi, on white) in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.svg").write_text('<?xml version="1.0" encoding="utf-8"?>\n' + to_svg(figure), encoding="utf-8")
    with matplotlib.rc_context(RC):
        figure.savefig(folder / f"{stem}.png", dpi=300, facecolor="white")
