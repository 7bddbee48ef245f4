"""Checkpoints of an interrupted run: which are complete, and a clean stop when a scheduler sends SIGTERM.

transformers writes a checkpoint file by file. When all are written, a marker with their sizes is added, by a rename. A
checkpoint without a marker, or with a file that has lost bytes since, is skipped for the one before it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback

from rmkit.errors import RmkitError
from rmkit.files import write_json
from rmkit.model_files.identity import Digests, changed_files

MARKER = "complete.json"
PREEMPTED_EXIT_CODE = 75
"""EX_TEMPFAIL: the run was told to stop and has saved a checkpoint, from which the same command resumes."""

_NAME = re.compile(r"^checkpoint-(\d+)$")


def newest_complete(folder: Path) -> Path | None:
    """The complete checkpoint of the latest step; incomplete ones are removed, lest their files mix with new ones."""
    found = None
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        if found is None and _is_complete(checkpoint):
            found = checkpoint
        elif not _is_complete(checkpoint):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return found


def mark_complete(checkpoint: Path, inputs: Mapping[str, Digests] | None = None) -> None:
    """Write the marker of a complete checkpoint, with the digests of base, reference, tokenizer and data."""
    sizes = {
        str(file.relative_to(checkpoint)): file.stat().st_size
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != MARKER
    }
    write_json(checkpoint / MARKER, {"sizes": sizes, "models": dict(inputs or {})})


def check_inputs(checkpoint: Path, inputs: Mapping[str, Digests]) -> None:
    """Refuse to resume from a checkpoint with another base, reference, tokenizer or data than it was trained with.

    Raises:
        RmkitError: naming the files or sets that differ.
    """
    for role, digests in _inputs(checkpoint).items():
        if changed := changed_files(digests, inputs.get(role, {})):
            verb = "are not those" if role == "data" else "is not the one"
            raise RmkitError(
                f"The {role} {verb} that {checkpoint} was trained with. Changed: {', '.join(changed)}.",
                "Restore it, or start again with --overwrite.",
            )


def recorded_commits(checkpoint: Path | None) -> dict[str, str]:
    """The commits of base and reference in training, by role, so that a branch that has moved does not matter."""
    inputs = {} if checkpoint is None else _inputs(checkpoint)
    return {role: inputs[role]["commit"] for role in ("base", "reference") if "commit" in inputs.get(role, {})}


def _inputs(checkpoint: Path) -> dict[str, Digests]:
    inputs: dict[str, Digests] = json.loads((checkpoint / MARKER).read_text(encoding="utf-8")).get("models") or {}
    return inputs  # checkpoints of older versions have none


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["sizes"]
        return bool(sizes) and all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _step(checkpoint: Path) -> int:
    match = _NAME.match(checkpoint.name)
    return int(match.group(1)) if match else -1


class Preempted(SystemExit):
    """The run has stopped on SIGTERM and saved a checkpoint."""


class CheckpointCallback(TrainerCallback):
    """Marks complete checkpoints; after SIGTERM saves one at the end of the step and stops, on all processes together.

    Args:
        inputs: digests for the markers, see `mark_complete`.
    """

    def __init__(self, accelerator: Any, inputs: Mapping[str, Digests]):
        self.accelerator, self.inputs = accelerator, inputs
        self.stopping = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM inside."""
        before = signal.signal(signal.SIGTERM, self._stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _stop(self, *_: Any) -> None:
        self.stopping = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save and stop if any process has received SIGTERM."""
        if args.world_size > 1:
            import torch

            stopping = torch.tensor(float(self.stopping), device=self.accelerator.device)
            self.stopping = bool(self.accelerator.reduce(stopping, reduction="sum") > 0)
        if self.stopping:
            control.should_save = True
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint once all processes have written their part."""
        self.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.inputs)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise one readable error for a full disk, for which libraries raise various ones.

    Raises:
        RmkitError: for a write error that a full disk explains.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        writing = any(word in str(error) for word in ("PytorchStreamWriter", "write", "I/O"))
        if full or (writing and shutil.disk_usage(folder).free < 2**20):
            raise RmkitError(
                f"The disk of {folder} is full; the last complete checkpoint is intact.",
                "Free some space, then run the same command with resume=auto.",
            ) from None
        raise
