"""One measurement, in a process of its own."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from benchmarks import ours
from benchmarks.setting import Job, Measurement


def measure(job: Job) -> Measurement:
    """Do the work of a job, before it once for nothing where the setting says so, and measure it."""
    work = _work(job)
    if job.setting.warm_up:
        work(job)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return work(job)


def _work(job: Job) -> Callable[[Job], Measurement]:
    if job.side in ("ours", "padded"):
        return ours.score if job.work == "scoring" else ours.train
    if job.work == "scoring":
        from benchmarks import plain

        return plain.score
    from benchmarks import stock

    return stock.train
