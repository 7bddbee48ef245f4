"""The whole report: from runs to sections, and from sections to a folder.

DIR/index.html    everything in one file
DIR/tables/       every table as .md, .csv and .tex
DIR/figures/      every figure as .svg and .png
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from rmkit import __version__
from rmkit.errors import RmkitError
from rmkit.files import replacing, write_text
from rmkit.report import attachments, paper_tables
from rmkit.report.comparison import count
from rmkit.report.html import Drawing, Item, Section, page
from rmkit.report.runs import Problem, Runs, load
from rmkit.report.sections import setting_sections
from rmkit.report.tables import Cell, Table

PARTS = ("index.html", "tables", "figures")
_MOST_NAMES = 3


def report(paths: Iterable[Path | str], output: Path, theory: Iterable[Path] = ()) -> list[Problem]:
    """Read runs, write the report and return what was left out.

    Args:
        paths: run directories, or folders that contain some.
        output: a new or empty folder, or an earlier report, which is replaced.
        theory: JSON files of `rmkit theory`.

    Raises:
        RmkitError: if there is no run to report, or `output` contains other files.
    """
    _check(output)
    runs = load(paths)
    sections, problems = build(runs, theory)
    write(sections, runs, output)
    return problems


def build(runs: Runs, theory: Iterable[Path] = ()) -> tuple[list[Section], list[Problem]]:
    """The sections of the page, and everything that was left out."""
    sections = [section for setting in runs.settings for section in setting_sections(runs, setting)]
    explained, broken = attachments.explanations(runs)
    generated, unusable = attachments.generations(runs)
    results, unreadable = attachments.theory(runs, theory)
    problems = [*runs.problems, *broken, *unusable, *unreadable]
    sections += [
        Section("Token by token", explained, "Blue raises the reward, orange lowers it." if explained else ""),
        Section("Generation", generated),
        Section("Theory", results),
        Section("Runs", [_runs_table(runs)]),
        Section("Left out", [_problems_table(problems)] if problems else []),
    ]
    return sections, problems


def write(sections: Sequence[Section], runs: Runs, output: Path) -> None:
    """Write tables/, figures/ and index.html: all of them, or none."""
    items = [item for section in sections for item in section.items]
    with replacing(output / "tables") as tables, replacing(output / "figures") as drawings:
        for folder in (tables, drawings):
            folder.mkdir()
        for item in items:
            if isinstance(item, Table):
                for ending, text in item.forms().items():
                    (tables / f"{item.name}.{ending}").write_text(text, encoding="utf-8")
            elif isinstance(item, Drawing):
                item.save(drawings)
        html = page("Comparison of reward models", sections, _lead(runs, items), _facts(runs))
    write_text(output / "index.html", html)


def _check(output: Path) -> None:
    if output.is_file():
        raise RmkitError(f"--output {output} is a file.", "Give a folder.")
    entries = [path.name for path in output.iterdir()] if output.is_dir() else []
    foreign = sorted(name for name in entries if name not in PARTS and not name.startswith("."))
    if foreign:
        raise RmkitError(
            f"--output {output} contains {foreign[0]}, which is not part of a report.", "Give another folder."
        )


# --- what was read and what was left out --------------------------------------------------------------------------


def _lead(runs: Runs, items: Sequence[Item]) -> str:
    trained = (
        f"{count(len(runs.runs), 'run')} on {count(len(runs.settings), 'training set')} ({', '.join(runs.settings)})."
    )
    if not paper_tables.show_paper_numbers(items):
        return trained
    return (
        f"{trained} Small print in the tables: the numbers of the paper “Why is Your Language Model a Poor Implicit "
        "Reward Model?”, where it has them."
    )


def _facts(runs: Runs) -> dict[str, str]:
    left_out = len({problem.run for problem in runs.problems if problem.set is None})
    best = ", ".join(sorted(set(runs.runs["save_best"].dropna())))
    note = "the numbers of a set that selects are those of its best evaluation"
    return {
        "Reward models": ", ".join(f"{count(number, 'run')} of {name}" for name, number in _counted(runs, "variant")),
        "Language models": ", ".join(name for name, _ in _counted(runs, "model")[:12]),
        "Seeds": ", ".join(str(seed) for seed in sorted(runs.runs["seed"].unique())),
        **({"Selected by": f"{best}; {note}"} if best else {}),
        "Left out": count(left_out, "run") if left_out else "nothing",
        "rmkit": __version__,
    }


def _counted(runs: Runs, column: str) -> list[tuple[str, int]]:
    return sorted(Counter(runs.runs[column]).items())


def _runs_table(runs: Runs) -> Table:
    frame = runs.runs
    keys = ["setting", "model", "variant", "learning_rate", "beta"]
    grouped = frame.groupby(keys, dropna=False)["seed"].agg(lambda seeds: ", ".join(map(str, sorted(seeds))))
    rows = [
        [Cell(str(text), number=False) for text in key[:3]]
        + [Cell(f"{key[3]:g}"), Cell("–" if pd.isna(key[4]) else f"{key[4]:g}"), Cell(seeds, number=False)]
        for key, seeds in grouped.items()
    ]
    header = ["Training set", "Language model", "Reward model", "Learning rate", "β", "Seeds"]
    columns = ["run", *keys[:3], "reward_model", "seed", *keys[3:], "main"]
    return Table("runs", "Runs in this report.", header, rows, frame[columns])


def _problems_table(problems: Sequence[Problem]) -> Table:
    """What is not in the report, grouped by the reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        reasons.setdefault((problem.set or "", problem.reason), []).append(problem.run)
    rows = []
    for (name, reason), found in reasons.items():
        more = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
        rows.append([", ".join(found[:_MOST_NAMES]) + more, name, reason])
    data = pd.DataFrame([vars(problem) for problem in problems])[["run", "set", "reason"]]
    cells = [[Cell(text, number=False) for text in row] for row in rows]
    return Table("left_out", "Not in this report.", ["Run", "Set", "Reason"], cells, data)
