"""Figures of the theory's results, from the content of their JSON files. No torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rmkit.errors import RmkitError
from rmkit.files import replacing
from rmkit.report import palette

FORMATS = (".png", ".svg", ".pdf")
BLUE, ORANGE, GREY, SKY = (colour.light for colour in (palette.BLUE, palette.ORANGE, palette.GREY, palette.SKY))
_ARMS = {
    "predicted": (SKY, "predicted"),
    "measured": (BLUE, "measured"),
    "trainable": (ORANGE, "all parameters trained"),
}


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure whole or not at all; the file's ending says its format."""
    check_format(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=200, bbox_inches="tight")


def check_format(path: Path) -> None:
    """Raise an RmkitError unless the file's ending is that of a figure."""
    if path.suffix.lower() not in FORMATS:
        raise RmkitError(f"{path} is no figure file.", f"End it in {', '.join(FORMATS)}.")


def heat_map(content: Mapping[str, Any]) -> Figure:
    """rho_{k,l} of Eq. 5 between the tokens of two responses; cells of matching tokens are framed.

    Args:
        content: of `rmkit.theory.experiment.coefficient_map`, and what the two responses are (`target`, `source`).
    """
    rho = np.array(content["rho"])
    rows, columns = content["target_tokens"], content["source_tokens"]
    figure = Figure(figsize=(1.6 + 0.27 * len(columns), 1.4 + 0.23 * len(rows)))
    axes = figure.add_subplot()
    limit = max(float(np.abs(rho).max()), 1e-12)
    image = axes.imshow(rho, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for row, left in enumerate(content["target_ids"]):
        for column, right in enumerate(content["source_ids"]):
            if left == right:
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.1))
    style: dict[str, Any] = {"fontsize": 8, "family": "monospace", "parse_math": False}
    axes.set_xticks(range(len(columns)), [_shown(each) for each in columns], rotation=90, **style)
    axes.set_yticks(range(len(rows)), [_shown(each) for each in rows], **style)
    axes.set_xlabel(content["source"], fontsize=9)
    axes.set_ylabel(content["target"], fontsize=9)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label(r"$\rho_{k,l}$ (framed: same token)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def margin_changes(types: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Change of the margin after one step: a column a type, a bar for the mean of a group, a dot for each pair.

    Below, on a scale of its own, the same step with all parameters trained, where it was taken.
    """
    changes = [result["changes"] for result in types.values()]
    groups = list(dict.fromkeys(row["group"] for rows in changes for row in rows))
    levels = [("predicted", "measured"), ("trainable",)]
    levels = [arms for arms in levels if arms[0] in changes[0][0]]
    figure = Figure(figsize=(1.0 + (0.6 + 0.85 * len(groups)) * len(types), 0.8 + 2.0 * len(levels)))
    grid = figure.subplots(len(levels), len(types), squeeze=False)
    for column, (name, result) in enumerate(types.items()):
        for level, arms in enumerate(levels):
            axes = grid[level, column]
            _bars(axes, result["changes"], groups, arms)
            axes.set_xticks(range(len(groups)), [_wrapped(group) for group in groups], fontsize=8, parse_math=False)
            if level == 0:
                axes.set_title(f"{name} ({result['equation']})", fontsize=10, parse_math=False)
            if column == 0:
                axes.set_ylabel(
                    "change of margin" + ("\n(all parameters)" if level else "\n(u or U alone)"), fontsize=9
                )
    grid[0, -1].legend(fontsize=7, frameon=False)
    figure.set_layout_engine("tight")
    return figure


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]], groups: Sequence[str], arms: Sequence[str]) -> None:
    width = 0.8 / len(arms)
    for place, group in enumerate(groups):
        members = [row for row in rows if row["group"] == group]
        for offset, arm in enumerate(arms if members else ()):
            values = np.array([row[arm][0] - row[arm][1] for row in members])
            at = place + (offset - (len(arms) - 1) / 2) * width
            color, label = _ARMS[arm]
            axes.bar(at, values.mean(), 0.9 * width, color=color, label=label if place == 0 else None)
            axes.plot(np.full(len(values), at), values, ".", color="black", markersize=3, alpha=0.35)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.yaxis.get_offset_text().set_fontsize(8)
    _plain(axes)


def separator_products(content: Mapping[str, Any]) -> Figure:
    """How <u*, h+ - h-> is distributed over unseen pairs; right of 0 is ranked right."""
    sets = content["unseen"]
    figure = Figure(figsize=(5.2, 1.0 + 1.5 * max(len(sets), 1)))
    for number, (name, each) in enumerate(sets.items()):
        axes = figure.add_subplot(len(sets), 1, number + 1)
        values = np.array(each["products"])
        width = (values.max() - values.min()) / min(40, max(8, len(values) // 4)) or 1.0
        low, high = np.floor(values.min() / width), np.floor(values.max() / width) + 1
        axes.hist(values, bins=(width * np.arange(low, high + 1)).tolist(), color=BLUE)  # 0 is between two bars
        axes.axvline(0, color="black", linewidth=1)
        axes.axvline(1, color=GREY, linewidth=1, linestyle="--")
        title = f"{name}: {each['fraction_positive']:.1%} of {each['pairs']} positive"
        axes.set_title(title, fontsize=9, parse_math=False)
        axes.set_ylabel("pairs", fontsize=9)
        _plain(axes)
    if sets:
        label = r"$\langle u^*, h_{x,y^+} - h_{x,y^-} \rangle$ (dashed: the least over training pairs)"
        axes.set_xlabel(label, fontsize=9)
    figure.set_layout_engine("tight")
    return figure


def unseen_tokens(content: Mapping[str, Any]) -> Figure:
    """Accuracy against gradient descent steps, on the training pairs and on tokens not seen in training."""
    history = content["history"]
    steps = np.array(history["step"])
    figure = Figure(figsize=(7.6, 2.9))
    axes = figure.add_subplot()
    lines: Sequence[tuple[Any, str, str, str]] = [
        (history["explicit_unseen_accuracy"], BLUE, "-", "explicit, unseen tokens"),
        (history["control_explicit_unseen_accuracy"], SKY, "-", "explicit, unseen, no structure (control)"),
        (content["implicit"]["unseen_accuracy"], ORANGE, "-", "implicit, unseen tokens"),
        (history["explicit_train_accuracy"], BLUE, ":", "explicit, training"),
        (history["implicit_train_accuracy"], ORANGE, ":", "implicit, training"),
    ]
    for values, color, style, label in lines:
        axes.plot(steps, values, style, color=color, label=label, linewidth=1.8)
    axes.axhline(
        content["explicit"]["separator_unseen_accuracy"],
        color="black",
        linewidth=0.8,
        linestyle="--",
        label="u*, unseen",
    )
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, steps[-1])
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("gradient descent step", fontsize=9)
    axes.set_ylabel("accuracy", fontsize=9)
    _plain(axes)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.set_layout_engine("tight")
    return figure


def verification(content: Mapping[str, Any]) -> Figure:
    """Left: the probability of a correct answer as graphs grow. Right: the inequality of Theorem 1 and its slack."""
    figure = Figure(figsize=(8.4, 3.3))
    left, right = figure.subplots(1, 2)
    sizes = sorted({each["vertices"] for each in content["cases"]})
    series = (
        ("bound", GREY, "--", "bound"),
        ("mass", ORANGE, "-", "the verifier's"),
        ("reference_mass", BLUE, "-", "reference"),
    )
    for name, color, style, label in series:
        grouped = [[each[name] for each in content["cases"] if each["vertices"] == size] for size in sizes]
        for size, values in zip(sizes, grouped, strict=True):
            left.plot([size] * len(values), values, ".", color=color, markersize=3, alpha=0.5)
        means = [float(np.exp(np.mean(np.log(values)))) for values in grouped]
        left.plot(sizes, means, style, color=color, label=label, linewidth=1.6)
    left.axhline(1, color="black", linewidth=0.6)
    left.set_yscale("log")
    left.set_xticks(sizes)
    left.set_xlabel("vertices of the graph", fontsize=9)
    left.set_ylabel("probability of a correct answer", fontsize=9)
    left.legend(fontsize=8, frameon=False)
    sweep = content["sweep"]
    odds = sweep["margin_over_beta"]
    right.plot(odds, sweep["bound"], "--", color=GREY, label=r"bound $\pi_{ref}(C|x)\,e^{\delta/\beta}$")
    right.plot(odds, sweep["mass"], "-", color=ORANGE, label=r"the verifier's $\pi(C|x)$")
    right.fill_between(odds, sweep["mass"], sweep["bound"], color=GREY, alpha=0.2, label="slack (a factor Z)")
    right.axhline(1, color="black", linewidth=0.6)
    right.set_yscale("log")
    right.set_xlabel(r"margin $\delta/\beta$, nats", fontsize=9)
    right.set_title(f"one graph with {sweep['vertices']} vertices", fontsize=9)
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        _plain(axes)
    figure.set_layout_engine("tight")
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _shown(token: str) -> str:
    """A token as a label: spaces and line ends visible, long ones cut."""
    text = token.replace(" ", "␣").replace("\n", "\\n").replace("\t", "\\t")
    text = "".join(each if each.isprintable() else "?" for each in text)
    return (text if len(text) <= 14 else text[:13] + "…") or "(empty)"


def _wrapped(text: str) -> str:
    return textwrap.fill(text.replace("_", "_ "), 14).replace("_ ", "_")
