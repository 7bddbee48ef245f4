"""The environment of a run, for run.json: versions, git commit, machine, memory."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import rmkit

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate", "deepspeed", "tokenizers")


def describe() -> dict[str, Any]:
    """Versions of rmkit and its dependencies, rmkit's git commit if it is a checkout, and the machine."""
    return {
        "rmkit_version": rmkit.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "machine": {
            "system": platform.system(),
            "accelerators": [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())],
            "threads": torch.get_num_threads(),
        },
    }


def peak_memory_mib() -> dict[str, float]:
    """The peak memory of this process, in MiB, on the host and on its GPU."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return {"host": host} | ({"gpu": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {})


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    def ask(*command: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
