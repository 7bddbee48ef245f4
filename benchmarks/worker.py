"""One measurement, in its own process."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import ours
from benchmarks.machine import matmul_rate
from benchmarks.setting import Job, Measurement
from rmkit.runs import environment


def measure(job: Job, scratch: Path) -> Measurement:
    """Run the workload of a job, after a warm-up run if the setting asks for one, and measure it and the machine.

    Its files go to `scratch`.
    """
    work = _work(job)
    if job.setting.warm_up:
        work(job, scratch)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    measured = work(job, scratch)
    afterwards = {"matmul_rate": matmul_rate(job.setting.shape), "machine": environment.describe()}
    return measured.model_copy(update=afterwards)


def _work(job: Job) -> Callable[[Job, Path], Measurement]:
    if job.side in ("ours", "padded"):
        return ours.score if job.work == "scoring" else ours.train
    if job.work == "scoring":
        from benchmarks import plain

        return plain.score
    from benchmarks import stock

    return stock.train
