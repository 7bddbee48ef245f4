"""Measure the baseline and rmkit alternately, every measurement in its own process. No torch."""

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
"""Part of a workspace's name: raise it when the same setting would write a different workspace."""

_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


def plan(works: Iterable[Work] = get_args(Work), micro_batches: Sequence[int] = (4, 8)) -> list[Line]:
    """The lines of the table, ordered so that every workload comes early."""
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
    """Starts the measuring processes, which share one workspace."""

    setting: Setting
    workspace: Path

    def measure(self, line: Line, side: Side) -> Measurement:
        """Measure one side of a line."""
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
    """Run `python -m benchmarks ARGUMENTS OUTPUT` and return the JSON it writes; its other files are removed.

    Raises:
        RmkitError: with the last line of its output, if it fails.
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
    cause = find_cause(log.read_text(encoding="utf-8", errors="replace")) or f"exit code {done.returncode}"
    raise RmkitError(f"`{arguments[0]}` failed: {cause}", f"The full output is in {log}.")


def find_cause(printed: str) -> str:
    """The error message in the output of a failed process, else its last line."""
    lines = printed.strip().splitlines() or [""]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines)[-1]


def ensure_workspace(setting: Setting, data: Path | None, cache: Path | None = None) -> Path:
    """The folder that all measurements of a setting read; written if it does not exist."""
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
    """Measure every line `repeats` times, the baseline and then rmkit; the couples are added to `done`.

    All lines are measured once before any is repeated: every line has a number early, and a slow phase of the machine
    affects all lines alike.

    Args:
        note: called after every couple with all couples of its line.

    Raises:
        RmkitError: if the two sides of a couple computed different things.
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
    """The largest difference in rewards, or in losses of steps; None if the order of the pairs differs.

    Raises:
        RmkitError: if it is larger than rounding.
    """
    if (len(baseline.losses), len(baseline.rewards)) != (len(ours.losses), len(ours.rewards)):
        raise RmkitError(
            f"{line}: {len(baseline.losses)} steps and {len(baseline.rewards)} rewards, but {len(ours.losses)} and "
            f"{len(ours.rewards)} with rmkit.",
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
            f"{line}: the two sides differ by {largest:.2g}.", "They should compute the same: report this as a bug."
        )
    return largest
