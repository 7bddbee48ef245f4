"""Baseline and rmkit in turn, each measurement a process of its own. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from benchmarks.arithmetic import Work
from benchmarks.pairs import REPOSITORY
from benchmarks.results import Couple, Line
from benchmarks.setting import SCORING_BATCH, Job, Measurement, Setting, Side, Workspace
from rmkit.errors import RmkitError
from rmkit.files import rmkit_cache

FORMAT = 1
"""Part of a workspace's name: raise it when the same setting would make another one."""

_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


def plan(works: Iterable[Work] = get_args(Work), micro_batches: Sequence[int] = (4, 8)) -> list[Line]:
    """The lines of the table, in an order that brings every work early."""
    works = list(works)
    lines = [Line("scoring", SCORING_BATCH, "plain")] if "scoring" in works else []
    for micro_batch in micro_batches:
        lines += [Line(work, micro_batch, "stock") for work in works if work in ("explicit", "implicit")]
        lines += [Line(work, micro_batch, "padded") for work in works if work == "generative"]
    for micro_batch in micro_batches:
        lines += [Line(work, micro_batch, "stock_best") for work in works if work in ("explicit", "implicit")]
    return lines


@dataclass(frozen=True)
class Processes:
    """Starts the processes that measure; all read one workspace."""

    setting: Setting
    workspace: Path

    def measure(self, line: Line, side: Side) -> Measurement:
        """One side of a line."""
        job = Job(
            setting=self.setting,
            workspace=str(self.workspace),
            work=line.work,
            micro_batch=line.micro_batch,
            side=side,
        )
        measured = run_process(["worker", job.model_dump_json()], self.workspace, self.setting)
        return Measurement.model_validate_json(json.dumps(measured))


def run_process(arguments: Sequence[str], log_folder: Path, setting: Setting) -> Any:
    """What `python -m benchmarks ARGUMENTS OUTPUT` writes to OUTPUT, read as JSON; whatever is beside it is removed.

    Raises:
        RmkitError: with the last line of what it printed, if it fails.
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    if setting.shape.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    log = log_folder / "log.txt"
    log_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=log_folder) as folder, log.open("w", encoding="utf-8") as printed:
        output = Path(folder) / "output.json"
        command = [sys.executable, "-m", "benchmarks", *arguments, str(output)]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=printed, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode == 0 and output.exists():
            return json.loads(output.read_text(encoding="utf-8"))
    cause = last_words(log.read_text(encoding="utf-8", errors="replace")) or f"exit code {done.returncode}"
    raise RmkitError(f"`{arguments[0]}` failed: {cause}", f"The whole of what it printed is in {log}.")


def last_words(printed: str) -> str:
    """What a process that failed said was wrong: its error message, else its last line."""
    lines = printed.strip().splitlines() or [""]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines)[-1]


def ensure_workspace(setting: Setting, data: Path | None, cache: Path | None = None) -> Path:
    """The folder that all measurements of a setting read, made first if it is not there."""
    place = str(data.resolve()) if data else ""
    content = setting.model_dump_json() + place + str(setting.shape) + str(FORMAT)
    name = f"{setting.size}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    folder = (cache or rmkit_cache() / "benchmarks").resolve() / name
    if not Workspace(folder).counts.exists():
        run_process(["prepare", setting.model_dump_json(), place, str(folder)], folder.with_name(f".{name}"), setting)
    return folder


def measure_all(
    lines: Sequence[Line],
    repeats: int,
    measure: Callable[[Line, Side], Measurement],
    done: dict[Line, list[Couple]],
    note: Callable[[Line, list[Couple]], None],
    setting: Setting,
) -> None:
    """Measure every line `repeats` times, the baseline and then rmkit; `done` holds and gets the couples.

    All lines once, then all again: so every line has a figure early, and a slow spell of the machine meets all alike.

    Args:
        note: called after every couple with the couples of its line.

    Raises:
        RmkitError: if the two sides of a couple did not compute the same.
    """
    for repeat in range(repeats):
        for line in lines:
            couples = done.setdefault(line, [])
            if len(couples) > repeat:
                continue
            baseline = measure(line, line.baseline)
            ours = measure(line, "ours")
            couples.append(Couple.of(baseline, ours, difference(line, baseline, ours, setting)))
            note(line, couples)


def difference(line: Line, baseline: Measurement, ours: Measurement, setting: Setting) -> float | None:
    """By how much rewards, or the losses of the steps, differ at most; None where the order of the pairs does.

    Raises:
        RmkitError: if it is more than rounding.
    """
    if (len(baseline.losses), len(baseline.rewards)) != (len(ours.losses), len(ours.rewards)):
        raise RmkitError(
            f"{line}: {len(baseline.losses)} steps and {len(baseline.rewards)} rewards, but {len(ours.losses)} and "
            f"{len(ours.rewards)} by rmkit.",
            "Report this as a bug.",
        )
    if line.baseline == "stock_best":
        return None
    couples = [
        *zip(baseline.losses, ours.losses, strict=True),
        *((one, other) for two in zip(baseline.rewards, ours.rewards, strict=True) for one, other in zip(*two)),  # noqa: B905
    ]
    largest = max(abs(one - other) for one, other in couples)
    if not largest <= _TOLERANCE[setting.shape.dtype]:
        raise RmkitError(
            f"{line}: the two sides differ by {largest:.2g}.", "They do not compute the same: report this as a bug."
        )
    return largest
