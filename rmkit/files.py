"""Files that are there whole or not at all: text, JSON, tables and folders; and where rmkit's cache is. No torch."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rmkit.errors import RmkitError


def rmkit_cache() -> Path:
    """Where rmkit keeps what can be made again: `$RMKIT_CACHE`, else ~/.cache/rmkit."""
    return Path(os.environ.get("RMKIT_CACHE") or Path.home() / ".cache" / "rmkit").expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed otherwise.

    A folder takes the place of a folder and a file that of a file.

    Raises:
        RmkitError: if nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise RmkitError(f"{path} cannot be written: {error}.", "Give another place.") from None
    temporary, old = workspace / path.name, workspace / "old"
    try:
        yield temporary
        if path.exists() and path.is_dir() != temporary.is_dir():
            kind = "folder" if path.is_dir() else "file"
            raise RmkitError(f"{path} is a {kind} that is there already.", "Give another name, or remove it.")
        if path.is_dir():  # a folder that holds something cannot be replaced in one step
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(workspace, ignore_errors=True)


def check_place(path: Path) -> None:
    """Look whether a file can be written at `path`, before hours of work for it.

    Raises:
        RmkitError: if a folder is there, or a file where its folder would be.
    """
    if path.is_dir():
        raise RmkitError(f"{path} is a folder that is there already.", "Give another name, or remove it.")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RmkitError(f"{path} cannot be written below {above}.", "Give another place.")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented JSON, atomically. Numbers that JSON has no name for (NaN, infinity) become null."""
    write_text(path, json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """A parquet file of the columns, atomically."""
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
