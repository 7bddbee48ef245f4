"""The look of every figure: colours that colour-blind readers can tell apart, sizes of a paper's column, SVG and PNG.

SVGs carry no background; on a page their ink is the page's, so that one drawing serves light and dark.
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
from matplotlib.patches import Patch

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
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
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
    """The labels above the panels, each behind a swatch of its colour."""
    patches = [
        Patch(facecolor=palette[each], hatch=hatch(each), edgecolor="white", linewidth=0, label=each) for each in labels
    ]
    figure.legend(handles=patches, loc="outside upper left", ncols=4, frameon=False, handlelength=1.1, fontsize=8)


def label_lines(axes: Axes, ends: dict[str, tuple[float, float]], palette: dict[str, str], gap: float) -> None:
    """Names beside the right ends (x, y) of lines, in their colours, at least `gap` (data units) apart."""
    names = sorted(ends, key=lambda name: ends[name][1])
    for name, place in zip(names, apart([ends[name][1] for name in names], gap, *axes.get_ylim()), strict=True):
        axes.annotate(
            name,
            (ends[name][0], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=palette[name],
            fontsize=7.5,
            fontweight="bold",
            annotation_clip=False,
        )


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Sorted places moved as little as it takes to lie `gap` apart and, where they can, inside [low, high]."""
    groups: list[list[float]] = []  # each keeps its members' wishes; it is laid out evenly around their mean

    def span(group: list[float]) -> tuple[float, float]:
        half = gap * (len(group) - 1) / 2
        middle = min(max(sum(group) / len(group), low + half + gap / 2), high - half - gap / 2)
        return middle - half, middle + half

    for place in places:
        groups.append([place])
        while len(groups) > 1 and span(groups[-1])[0] - span(groups[-2])[1] < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [span(group)[0] + gap * number for group in groups for number in range(len(group))]


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element that takes ink and rules from the page it stands in, for light and dark."""
    return for_page(plain_svg(figure))


def plain_svg(figure: Figure) -> str:
    """The figure as an SVG document with colours of its own and no background."""
    with matplotlib.rc_context(RC):
        _settle(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)


def for_page(svg: str) -> str:
    """An SVG document as an element of an HTML page: `currentColor`, `--rule`, `--muted`, and ids of its own."""
    svg = svg[svg.index("<svg") :]
    on_page = {INK: "currentColor", RULE: f"var(--rule, {RULE})", MUTED: f"var(--muted, {MUTED})"}
    on_page |= {colour: f"var(--{name.lower()}, {colour})" for name, colour in COLOURS.items()}
    on_page |= {"stroke: #ffffff": "stroke: var(--paper, #ffffff)"}  # the gaps between bars
    for colour, replacement in on_page.items():
        svg = svg.replace(colour, replacement)
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]  # ids must not meet those of another figure
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    return re.sub(r'(xlink:href="#|href="#|url\(#)([^")]+)', rf"\1{prefix}-\2", svg)


def write_png(figure: Figure, path: Path) -> None:
    """The figure on white, 300 dpi."""
    with matplotlib.rc_context(RC):
        _settle(figure)
        figure.savefig(path, dpi=300, facecolor="white")


def save(figure: Figure, folder: Path, stem: str) -> None:
    """<stem>.svg and <stem>.png in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.svg").write_text(plain_svg(figure), encoding="utf-8")
    write_png(figure, folder / f"{stem}.png")


def _settle(figure: Figure) -> None:
    """Lay the figure out once: the layout is what takes longest, and is the same for every format."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
