"""The quickstart's results.csv, figure, table and page, from run.json files only. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table as TerminalTable

from rmkit.data.corpus import persona_pairs
from rmkit.files import replacing, write_text
from rmkit.report import style
from rmkit.report.html import Drawing, Section, page
from rmkit.report.names import REWARD_MODELS
from rmkit.report.tables import Cell, Table
from rmkit.runs.directory import FINAL

RESULT_COLUMNS = ["reward_model", "seed", "epoch", "dataset", "accuracy", "normalized_margin"]
PANELS = {
    "original_test": "Original responses",
    "paraphrased_test": "Paraphrased",
    "swapped_test": "Control: swapped prefixes",
    "same_prefix_test": "Control: same prefix",
}
CLOSE = 0.1  # of the accuracy axis: labels closer than this would overlap

TITLE = "rmkit quickstart: reward models under a token-level shift"
LEAD = (
    "Three types of reward model, trained from the same small language model on the same 80 pairs: the chosen response "
    "agrees with a statement, the rejected one disagrees. Do they still prefer agreement when it is said in other "
    "words? This is the controlled experiment of Section 5.1 of “Why is Your Language Model a Poor Implicit Reward "
    "Model?”, on generated data and a language model made on this machine. It shows that the toolkit works and what "
    "the experiment looks like; it is no evidence about the language models of the paper."
)
READING = {
    "The paper's finding, on a short path": (
        "The paper's EX-RMs and EX-GRMs are right on paraphrases and its IM-RMs almost always wrong. The recipes take "
        "9 small steps (3 epochs at learning rate 1e-4). For the IM-RM the near-zero accuracy belongs to such a short "
        "path: trained longer it drifts. In trials on four bases, two seeds each, it was 0.00 at 3 epochs; at 6 epochs "
        "it was 0.00 on two bases, 0.40 to 0.51 on one and 0.96 to 0.98 on one. So read the curve, not one end point."
    ),
    "Which tokens mislead the IM-RM": (
        "An obvious suspect is token overlap in the paper's own lists of responses: the paraphrased chosen response "
        "begins “My response would be”, and half of the rejected ones in training “My judgement:”. Hence two controls "
        "that the paper does not have. With the prefixes of the paraphrases swapped, IM-RMs were at 0.00 to 1.00 in "
        "the trials, depending on the base, and on which responses the training pairs had drawn; with one prefix on "
        "both sides at 0.00 to 0.16. So sometimes the prefixes decide and sometimes the answers. EX-RMs were at 1.00 "
        "on every set; no IM-RM was."
    ),
    "Before training": (
        "The accuracies at epoch 0 are arbitrary. An IM-RM is its own reference there, so all pairs tie (0.50). An "
        "EX-RM has a random head: agreeing and disagreeing are so far apart in the hidden states of this base that it "
        "may rank nearly all pairs right, or wrong, by chance. An EX-GRM repeats the base's habits with Yes and No."
    ),
    "What the base knows": (
        "It was made from a generated language of about 200 words, in which replies are acted upon. It has also seen "
        "the EX-GRM's verification format, on facts; but on fresh facts its Yes or No stays at chance. The EX-GRM "
        "reaches 1.00 anyway, from the pairs. The statements and the twelve responses of the experiment are not in the "
        "corpus; some replies of the two control sets may be."
    ),
    "What was chosen": (
        "The prefixes that replies begin with in the corpus were chosen after seeing results of IM-RMs: this is the "
        "third version. With a version that had only the paper's two prefixes beginning with “My”, IM-RMs were at 0.01 "
        "to 0.28 on paraphrases. With this one they were at 0.00 in all eight trials; but with another draw of the "
        "training responses in six of eight, and at 0.13 and 0.21 in those of one base. EX-RMs and EX-GRMs were at "
        "1.00 in all."
    ),
}
"""What has to be said with the results; the numbers in it are of trials that docs/quickstart.md describes."""


def results(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a run, epoch (0: before training) and set, from the contents of run.json files; columns `RESULT_COLUMNS`.

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
        if state["state"] != FINAL  # the last epoch's again
        for name, metrics in state["sets"].items()
    ]
    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def figure(frame: pd.DataFrame) -> Figure:
    """Accuracy on the test prompts against epoch: a panel a set, a line a type and seed, a colour and marker a type."""
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
    axis.axhline(0.5, color=style.MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    ends = {}
    for rank, (kind, label) in enumerate(REWARD_MODELS.items()):
        lines = frame[frame["reward_model"] == kind].pivot(index="epoch", columns="seed", values="accuracy")
        axis.plot(
            lines.index,
            lines,
            color=style.COLOURS[label],
            marker=style.MARKERS[label],
            # Lines on top of each other stay visible: each is thinner than the one below it.
            linewidth=3.6 - 1.2 * rank,
            markersize=6.5 - 1.2 * rank,
            clip_on=False,
            zorder=3 + rank,
        )
        ends[label] = float(lines.iloc[-1].mean())
    for label, height in _apart(ends).items():
        axis.annotate(
            label,
            (float(frame["epoch"].max()), height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=style.COLOURS[label],
            fontsize=7.5,
            fontweight="bold",
            annotation_clip=False,
        )
    axis.set_ylim(0, 1)
    axis.set_xlim(0, float(frame["epoch"].max()))
    axis.tick_params(axis="y", pad=5)


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """Heights between 0 and 1, at least `CLOSE` from each other: pushed down from the top, then up from the bottom."""
    names = sorted(heights, key=lambda name: -heights[name])
    placed: dict[str, float] = {}
    ceiling = 1.0
    for name in names:
        placed[name] = min(heights[name], ceiling)
        ceiling = placed[name] - CLOSE
    floor = 0.0
    for name in reversed(names):
        placed[name] = max(placed[name], floor)
        floor = placed[name] + CLOSE
    return placed


def results_table(frame: pd.DataFrame) -> Table:
    """For the page: a row a set, a column a type; accuracy at the end, and smaller below it before training."""
    rows = [
        [Cell(name, number=False), *(_cell(frame, name, kind) for kind in REWARD_MODELS)]
        for name in frame["dataset"].unique()
    ]
    last = frame["epoch"].max()
    return Table(
        "results",
        f"Accuracy after {last} epochs.",
        ["set", *REWARD_MODELS.values()],
        rows,
        frame,
        note="In small print: before training. Ranges are over seeds. Margins are in results.csv.",
    )


def _cell(frame: pd.DataFrame, name: str, kind: str) -> Cell:
    before, after = _summary(frame, name, kind)
    return Cell(after, below=before)


def terminal_table(frame: pd.DataFrame) -> TerminalTable:
    """For the terminal: a row a set, a column a type, accuracy before training and at the end."""
    last = frame["epoch"].max()
    table = TerminalTable("set", title=f"Accuracy before training → after {last} epochs, over {_seeds(frame)}")
    for label in REWARD_MODELS.values():
        table.add_column(label, justify="right")
    for name in frame["dataset"].unique():
        cells = [_summary(frame, name, kind) for kind in REWARD_MODELS]
        table.add_row(name, *(f"{before} → {after}" for before, after in cells))
    return table


def _summary(frame: pd.DataFrame, name: str, kind: str) -> tuple[str, str]:
    """Accuracy before training and at the end."""
    rows = frame[(frame["dataset"] == name) & (frame["reward_model"] == kind)]
    first, last = rows[rows["epoch"] == 0], rows[rows["epoch"] == rows["epoch"].max()]
    return _range(first["accuracy"]), _range(last["accuracy"])


def _range(values: pd.Series) -> str:
    low, high = f"{values.min():.2f}", f"{values.max():.2f}"
    return low if low == high else f"{low}–{high}"


def _seeds(frame: pd.DataFrame) -> str:
    seeds = frame["seed"].nunique()
    return f"{seeds} seed{'s' if seeds > 1 else ''}"


def sets_table() -> Table:
    """What the sets are, an example each."""
    rows = []
    for name, pairs in persona_pairs(seed=0).items():
        row = [name, str(len(pairs)), pairs[0]["chosen"], pairs[0]["rejected"]]
        rows.append([Cell(each, number=each == row[1]) for each in row])
    prompt = persona_pairs(seed=0)["original_train"][0]["prompt"]
    return Table(
        "sets",
        "The sets.",
        ["set", "pairs", "chosen, for example", "rejected, for example"],
        rows,
        pd.DataFrame(),
        note=f"The prompts are the 80 training prompts or 40 test prompts, like this: “{prompt}”",
    )


def write_report(frame: pd.DataFrame, records: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """results.csv, accuracy.png and index.html in the folder; returns the page."""
    write_text(folder / "results.csv", frame.to_csv(index=False, lineterminator="\n"))
    drawing = figure(frame)
    with replacing(folder / "accuracy.png") as temporary, matplotlib.rc_context(style.RC):
        drawing.savefig(temporary, format="png", dpi=200, facecolor="white")
    curve = Drawing(
        "accuracy",
        "Accuracy on the test prompts, by epoch.",
        drawing,
        f"Every line is a run ({_seeds(frame)}); dotted: chance. Lines that coincide are drawn in different widths.",
    )
    sections = [
        Section("Results", [curve, results_table(frame)]),
        Section("The data", [sets_table()]),
        *(Section(title, text=text) for title, text in READING.items()),
    ]
    write_text(folder / "index.html", page(TITLE, sections, LEAD, _facts(frame, records)))
    return folder / "index.html"


def _facts(frame: pd.DataFrame, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    first = records[0]
    recipe, git = first["recipe"], first["git"]
    build = recipe["base"]["build"]
    size = build and f"{build['layers']} layers of width {build['hidden_size']}, {build['steps']} steps"
    seconds = sum(record["timings"]["total_seconds"] for record in records)
    return {
        "base": f"{size}, seed {build['seed']}" if build else recipe["base"]["name"],
        "runs": f"{len(records)}: three types, {_seeds(frame)}; {seconds:.0f} s",
        "training": f"{first['training']['steps']} steps, learning rate {recipe['training']['learning_rate']:g}",
        "rmkit": first["rmkit_version"] + (f", commit {git['commit'][:10]}" if git else ""),
        "made": max(record["created"] for record in records),
        "numbers": "results.csv beside this page; everything else about a run: run.json in runs/quickstart/",
    }
