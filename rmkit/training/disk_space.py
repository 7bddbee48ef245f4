"""Whether a run can write where it will, and whether what it writes has room there."""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rmkit.config.recipe import Recipe
from rmkit.errors import RmkitError
from rmkit.files import rmkit_cache
from rmkit.reward_models.metadata import ModelMetadata

_MOMENTS = {"adamw_torch": 2, "adamw_torch_fused": 2, "adagrad": 1, "rmsprop": 1, "sgd": 0}
"""Tensors of a parameter's size that an optimizer keeps for it; of others no lower bound is known."""


@contextlib.contextmanager
def scratch(path: Path, what: str, remedy: str) -> Iterator[Path]:
    """A folder in `path` that has been written to, and is gone afterwards with what had to be made for it.

    Raises:
        RmkitError: if nothing can be written there.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    folder = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path, prefix=".model."))  # the name of what a killed run leaves
        for place in (folder, path / "checkpoints"):
            if place is folder or place.exists():
                with tempfile.TemporaryFile(dir=place) as file:
                    file.write(bytes(2**20))  # more than a file system keeps back: also a quota is met
        yield folder
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = "is on a full disk, or its quota is used up" if full else f"cannot be written: {error}"
        raise RmkitError(f"{what} {path} {cause}.", "Make room there. " * full + remedy) from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()


def check_places(recipe: Recipe, cache: bool) -> None:
    """Look whether the run directory and, where it is needed, the cache can be written, and leave both as they are.

    Raises:
        RmkitError: see `scratch`.
    """
    with scratch(recipe.output_dir, "output_dir", "Give another output_dir."):
        pass
    if cache:
        with scratch(rmkit_cache(), "The cache", "Set RMKIT_CACHE to a folder of your own."):
            pass


@dataclass(frozen=True)
class Room:
    """Bytes that a run writes into output_dir.

    Attributes:
        model, checkpoint: of one model directory and of one checkpoint, at least.
        checkpoints: how many there are at the same time, at most.
        least: what there is at one time in any case.
        likely: the same with what is not known for certain, such as unknown optimizers' states.
    """

    model: int
    checkpoint: int
    checkpoints: int
    least: int
    likely: int

    def __str__(self) -> str:
        kept = f" and {self.checkpoints} checkpoints of {gib(self.checkpoint)}" if self.checkpoints else ""
        return f"at least {gib(self.least)} (model {gib(self.model)}{kept})"


def room(
    recipe: Recipe,
    model: nn.Module,
    record: ModelMetadata,
    arguments: Any,
    sharding: str,
    steps: int,
    steps_per_epoch: int,
) -> Room:
    """What a run writes: the model, and checkpoints of weights and optimizer states.

    ZeRO keeps float32 masters and states of the weights; elsewhere states have the dtype of the weights.
    """
    sharded = sharding.startswith("zero")
    trained = [each for each in model.parameters() if each.requires_grad]
    size = 2 if record.dtype == "bfloat16" and not record.adapter else None
    weights = sum(each.numel() * (size or each.element_size()) for each in trained)
    known = _MOMENTS.get(arguments.optim.value)
    numbers = sum(each.numel() for each in trained)
    one_state = 4 * numbers if sharded else sum(each.numel() * each.element_size() for each in trained)
    masters = 4 * numbers if sharded else 0
    states = 0 if arguments.save_only_model else masters + (known or 0) * one_state
    more = 0 if arguments.save_only_model else (2 * one_state if known is None else 0) + weights * sharded
    saves, limit = _saves(arguments, steps, steps_per_epoch), arguments.save_total_limit
    kept = min(saves, limit or saves)
    together = min(saves, kept + 1)  # the new one is written before the oldest is removed
    every_save = recipe.hub is not None and recipe.hub.push == "every_save"
    one = weights + states
    return Room(
        weights,
        one,
        together,
        least=max(together * one, kept * one + weights),
        likely=max(together * (one + more), kept * (one + more) + weights) + weights * every_save,
    )


def _saves(arguments: Any, steps: int, steps_per_epoch: int) -> int:
    """How many checkpoints a run writes."""
    match arguments.save_strategy.value:
        case "steps":
            every: float = arguments.save_steps
            every = every if every >= 1 else max(1, math.ceil(steps * every))
            return math.ceil(steps / every)
        case "epoch":
            return math.ceil(steps / steps_per_epoch)
        case _:
            return 0


def check_room(path: Path, folder: Path, needed: Room, resume: bool = False) -> list[str]:
    """Compare with the free bytes at `folder`, which lies in `path`; what is there now is replaced or counted already.

    Returns:
        A line that says both, and a warning where that may not suffice.

    Raises:
        RmkitError: if it cannot.
    """
    free = shutil.disk_usage(folder).free + sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    if needed.least > free:
        only_model = "" if resume else " or save_only_model"  # nothing to go on from
        fewer = f", or set training.save_total_limit{only_model}" if needed.checkpoints else ""
        raise RmkitError(
            f"output_dir {path} has room for {gib(free)}, and the run writes {needed}.",
            f"Make room, or give another output_dir{fewer}.",
        )
    notes = [f"Disk: the run writes {needed} into output_dir, which has room for {gib(free)}."]
    if needed.likely > free:
        notes.append(f"warning: the run may write up to {gib(needed.likely)} into output_dir, more than there is room.")
    return notes


def gib(number: int) -> str:
    """Bytes in words."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
