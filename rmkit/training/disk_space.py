"""Check that a run can write to its folders, and that the disk has room for what it writes."""

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
"""Tensors of a parameter's size that an optimizer keeps; for other optimizers no lower bound is known."""


@contextlib.contextmanager
def scratch(path: Path, what: str, remedy: str) -> Iterator[Path]:
    """Create a temporary folder in `path` and write to it; remove it afterwards, with the parents created for it.

    Raises:
        RmkitError: if nothing can be written there.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    scratch_folder = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        scratch_folder = Path(tempfile.mkdtemp(dir=path, prefix=".model."))  # RunDirectory removes those of killed runs
        for place in (scratch_folder, path / "checkpoints"):
            if place is scratch_folder or place.exists():
                with tempfile.TemporaryFile(dir=place) as file:
                    file.write(bytes(2**20))  # more than a file system reserves, so that a full quota shows
        yield scratch_folder
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = "is on a full disk, or its quota is used up" if full else f"cannot be written: {error}"
        raise RmkitError(f"{what} {path} {cause}.", "Make room there. " * full + remedy) from None
    finally:
        if scratch_folder is not None:
            shutil.rmtree(scratch_folder, ignore_errors=True)
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def check_places(recipe: Recipe, cache: bool) -> None:
    """Check that the run directory and, if `cache`, the cache folder can be written; change neither.

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
        model, checkpoint: lower bounds for a model directory and for a checkpoint.
        checkpoints: the largest number of checkpoints at any time.
        least: a lower bound for the largest total at any time.
        likely: an upper estimate of it, with the states of optimizers of unknown size.
    """

    model: int
    checkpoint: int
    checkpoints: int
    least: int
    likely: int

    def __str__(self) -> str:
        kept = f" and {self.checkpoints} checkpoints of {gib(self.checkpoint)}" if self.checkpoints else ""
        return f"at least {gib(self.least)} (model {gib(self.model)}{kept})"


def estimate_room(
    recipe: Recipe,
    model: nn.Module,
    record: ModelMetadata,
    arguments: Any,
    sharding: str,
    steps: int,
    steps_per_epoch: int,
) -> Room:
    """Estimate what a run writes: the model, and checkpoints of weights and optimizer states.

    ZeRO keeps float32 master weights and states; otherwise states have the dtype of the weights.
    """
    sharded = sharding.startswith("zero")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    size = 2 if record.dtype == "bfloat16" and not record.adapter else None
    weights = sum(parameter.numel() * (size or parameter.element_size()) for parameter in trained)
    known = _MOMENTS.get(arguments.optim.value)
    numbers = sum(parameter.numel() for parameter in trained)
    one_state = 4 * numbers if sharded else sum(parameter.nbytes for parameter in trained)
    masters = 4 * numbers if sharded else 0
    states = 0 if arguments.save_only_model else masters + (known or 0) * one_state
    more = 0 if arguments.save_only_model else (2 * one_state if known is None else 0) + weights * sharded
    saves, limit = _saves(arguments, steps, steps_per_epoch), arguments.save_total_limit
    kept = min(saves, limit or saves)
    checkpoints = min(saves, kept + 1)  # a new one is written before the oldest is removed
    every_save = recipe.hub is not None and recipe.hub.push == "every_save"
    one, best = weights + states, weights * (recipe.evaluation.save_best is not None)
    return Room(
        weights,
        one,
        checkpoints,
        least=max(checkpoints * one, kept * one + weights + best),
        # every checkpoint may hold a best model of its own, and a new one is written before the old one is removed
        likely=max(checkpoints * (one + more + best) + 2 * best, kept * (one + more + best) + weights + best)
        + weights * every_save,
    )


def _saves(arguments: Any, steps: int, steps_per_epoch: int) -> int:
    """The number of checkpoints that a run writes."""
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
    """Compare the need with the free bytes at `folder` in `path`, plus those of the files that the run replaces.

    Returns:
        A line with both numbers, and a warning if the room may not suffice.

    Raises:
        RmkitError: if the room does not suffice.
    """
    files = (file.stat() for file in path.rglob("*") if file.is_file())
    replaced = sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())  # linked files once
    free = shutil.disk_usage(folder).free + replaced
    if needed.least > free:
        only_model = "" if resume else " or save_only_model"  # without an optimizer a run cannot resume
        fewer = f", or set training.save_total_limit{only_model}" if needed.checkpoints else ""
        raise RmkitError(
            f"output_dir {path} has room for {gib(free)}, and the run writes {needed}.",
            f"Make room, or give another output_dir{fewer}.",
        )
    notes = [f"Disk: the run writes {needed} into output_dir, which has room for {gib(free)}."]
    if needed.likely > free:
        notes.append(f"warning: the run may write up to {gib(needed.likely)} into output_dir, which has less room.")
    return notes


def gib(number: int) -> str:
    """A number of bytes in MiB or GiB."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
