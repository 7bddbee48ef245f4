"""The quickstart's results.csv, figure, tables and page, from run.json files only. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table as TerminalTable

from rmkit.data.conversations import as_text
from rmkit.data.preferences import PreferencePair
from rmkit.files import replacing, write_text
from rmkit.report import style
from rmkit.report.comparison import count
from rmkit.report.html import Drawing, Section, page
from rmkit.report.names import type_label, types_in_order
from rmkit.report.quickstart_text import PageText
from rmkit.report.tables import Cell, Table
from rmkit.runs.directory import FINAL

RESULT_COLUMNS = ["reward_model", "seed", "epoch", "dataset", "accuracy", "normalized_margin"]
PANELS = {
    "original_test": "Original responses",
    "paraphrased_test": "Paraphrased",
    "swapped_test": "Control: swapped prefixes",
    "same_prefix_test": "Control: same prefix",
}
LABEL_GAP = 0.1  # of the accuracy axis


def results(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per run, epoch (0: before training) and set, from run.json contents; columns `RESULT_COLUMNS`.

    normalized_margin is in standard deviations of the set's rewards (Appendix D.3).
    """
    rows = [
        {
            "reward_model": record["recipe"]["reward_model"]["type"],
            "seed": record["recipe"]["training"]["seed"],
            "epoch": round(state["epoch"]),
            "dataset": name,
            "accuracy": metrics["accuracy"],
            "normalized_margin": metrics["normalized_margin"],
        }
        for record in records
        for state in record["history"]
        if state["state"] != FINAL  # repeats the last epoch
        for name, metrics in state["sets"].items()
    ]
    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def _types(frame: pd.DataFrame) -> dict[str, str]:
    """reward_model.type -> label, in the order of tables and figures."""
    labels = {type_name: type_label(type_name) for type_name in frame["reward_model"].unique()}
    order = types_in_order(labels.values())
    return dict(sorted(labels.items(), key=lambda item: order.index(item[1])))


def figure(frame: pd.DataFrame) -> Figure:
    """Accuracy on the test prompts by epoch: one panel per set, one line per run."""
    with matplotlib.rc_context(style.RC):
        drawn, axes = style.new_figure(2, 2, 4.4, 3.5, sharex=True, sharey=True)
        for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
            _panel(axis, frame[frame["dataset"] == name])
            axis.set_title(title)
            axis.set_xticks(sorted(frame["epoch"].unique()))
        drawn.supxlabel("epoch (0: before training)", fontsize=8)
        drawn.supylabel("accuracy", fontsize=8)
    return drawn


def _panel(axis: Axes, frame: pd.DataFrame) -> None:
    types = _types(frame)
    colours, markers = style.colours(types.values()), style.markers(types.values())
    last = float(frame["epoch"].max())
    axis.axhline(0.5, color=style.MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    axis.set(xlim=(0, last), ylim=(0, 1))
    axis.tick_params(axis="y", pad=5)
    ends = {}
    for rank, (type_name, label) in enumerate(types.items()):
        lines = frame[frame["reward_model"] == type_name].pivot(index="epoch", columns="seed", values="accuracy")
        axis.plot(
            lines.index,
            lines,
            color=colours[label],
            marker=markers[label],
            # Lines that coincide stay visible: every line is thinner than the one below it.
            linewidth=max(3.6 - 1.2 * rank, 0.8),
            markersize=max(6.5 - 1.2 * rank, 2.5),
            clip_on=False,
            zorder=3 + rank,
        )
        ends[label] = (last, float(lines.iloc[-1].mean()))
    style.label_lines(axis, ends, colours, gap=LABEL_GAP)


def results_table(frame: pd.DataFrame) -> Table:
    """For the page: one row per set, one column per type; final accuracy, and in small print before training."""
    types = _types(frame)
    rows = []
    for name in frame["dataset"].unique():
        found = [_before_and_after(frame, name, type_name) for type_name in types]
        rows.append([Cell(name, number=False), *(Cell(after, below=before) for before, after in found)])
    last = frame["epoch"].max()
    note = "Small print: before training. Ranges are over seeds. results.csv also has the margins."
    return Table("results", f"Accuracy after {last} epochs.", ["set", *types.values()], rows, frame, note)


def terminal_table(frame: pd.DataFrame) -> TerminalTable:
    """For the terminal: one row per set, one column per type; accuracy before training and at the end."""
    types = _types(frame)
    last = frame["epoch"].max()
    table = TerminalTable("set", title=f"Accuracy before training → after {last} epochs, over {_seeds(frame)}")
    for label in types.values():
        table.add_column(label, justify="right")
    for name in frame["dataset"].unique():
        table.add_row(name, *(" → ".join(_before_and_after(frame, name, type_name)) for type_name in types))
    return table


def _before_and_after(frame: pd.DataFrame, name: str, type_name: str) -> tuple[str, str]:
    """Accuracy before training and at the end."""
    rows = frame[(frame["dataset"] == name) & (frame["reward_model"] == type_name)]
    first, last = rows[rows["epoch"] == 0], rows[rows["epoch"] == rows["epoch"].max()]
    return _range(first["accuracy"]), _range(last["accuracy"])


def _range(values: pd.Series) -> str:
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low}–{high}"


