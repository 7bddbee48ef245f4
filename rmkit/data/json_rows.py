"""Rows of JSON files as a `datasets.Dataset`, with every value unchanged.

The reader of `datasets` turns texts that look like dates into dates, and fails on columns that are not needed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rmkit.errors import RmkitError

_VERSION = 1  # part of the cache key: increase it when the same file gives other rows
_CHUNK = 1000
_FORM = "Give one object per line, or one list of objects."


def read_json(files: Sequence[Path], choose: Callable[[list[str]], Iterable[str]]) -> tuple[Any, list[str]]:
    """Read .json and .jsonl files, concatenated. A file is a list of objects, or has one object per line.

    The rows are written to Arrow files in the cache of `datasets`, under a hash of their content, and stay on disk.

    Args:
        choose: the names of all columns -> the columns to keep. The others may hold anything.

    Returns:
        A `datasets.Dataset` with the wanted columns that the files have, and the names of all their columns.

    Raises:
        RmkitError: if a file is not UTF-8 or not JSON, a wanted column holds values of several types or a text that is
            not Unicode, or there are no rows.
    """
    import datasets
    import pyarrow as pa

    names, _ = _infer_schema(files, [])
    if not names:
        raise RmkitError(f"{files[0]} holds no rows.", "Give a file with preference pairs.")
    columns = [name for name in dict.fromkeys(choose(names)) if name in names]
    if not columns:
        return datasets.Dataset.from_dict({}), names
    _, schema = _infer_schema(files, columns)
    key = json.dumps([_VERSION, columns, [_digest(file) for file in files]])
    rows = datasets.Dataset.from_generator(
        _iter_rows,
        features=datasets.Features.from_arrow_schema(pa.schema([schema.field(name) for name in columns])),
        gen_kwargs={"files": tuple(files), "columns": tuple(columns)},  # `datasets` takes lists for shards
        fingerprint=hashlib.sha256(key.encode()).hexdigest(),
    )
    return rows, names


def first_columns(file: Path) -> set[str]:
    """The columns of the first rows of a file.

    Raises:
        RmkitError: as `read_json`.
    """
    return {name for row in itertools.islice(_iter_objects(file), _CHUNK) for name in row}


def _infer_schema(files: Sequence[Path], wanted: Sequence[str]) -> tuple[list[str], Any]:
    """The names of all columns, and the Arrow schema of the wanted ones."""
    import pyarrow as pa

    names: dict[str, None] = {}
    schema = pa.schema([])
    for file in files:
        for start, objects in _chunks(_iter_objects(file)):
            names |= dict.fromkeys(name for row in objects for name in row)
            rows = [_select(wanted, row) for row in objects]
            try:
                schema = pa.unify_schemas([schema, pa.Table.from_pylist(rows).schema], promote_options="permissive")
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                raise _schema_error(file, start, rows, schema) from None
    return list(names), schema


def _iter_rows(files: Sequence[Path], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    return (_select(columns, row) for file in files for row in _iter_objects(file))


def _select(columns: Sequence[str], row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in columns}


def _iter_objects(file: Path) -> Iterator[dict[str, Any]]:
    import fsspec

    number = -1
    try:
        # "\n" only: texts may contain other line separators
        with fsspec.open(str(file), "rt", compression="infer", encoding="utf-8-sig", newline="\n") as lines:
            start = next((line.lstrip() for line in lines if line.strip()), "")
            lines.seek(0)
            rows = _parse(lines.read()) if start.startswith("[") else map(_parse, filter(str.strip, lines))
            for number, row in enumerate(rows):
                if not isinstance(row, dict):
                    raise RmkitError(f"{file}: row {number} is {str(row)[:40]!r}, not an object.", _FORM)
                yield row
    except UnicodeDecodeError:
        raise RmkitError(f"{file} holds text that is not UTF-8.", "Convert the file to UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise RmkitError(f"{file} is not JSON (after {number + 1} complete rows): {error}.", _FORM) from None


def _parse(text: str) -> Any:
    return json.loads(text, strict=False, object_pairs_hook=_parse_object)


def _parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)} occurs twice")
    return parsed


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Chunks of rows, with the number of their first row."""
    rows = iter(rows)
    start = 0
    while chunk := list(itertools.islice(rows, _CHUNK)):
        yield start, chunk
        start += len(chunk)


def _schema_error(file: Path, start: int, rows: Sequence[dict[str, Any]], schema: Any) -> RmkitError:
    """The error for rows that Arrow does not accept; `schema` is the schema of the rows before them."""
    import pyarrow as pa

    for number, row in enumerate(rows, start):
        for name, value in row.items():
            where = f"{file}: row {number}, column {name}"
            try:
                found = pa.Table.from_pylist([{name: value}]).schema
                schema = pa.unify_schemas([schema, found], promote_options="permissive")
            except UnicodeEncodeError:
                return RmkitError(f"{where} holds half of a surrogate pair, which is not text.", "Fix the escape.")
            except OverflowError:
                return RmkitError(f"{where} holds a number of more than 64 bits.", "Quote it, to make it text.")
            except pa.ArrowException:
                return RmkitError(
                    f"{where} holds {type(value).__name__}, unlike the rows before it.",
                    "Give every row a value of the same type in this column.",
                )
    return RmkitError(f"{file} cannot be read as a table.", "Give every column values of a single type.")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
