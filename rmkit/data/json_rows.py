"""Rows of JSON files as a `datasets.Dataset`, with every value as it stands in the file.

The reader that `datasets` ships turns texts that look like dates into dates, and fails on columns that nobody reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rmkit.errors import RmkitError

_VERSION = 1  # part of the cache's key: raise it when the same file would give other rows
_CHUNK = 1000
_FORM = "Give one object a line, or one list of objects."


def read_json(files: Sequence[Path], wanted: Iterable[str]) -> tuple[Any, list[str]]:
    """Read .json and .jsonl files, one after the other: each a list of objects, or one object a line.

    The rows go to Arrow files in the cache of `datasets`, under a hash of their content, and stay on disk.

    Args:
        wanted: the columns to keep. The others may hold anything.

    Returns:
        A `datasets.Dataset` with those of the wanted columns that the files have, and the names of all their columns.

    Raises:
        RmkitError: if a file is not UTF-8 or not JSON, a wanted column holds values of several types or a text that is
            not Unicode, or there are no rows.
    """
    import datasets
    import pyarrow as pa

    wanted = list(dict.fromkeys(wanted))
    names: dict[str, None] = {}
    schema = pa.schema([])
    for file in files:
        for start, some in _slices(_objects(file)):
            names |= dict.fromkeys(name for row in some for name in row)
            rows = [_only(wanted, row) for row in some]
            try:
                schema = pa.unify_schemas([schema, pa.Table.from_pylist(rows).schema], promote_options="permissive")
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                raise _fault(file, start, rows, schema) from None
    if not names:
        raise RmkitError(f"{files[0]} holds no rows.", "Give a file with preference pairs.")
    columns = [name for name in wanted if name in names]
    if not columns:
        return datasets.Dataset.from_dict({}), list(names)
    key = json.dumps([_VERSION, columns, [_digest(file) for file in files]])
    made = datasets.Dataset.from_generator(
        _kept,
        features=datasets.Features.from_arrow_schema(pa.schema([schema.field(name) for name in columns])),
        gen_kwargs={"files": tuple(files), "columns": tuple(columns)},  # lists would be taken for shards
        fingerprint=hashlib.sha256(key.encode()).hexdigest(),
    )
    return made, list(names)


def _kept(files: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    return (_only(columns, row) for file in files for row in _objects(file))


def _only(columns: Sequence[str], row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in columns}


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    import fsspec

    number = -1
    try:
        # "\n" only, since texts may hold other line separators
        with fsspec.open(str(file), "rt", compression="infer", encoding="utf-8-sig", newline="\n") as lines:
            start = next((line.lstrip() for line in lines if line.strip()), "")
            lines.seek(0)
            rows = _parsed(lines.read()) if start.startswith("[") else map(_parsed, filter(str.strip, lines))
            for number, row in enumerate(rows):
                if not isinstance(row, dict):
                    raise RmkitError(f"{file}: row {number} is {str(row)[:40]!r}, not an object.", _FORM)
                yield row
    except UnicodeDecodeError:
        raise RmkitError(f"{file} holds text that is not UTF-8.", "Convert the file to UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise RmkitError(f"{file} is not JSON (after {number + 1} whole rows): {error}.", _FORM) from None


def _parsed(text: str) -> Any:
    return json.loads(text, strict=False, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)} is given twice")
    return made


def _slices(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Rows, many at a time, each time with the number of the first."""
    import itertools

    rows = iter(rows)
    start = 0
    while some := list(itertools.islice(rows, _CHUNK)):
        yield start, some
        start += len(some)


def _fault(file: Path, start: int, rows: Sequence[dict[str, Any]], schema: Any) -> RmkitError:
    """What is wrong with rows that Arrow does not take; `schema` is that of the rows before them."""
    import pyarrow as pa

    for number, row in enumerate(rows, start):
        for name, value in row.items():
            where = f"{file}: row {number}, column {name}"
            try:
                found = pa.Table.from_pylist([{name: value}]).schema
                schema = pa.unify_schemas([schema, found], promote_options="permissive")
            except UnicodeEncodeError:
                return RmkitError(f"{where} holds half of a surrogate pair, which is no text.", "Mend the escape.")
            except OverflowError:
                return RmkitError(f"{where} holds a number of over 64 bits.", "Put quotes around it, as text.")
            except pa.ArrowException:
                return RmkitError(
                    f"{where} holds {type(value).__name__}, unlike the rows before it.",
                    "Give every row a value of the same type there.",
                )
    return RmkitError(f"{file} cannot be read as a table.", "Give every column values of one type.")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