def _seeds(frame: pd.DataFrame) -> str:
    return count(frame["seed"].nunique(), "seed")


def sets_table(sets: Mapping[str, Sequence[PreferencePair]]) -> Table:
    """The sets, with an example of each."""
    rows = [
        [
            Cell(name, number=False),
            Cell(str(len(pairs))),
            Cell(as_text(pairs[0].chosen), number=False),
            Cell(as_text(pairs[0].rejected), number=False),
        ]
        for name, pairs in sets.items()
    ]
    train, test = sets["original_train"], sets["original_test"]
    return Table(
        "sets",
        "The sets.",
        ["set", "pairs", "chosen response (example)", "rejected response (example)"],
        rows,
        pd.DataFrame(),
        note=f"There are {len(train)} training prompts and {len(test)} test prompts, such as: “{train[0].prompt}”",
    )


def write_report(
    frame: pd.DataFrame,
    records: Sequence[Mapping[str, Any]],
    sets: Mapping[str, Sequence[PreferencePair]],
    text: PageText,
    folder: Path,
) -> Path:
    """Write results.csv, accuracy.png and index.html to the folder; returns the path of the page.

    Args:
        records: the contents of the run.json files, of which `frame` has the results.
        sets: the pairs of every set, by name.
    """
    write_text(folder / "results.csv", frame.to_csv(index=False, lineterminator="\n"))
    drawing = figure(frame)
    with replacing(folder / "accuracy.png") as temporary, matplotlib.rc_context(style.RC):
        drawing.savefig(temporary, format="png", dpi=200, facecolor="white")
    curve = Drawing(
        "accuracy",
        "Accuracy on the test prompts, by epoch.",
        drawing,
        f"One line per run ({_seeds(frame)}); the dashed line is chance. Line widths differ so that coinciding lines "
        "stay visible.",
    )
    sections = [
        Section("Results", [curve, results_table(frame)]),
        Section("The data", [sets_table(sets)]),
        *(Section(title, text=caveat) for title, caveat in text.caveats.items()),
    ]
    write_text(folder / "index.html", page(text.title, sections, text.lead, _facts(frame, records)))
    return folder / "index.html"


def _facts(frame: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    first = records[0]
    recipe, git = first["recipe"], first["git"]
    build = recipe["base"]["build"]
    size = build and f"{build['layers']} layers of width {build['hidden_size']}, {build['steps']} steps"
    seconds = sum(record["timings"]["total_seconds"] for record in records)
    return {
        "Base": f"{size}, seed {build['seed']}" if build else Path(recipe["base"]["name"]).name,
        "Statements": "generated" if recipe["data"]["train"]["path"] == "quickstart" else "Persona, agreeableness",
        "Runs": f"{len(records)}: {count(len(_types(frame)), 'type')}, {_seeds(frame)}; {seconds:.0f} s in total",
        "Training": f"{first['training']['steps']} steps, learning rate {recipe['training']['learning_rate']:g}",
        "rmkit": first["rmkit_version"] + (f", commit {git['commit'][:10]}" if git else ""),
        "Created": max(record["created"] for record in records),
        "Numbers": "results.csv next to this page; all details of a run: its run.json in runs/",
    }
