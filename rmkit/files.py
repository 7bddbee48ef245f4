"""Write text, JSON, tables and folders atomically; find rmkit's cache folder; hash files. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rmkit.errors import RmkitError


def rmkit_cache() -> Path:
    """The folder for what can be recomputed: `$RMKIT_CACHE`, else ~/.cache/rmkit."""
    return Path(os.environ.get("RMKIT_CACHE") or Path.home() / ".cache" / "rmkit").expanduser()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` that replaces it if the block succeeds, and is removed otherwise.

    A folder replaces a folder, a file replaces a file.

    Raises:
        RmkitError: if `path` cannot be written, or is a folder where a file is written (or the reverse).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise RmkitError(f"{path} cannot be written: {error}.", "Choose another place.") from None
    temporary, old = workspace / path.name, workspace / "old"
    try:
        yield temporary
        if path.exists() and path.is_dir() != temporary.is_dir():
            existing = "folder" if path.is_dir() else "file"
            raise RmkitError(f"{path} already exists as a {existing}.", "Choose another name, or remove it.")
        if path.is_dir():  # a folder with content cannot be replaced in one step
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(workspace, ignore_errors=True)


def link_folder(source: Path, target: Path) -> None:
    """Copy a folder, by hard links where the file system has them; a folder at `target` is replaced."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link_file)


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def check_place(path: Path) -> None:
    """Check that a file can be written at `path`, before hours of work for it.

    Raises:
        RmkitError: if `path` is a folder, or its parent is a file or not writable.
    """
    if path.is_dir():
        raise RmkitError(f"{path} already exists as a folder.", "Choose another name, or remove it.")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise RmkitError(f"{path} cannot be written below {above}.", "Choose another place.")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON atomically. NaN and infinity become null, since JSON lacks them."""
    write_text(path, json.dumps(_json_value(content), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """Write the columns as a parquet file atomically."""
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def sha256_of_file(path: Path) -> str:
    """sha256 of a file. Reading weights takes a while, so `rmkit_cache()` keeps it until the file changes."""
    status = path.stat()
    key = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    cached = rmkit_cache() / "digests" / hashlib.sha256(json.dumps(key).encode()).hexdigest()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        digest = cached.read_text(encoding="ascii")
        if len(digest) == 64:
            return digest
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with contextlib.suppress(RmkitError, OSError):  # a read-only cache only costs time
        write_text(cached, digest)
    return digest


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
