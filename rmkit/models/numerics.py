"""The precision in which rewards and losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The same values, bfloat16 as float32: rewards and losses would lie on a coarse grid. float64 stays as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
