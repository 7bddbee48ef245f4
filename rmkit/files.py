"""Where rmkit keeps what can be made again: built bases, prepared sets, fetched archives."""

from __future__ import annotations

import os
from pathlib import Path


def rmkit_cache() -> Path:
    """Where rmkit keeps what can be made again: `$RMKIT_CACHE`, else ~/.cache/rmkit."""
    return Path(os.environ.get("RMKIT_CACHE") or Path.home() / ".cache" / "rmkit").expanduser()
