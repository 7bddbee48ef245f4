"""Results of other commands in run directories: explain/*.json, generation/*.json and theory/*.json.

explain    `rmkit explain --worst`: see `rmkit.runs.explanation.Explanation`
generation `rmkit generate`: {"set": str, "prompts": int, "correct": float, "prompts_with_a_correct_one": float,
           "log_probs": {"chosen": float, "chosen_reference": float, ...} | null, ...}
theory     `rmkit theory`: {"theory": "<which result>", "figures": ["<file in the same folder>", ...], ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, FiniteFloat

from rmkit.report import theory_summary
from rmkit.report.comparison import slug
from rmkit.report.explanation import tokens_item
from rmkit.report.html import Item, Picture
from rmkit.report.records import describe_error
from rmkit.report.runs import Problem, Runs
from rmkit.report.tables import Cell, Table, number
from rmkit.runs.directory import FINAL
from rmkit.runs.explanation import Explanation

_PICTURES = (".svg", ".png")
_LONGEST_PROMPT = 300  # characters shown above the tokens
_UNEXPECTED = (
    OSError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
)  # of files from elsewhere


class Generation(BaseModel):
    """One file of `rmkit generate`: shares of correct samples, and mean log-probabilities of the planted cycle."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompts: int
    correct: FiniteFloat
    prompts_with_a_correct_one: FiniteFloat
    log_probs: dict[str, FiniteFloat | None] | None = None


def generations(runs: Runs) -> tuple[list[Item], list[Problem]]:
    """Shares of correct samples next to the accuracy of verification (Figure 3), by run and set."""
    rows: list[dict[str, Any]] = []
    problems = []
    for run, path in _files(runs, "generation"):
        try:
            found = Generation.model_validate_json(path.read_bytes())
        except _UNEXPECTED as error:
            problems.append(Problem(run, f"generation/{path.name} cannot be used: {describe_error(error)}"))
        else:
            rows.append(_generation_row(runs, run, path.stem, found))
    if not rows:
        return [], problems
    data = pd.DataFrame(rows)
    cells = [
        [Cell(str(row["run"]), number=False), Cell(str(row["set"]), number=False), Cell(str(row["prompts"]))]
        + [Cell("" if row[name] is None else number(row[name])) for name in list(data)[3:]]
        for row in rows
    ]
    header = ["run", "set", "prompts", "verification accuracy", "correct samples", "prompts with a correct one"]
    header += ["ln π(C|x) of the planted cycle", "ln π_ref(C|x)"]
    note = (
        "In the paper, IM-RMs verify perfectly on training graphs and nearly so on test graphs, but generate no "
        "correct cycle (Figure 3)."
    )
    return [Table("generation", "Verification and generation.", header, cells, data, note)], problems


def _generation_row(runs: Runs, run: str, name: str, found: Generation) -> dict[str, Any]:
    metrics = runs.metrics
    final = metrics[(metrics["state"] == FINAL) & (metrics["run"] == run) & (metrics["set"] == name)]
    log_probs = found.log_probs or {}
    return {
        "run": run,
        "set": name,
        "prompts": found.prompts,
        "verification_accuracy": float(final["accuracy"].iloc[0]) if len(final) else None,
        "correct_samples": found.correct,
        "prompts_with_a_correct_one": found.prompts_with_a_correct_one,
        "log_prob_of_planted": log_probs.get("chosen"),
        "reference_log_prob_of_planted": log_probs.get("chosen_reference"),
    }


def explanations(runs: Runs) -> tuple[list[Item], list[Problem]]:
    """The rewards by token in the run directories."""
    items: list[Item] = []
    problems = []
    for run, path in _files(runs, "explain"):
        try:
            found = Explanation.model_validate_json(path.read_bytes())
        except _UNEXPECTED as error:
            problems.append(Problem(run, f"explain/{path.name} cannot be used: {describe_error(error)}"))
            continue
        prompt = " ".join(found.prompt.split())
        note = f"Prompt: {prompt[:_LONGEST_PROMPT]}{' …' if len(prompt) > _LONGEST_PROMPT else ''}"
        items.append(tokens_item(f"{run}, {path.stem}.", found, note))
    return items, problems


def theory(runs: Runs, files: Iterable[Path]) -> tuple[list[Item], list[Problem]]:
    """Tables and pictures of theory results: those in the run directories, and further JSON files."""
    items: list[Item] = []
    problems = []
    own = (path for _, path in _files(runs, "theory"))
    for at, path in enumerate(chain(own, files)):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tables = theory_summary.tables(content)
            pictures = _pictures(path, content)
        except _UNEXPECTED as error:
            problems.append(Problem(str(path), f"is not a result of rmkit theory: {describe_error(error)}"))
            continue
        items += [_table(f"theory_{at}_{slug(path.stem)}_{part}", table) for part, table in enumerate(tables)]
        items += [Picture(f"{content['theory']}, {path.stem}.", picture) for picture in pictures]
    for run, types in runs.dynamics.items():  # runs of older rmkit: `theory:` in their recipes
        try:
            tables = theory_summary.dynamics_tables(types)
        except _UNEXPECTED as error:
            problems.append(Problem(run, f"run.json: theory.dynamics cannot be used: {describe_error(error)}"))
            continue
        items += [_table(f"dynamics_{slug(run)}_{part}", table, f"{run}: ") for part, table in enumerate(tables)]
    return items, problems


def _files(runs: Runs, folder: str) -> list[tuple[str, Path]]:
    """Run and file, for all JSON files in a folder of the run directories."""
    return [
        (run, path)
        for run, directory in runs.directories.items()
        for path in sorted((directory.path / folder).glob("*.json"))
    ]


def _table(name: str, table: theory_summary.Rows, prefix: str = "") -> Table:
    rows, columns = table["rows"], table["columns"]
    cells = [[Cell(text, number=at > 0) for at, text in enumerate(row)] for row in rows]
    return Table(name, f"{prefix}{table['title']}.", columns, cells, pd.DataFrame(rows, columns=columns))


def _pictures(path: Path, content: dict[str, Any]) -> list[Path]:
    """The figures that a result names, in its own folder, if they are there and a page can show them."""
    files = [path.with_name(Path(name).name) for name in content.get("figures", [])]
    return [file for file in files if file.suffix.lower() in _PICTURES and file.is_file()]
