"""The processes of a run: their number, how the model is sharded over them, and work on the main process only."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from accelerate import DistributedType, PartialState
from transformers.integrations import deepspeed

if TYPE_CHECKING:
    from torch import nn


def running_processes() -> int:
    """The number of processes that the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def visible_gpus() -> int:
    """The number of GPUs that this process sees."""
    import torch

    return torch.cuda.device_count()


def running_sharding(arguments: Any) -> str:
    """none | zero0..3, as TrainingArguments have set it up."""
    plugin = getattr(arguments, "deepspeed_plugin", None)
    return "none" if plugin is None else f"zero{plugin.zero_stage}"


@contextlib.contextmanager
def zero3_disabled() -> Iterator[None]:
    """Load whole models inside: under ZeRO-3 transformers would partition every model that it loads."""
    # Launcher or TrainingArguments own the configuration; transformers keeps a weak reference to it.
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def gathered(parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
    """Gather a parameter that ZeRO-3 has partitioned, and keep what the main process changes in it; else nothing."""
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    whole: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
    return whole


@contextlib.contextmanager
def main_process_only() -> Iterator[None]:
    """Load and score on the main process only, while the others wait: nothing is distributed or gathered inside."""
    state = PartialState()
    shared = state.num_processes, state.process_index
    state.num_processes, state.process_index = 1, 0
    try:
        with zero3_disabled():
            yield
    finally:
        state.num_processes, state.process_index = shared


@contextlib.contextmanager
def skipping_teardown() -> Iterator[None]:
    """End a process of a distributed run before its libraries are torn down, if the block succeeds.

    DeepSpeed sometimes aborts during teardown, after all work is done, and the run would count as failed. Functions
    registered with `atexit` inside the block, by experiment trackers for example, still run.
    """
    finished = False

    def end() -> None:
        if finished and PartialState().distributed_type != DistributedType.NO:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    atexit.register(end)
    yield
    finished = True
