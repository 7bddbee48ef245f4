"""What other commands leave for the report: explain/*.json, generation/*.json and theory/*.json.

explain   {"prompt": str, "response": str, "tokens": [str], "implicit_terms": [float] | null,
           "explicit_prefix_rewards": [float] | null}
generation {"set": str, "prompts": int, "correct": float, "prompts_with_a_correct_one": float,
           "log_probs": {"chosen": float, "chosen_reference": float, ...} | null, ...}
theory    {"theory": "<which result>", "figures": ["<file beside it>", ...], ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from rmkit.report import theory_summary as summary
from rmkit.report.comparison import count
from rmkit.report.html import Item, Picture, Tokens
from rmkit.report.runs import Problem, Runs
from rmkit.report.tables import Cell, Table, number
from rmkit.runs.directory import FINAL
from rmkit.runs.explanation import Explanation

MOST_NUMBERS = 40
_PICTURES = (".svg", ".png")
_UNEXPECTED = (KeyError, TypeError, ValueError, AttributeError, IndexError)  # of content that is not as it should be


class Generation(BaseModel):
    """One file of `rmkit generate`: shares of correct samples, and mean log-probabilities of the planted cycle."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompts: int
    correct: FiniteFloat
    prompts_with_a_correct_one: FiniteFloat
    log_probs: dict[str, FiniteFloat | None] | None = None


def generations(runs: Runs) -> tuple[list[Item], list[Problem]]:
    """Correct samples beside the accuracy of telling correct from incorrect ones (Figure 3), a row a run and set."""
    final = runs.metrics[runs.metrics["state"] == FINAL]
    rows: list[dict[str, Any]] = []
    problems = []
    for run, directory in runs.directories.items():
        for path in sorted((directory.path / "generation").glob("*.json")):
            try:
                found = Generation.model_validate_json(path.read_bytes())
            except (OSError, ValidationError, ValueError) as error:
                problems.append(Problem(run, f"generation/{path.name} cannot be used: {_first_line(error)}"))
                continue
            accuracy = final.loc[(final["run"] == run) & (final["set"] == path.stem), "accuracy"]
            log_probs = found.log_probs or {}
            rows.append(
                {
                    "run": run,
                    "set": path.stem,
                    "prompts": found.prompts,
                    "verification_accuracy": float(accuracy.iloc[0]) if len(accuracy) else None,
                    "correct_samples": found.correct,
                    "prompts_with_a_correct_one": found.prompts_with_a_correct_one,
                    "log_prob_of_planted": log_probs.get("chosen"),
                    "reference_log_prob_of_planted": log_probs.get("chosen_reference"),
                }
            )
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
    note = "The paper's IM-RMs verify perfectly in training, nearly so in test, and generate no cycle (Figure 3)."
    return [Table("generation", "Verification and generation.", header, cells, data, note)], problems


def explanations(runs: Runs) -> tuple[list[Item], list[Problem]]:
    """The token-by-token rewards that lie in the run directories."""
    items: list[Item] = []
    problems = []
    for run, directory in runs.directories.items():
        for path in sorted((directory.path / "explain").glob("*.json")):
            try:
                found = Explanation.model_validate_json(path.read_bytes())
            except (OSError, ValidationError, ValueError) as error:
                problems.append(Problem(run, f"explain/{path.name} cannot be used: {_first_line(error)}"))
                continue
            items.append(_tokens(f"{run}, {path.stem}.", found))
    return items, problems


def _tokens(title: str, found: Explanation) -> Tokens:
    rows = []
    if found.implicit_terms is not None:
        label = f"Implicit: β (ln π − ln π_ref) of each token, {number(sum(found.implicit_terms))} in all"
        rows.append((label, _shaded(found.tokens, found.implicit_terms)))
    if found.increments is not None and found.explicit_prefix_rewards:
        label = (
            f"Explicit: what each token adds to the reward of the prefix, {number(found.explicit_prefix_rewards[-1])}"
        )
        # The first increment is the whole reward of the first prefix: it would drown the others.
        rows.append((label, _shaded(found.tokens, [0.0, *found.increments[1:]])))
    prompt = " ".join(found.prompt.split())
    return Tokens(title, rows, f"Prompt: {prompt[:300]}{' …' if len(prompt) > 300 else ''}")


