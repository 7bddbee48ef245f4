"""The precision in which rewards and losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Convert bfloat16 and float16 to float32, in which rewards and losses are not rounded coarsely; keep float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
