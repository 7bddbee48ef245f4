"""Start-up time, and time and memory of `rmkit score` by number of rows. No torch."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import spread
from benchmarks.pairs import REPOSITORY, made_pairs, write_pairs
from benchmarks.setting import Workspace
from rmkit.data.preferences import PreferencePair
from rmkit.errors import RmkitError


def start_up(runs: int) -> dict[str, dict[str, float]]:
    """Seconds of `rmkit --help` and `trl --help`, alternating, after one warm-up run of both."""
    scripts = Path(sys.executable).parent
    commands = {name: [str(scripts / name), "--help"] for name in ("rmkit", "trl")}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs + 1):
        for name, command in commands.items():
            seconds[name].append(run_measured(command)["seconds"])
    return {name: dict(zip(("min", "median", "max"), spread(each[1:]), strict=True)) for name, each in seconds.items()}


def growth(
    workspace: Path, rows: Sequence[int], note: Callable[[dict[str, float]], None] = lambda _: None
) -> list[dict[str, float]]:
    """Rows, seconds and peak MiB of `rmkit score` processes on pairs of short texts, start-up included."""
    found = []
    for number in rows:
        with tempfile.TemporaryDirectory(dir=workspace) as folder:
            data = Path(folder) / "pairs.jsonl"
            write_pairs(data, short_pairs(number))
            model, output = str(Workspace(workspace).classifier), str(Path(folder) / "rewards.parquet")
            command = [sys.executable, "-m", "rmkit", "score", model, str(data), "--output", output]
            found.append({"rows": number} | run_measured(command))
        note(found[-1])
    return found


def short_pairs(number: int) -> itertools.chain[PreferencePair]:
    """Pairs of a few words, generated in chunks of a thousand to save memory."""
    starts = range(0, number, 1000)
    return itertools.chain.from_iterable(
        made_pairs(min(1000, number - start), seed=start, prompt=3, response=4) for start in starts
    )


def run_measured(command: Sequence[str]) -> dict[str, float]:
    """Seconds and peak MiB of a process, as reported by the operating system.

    Raises:
        RmkitError: if it fails.
    """
    environment: dict[str, Any] = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+") as printed:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            printed.seek(0)
            lines = printed.read().strip().splitlines() or [f"exit code {process.returncode}"]
            raise RmkitError(
                f"{' '.join(command[:4])} failed: {lines[-1]}", "Run the command yourself to see its whole output."
            )
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return {"seconds": seconds, "peak_mib": usage.ru_maxrss * unit / 2**20}
