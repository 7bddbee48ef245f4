"""The style of all figures: fonts, sizes of a paper's column, a colour and marker per type, and writing SVG and PNG.

SVGs have no background; on a page they take its text colour, so that one drawing serves light and dark.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rmkit.report import names, palette

TEXT_WIDTH = 5.5  # inches: the line of a single-column paper
INK, MUTED, RULE, TIE = (colour.light for colour in (palette.INK, palette.MUTED, palette.RULE, palette.TIE))

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
    "text.parse_math": False,  # names may contain dollar signs
    "svg.fonttype": "path",
    "svg.hashsalt": "rmkit",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def in_order(variants: Iterable[str]) -> list[str]:
    """Variants by type, in the order of `names.types_in_order`; the standard variant of a type first."""
    found = set(variants)
    types = names.types_in_order(map(names.type_of, found))
    return sorted(found, key=lambda variant: (types.index(names.type_of(variant)), variant))


def type_styles(variants: Iterable[str]) -> dict[str, palette.TypeStyle]:
    """Type -> its style. A type that rmkit's schema does not list takes the next free one, in alphabetical order."""
    order = names.types_in_order([*names.TYPE_LABELS.values(), *map(names.type_of, variants)])
    return {name: palette.TYPES[number % len(palette.TYPES)] for number, name in enumerate(order)}


def colours(variants: Iterable[str]) -> dict[str, str]:
    """Variant -> colour: the type's own for its standard variant, tints of it for the others."""
    ordered = in_order(variants)
    styles = type_styles(ordered)
    tints = {name: cycle(style.tints) for name, style in styles.items()}
    return {
        variant: styles[variant].colour.light if is_standard(variant) else next(tints[names.type_of(variant)])
        for variant in ordered
    }


def markers(variants: Iterable[str]) -> dict[str, str]:
    """Variant -> the marker of its type, as colour alone must not tell types apart."""
    ordered = in_order(variants)
    styles = type_styles(ordered)
    return {variant: styles[names.type_of(variant)].marker for variant in ordered}


def is_standard(variant: str) -> bool:
    return variant == names.type_of(variant)


def hatch(variant: str) -> str | None:
    return None if is_standard(variant) else "////"


def new_figure(rows: int, columns: int, width: float, height: float, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure of rows x columns panels (sizes in inches) and its axes in reading order; labels do not overlap."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)  # type: ignore[call-overload]
    return figure, list(axes.flat)


def add_legend(figure: Figure, colours: Mapping[str, str]) -> None:
    """Label -> colour, as swatches above the panels."""
    patches = [
        Patch(facecolor=colour, hatch=hatch(label), edgecolor="white", linewidth=0, label=label)
        for label, colour in colours.items()
    ]
    figure.legend(handles=patches, loc="outside upper left", ncols=4, frameon=False, handlelength=1.1, fontsize=8)


def label_lines(axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str], gap: float) -> None:
    """Write names next to the right ends (x, y) of lines, in their colours, at least `gap` (data units) apart."""
    labels = sorted(reversed(list(ends)), key=lambda name: ends[name][1])  # of equal ends the first name on top
    heights = spread_out([ends[name][1] for name in labels], gap, *axes.get_ylim())
    for name, height in zip(labels, heights, strict=True):
        axes.annotate(
            name,
            (ends[name][0], height),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colours[name],
            fontsize=7.5,
            fontweight="bold",
            annotation_clip=False,
        )


def spread_out(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move sorted places as little as possible so that they are `gap` apart and, if they fit, inside [low, high]."""
    groups: list[list[float]] = []  # places that touch; a group is laid out evenly around the mean of its places

    def span(group: list[float]) -> tuple[float, float]:
        half = gap * (len(group) - 1) / 2
        middle = min(max(sum(group) / len(group), low + half + gap / 2), high - half - gap / 2)
        return middle - half, middle + half

    for place in places:
        groups.append([place])
        while len(groups) > 1 and span(groups[-1])[0] - span(groups[-2])[1] < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [span(group)[0] + gap * number for group in groups for number in range(len(group))]


def plain_svg(figure: Figure) -> str:
    """The figure as an SVG document in light colours, without a background."""
    with matplotlib.rc_context(RC):
        _fix_layout(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)


def for_page(svg: str) -> str:
    """An SVG document as an element of an HTML page: CSS variables for colours, and ids that no other figure has."""
    svg = svg[svg.index("<svg") :]
    on_page = palette.replacements() | {"stroke: #ffffff": "stroke: var(--paper, #ffffff)"}  # the gaps between bars
    for colour, replacement in on_page.items():
        svg = svg.replace(colour, replacement)
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    return re.sub(r'(xlink:href="#|href="#|url\(#)([^")]+)', rf"\1{prefix}-\2", svg)


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure on white, 300 dpi."""
    with matplotlib.rc_context(RC):
        _fix_layout(figure)
        figure.savefig(path, dpi=300, facecolor="white")


def _fix_layout(figure: Figure) -> None:
    """Compute the layout once: it takes longest, and is the same for every format."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
