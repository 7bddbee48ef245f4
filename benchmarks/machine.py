"""The machine's speed: the rate of matrix products with the model's shapes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.shapes import Shape

_TOKENS = {"cpu": 2048, "gpu": 16384}
_TIMES = {"cpu": 5, "gpu": 20}


def matmul_rate(shape: Shape) -> float:
    """FLOP/s of the matrix products of one layer of the model, each the best of several."""
    device = torch.device("cuda" if shape.device == "gpu" else "cpu")
    tokens, dtype = _TOKENS[shape.device], getattr(torch, shape.dtype)
    seconds, arithmetic = 0.0, 0
    for inputs, outputs in shape.products:
        left = torch.randn(tokens, inputs, device=device, dtype=dtype)
        right = torch.randn(inputs, outputs, device=device, dtype=dtype)
        seconds += best_of(lambda left=left, right=right: left @ right, _TIMES[shape.device], device)  # type: ignore[misc]
        arithmetic += 2 * tokens * inputs * outputs
    return arithmetic / seconds


def best_of(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds of the fastest of several runs, after one warm-up run."""

    def once() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    return min(once() for _ in range(times))