def _shaded(tokens: Sequence[str], values: Sequence[float]) -> list[tuple[str, float, float]]:
    """Each token with its value and the value's share of the largest, in [-1, 1]."""
    largest = max((abs(value) for value in values), default=0.0) or 1.0
    return [(token, value, value / largest) for token, value in zip(tokens, values, strict=True)]


def theory(runs: Runs, given: Iterable[Path]) -> tuple[list[Item], list[Problem]]:
    """Numbers and pictures of theory results: those in the run directories, and the files given."""
    items: list[Item] = []
    problems = []
    own = [
        (f"{run}: ", path)
        for run, directory in runs.directories.items()
        for path in sorted((directory.path / "theory").glob("*.json"))
    ]
    for at, (prefix, path) in enumerate([*own, *(("", path) for path in given)]):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            title = f"{content['theory'] if isinstance(content['theory'], str) else 'theory'}, {path.stem}."
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(Problem(str(path), f"is no theory result: {_first_line(error)}"))
            continue
        items += _summary(f"theory_{at}_{_plain(path.stem)}", path, prefix, title, content)
        items += [Picture(prefix + title, picture) for picture in _pictures(path, content)]
    for run, types in runs.dynamics.items():
        try:
            tables = summary.dynamics_tables(types)
        except _UNEXPECTED as error:
            problems.append(Problem(run, f"run.json: theory.dynamics cannot be used: {_first_line(error)}"))
            continue
        items += [
            _table(f"dynamics_{_plain(run)}_{at}", f"{run}: {each['title']}.", each) for at, each in enumerate(tables)
        ]
    return items, problems


def _summary(name: str, path: Path, prefix: str, title: str, content: dict[str, Any]) -> list[Table]:
    """The tables that `rmkit theory` prints for the result; of a result that it does not know, the numbers."""
    try:
        tables = summary.tables(content)
    except _UNEXPECTED:
        return [_numbers(name, path, prefix + title, content)]
    return [_table(f"{name}_{at}", f"{prefix}{each['title']}.", each) for at, each in enumerate(tables)]


def _table(name: str, title: str, rows: summary.Rows) -> Table:
    cells = [[Cell(text, number=at > 0) for at, text in enumerate(row)] for row in rows["rows"]]
    return Table(name, title, rows["columns"], cells, pd.DataFrame(rows["rows"], columns=rows["columns"]))


def _numbers(name: str, path: Path, title: str, content: dict[str, Any]) -> Table:
    leaves = list(_leaves(content))
    texts = [(name, f"{value:.6g}" if isinstance(value, float) else str(value)) for name, value in leaves]
    rows = [[Cell(name, number=False), Cell(text)] for name, text in texts]
    left_out = len(rows) - MOST_NUMBERS
    note = f"{count(left_out, 'more number')} in {path.name}." if left_out > 0 else ""
    data = pd.DataFrame(leaves, columns=["name", "value"]).astype({"value": str})
    return Table(name, title, ["Quantity", "Value"], rows[:MOST_NUMBERS], data, note)


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, float | int | str | bool]]:
    """Numbers and short texts by their path; lists are given by their length."""
    if isinstance(content, dict):
        for key, value in content.items():
            if not (prefix == "" and key in ("theory", "format", "figures")):
                yield from _leaves(value, f"{prefix} › {key}" if prefix else str(key))
    elif isinstance(content, list):
        yield prefix, f"{len(content)} values"
    elif isinstance(content, str):
        yield prefix, content if len(content) <= 80 else content[:80] + " …"
    elif content is not None:
        yield prefix, content


def _pictures(path: Path, content: dict[str, Any]) -> list[Path]:
    """The figures that the file names, beside it, and that of its own stem; SVG before PNG."""
    named = content.get("figures")
    files = [path.parent / Path(str(each)).name for each in named] if isinstance(named, list) else []
    stems = dict.fromkeys([*(each.with_suffix("") for each in files), path.with_suffix("")])
    found = []
    for stem in stems:
        there = [picture for ending in _PICTURES if (picture := stem.with_name(stem.name + ending)).is_file()]
        found += there[:1]
    return found


def _plain(text: str) -> str:
    return "".join(each if each.isalnum() else "_" for each in text)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".lstrip(": ")
    return str(error).splitlines()[0] if str(error) else type(error).__name__
