"""The rows of a source as a `datasets.Dataset`: a hub id, a save_to_disk folder, parquet, jsonl, json or csv.

Nothing here knows which columns make a preference pair; see `rmkit.data.preferences`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmkit.data.json_rows import first_columns, read_json
from rmkit.data.splits import Loaded, SplitRows, load_split
from rmkit.errors import RmkitError, Unreachable, first_line

Scalar = bool | int | float | str | None
Where = Mapping[str, Scalar | Sequence[Scalar]]
"""Column -> the value that a row must have, or a list of accepted values."""

_NO_ROWS = ("StopIteration", "corresponds to no data", "BatchSize must be greater than 0", "Empty CSV file")
"""How `datasets` fails on files without rows."""
_CHUNK = 1000
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_FILES = (".parquet", ".jsonl", ".json", ".csv")
_PART = re.compile(r"[-_]?(?:\d+|\d+-of-\d+)$")
_TRAIN = re.compile(r"(?<![a-z])train(?:ing)?(?![a-z])", re.IGNORECASE)
"""How `datasets` finds the split train in the names of files and folders."""

Choose = Callable[[list[str]], Sequence[str]]
"""The names of all columns of a source -> those that are needed."""


def load_rows(
    path: str,
    *,
    split: str = "test",
    root: Path | str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    where: Where | None = None,
    columns: Sequence[str] | Choose,
) -> Loaded:
    """All rows of the splits of a source that are named, and the numbers of those that their slices keep.

    Args:
        split: a name, slices of it or a sum, see `rmkit.data.splits`. A source without splits is read whole, or sliced.
        path: see `rmkit.data.preferences.load_preferences`.
        where: its columns are loaded too; no row is filtered here (see `match_rows`).
        columns: columns that the source must have, or a function that chooses them from the names of all columns.

    Raises:
        RmkitError: if the source, the split or a column is missing.
    """
    fixed = () if callable(columns) else tuple(columns)

    def choose(names: list[str]) -> list[str]:
        chosen = columns(names) if callable(columns) else [*fixed, "margin"]
        return [*chosen, *(where or {})]

    local = ((Path(root) if root is not None else Path()) / path).absolute()
    if local.exists():
        loaded = load_split(split, lambda name: _load_local(local, name, subset, choose), path)
    elif _HUB_ID.match(path) and local.suffix not in _FILES and (root is None or path.count("/") == 1):
        splits = _load_from_hub(path, subset, revision)
        loaded = load_split(split, lambda name: _take_split(splits, name, path), path)
    else:
        raise RmkitError(f"{local} does not exist.", "Check data.root and the path, or give a hub id (owner/name).")
    if callable(columns):
        columns(loaded.names)  # refuses other formats
    for column in (*fixed, *(where or {})):
        if column not in loaded.names:
            raise RmkitError(
                f"{path} has no column {column}; it has {', '.join(loaded.names) or 'none'}.",
                f"Give the columns {', '.join(fixed)}." if column in fixed else "Name one of these in where.",
            )
    return loaded


def iter_rows(rows: Any) -> Iterator[dict[str, Any]]:
    """The rows of a `datasets.Dataset`, read in chunks: reading them one by one is ten times slower."""
    for start in range(0, len(rows), _CHUNK):
        columns = rows[start : start + _CHUNK]
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Turn off the progress bars and logs of `datasets`; its errors say what it would log."""
    import datasets

    enabled, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if enabled:
            datasets.enable_progress_bars()


# --- where ---------------------------------------------------------------------------------------------------------


def match_rows(loaded: Loaded, where: Where, path: str) -> NDArray[np.int64]:
    """The numbers of the rows of the slice that have the values of `where`, in the order of the slice.

    Values match if they are equal and of one type: text, a number (1 is 1.0), true or false, or null.

    Raises:
        RmkitError: if no row has a value, naming the values there are, or if the column has values of another type.
    """
    numbers = loaded.index
    for column, wanted in where.items():
        found = loaded.rows.select(numbers)[column][:]
        keep = np.zeros(len(numbers), dtype=bool)
        values: Sequence[Any] = wanted if isinstance(wanted, list | tuple) else [wanted]
        for value in values:
            matches = [_type_name(other) == _type_name(value) and other == value for other in found]
            if not any(matches):
                raise _no_match(path, column, value, found)
            keep |= matches
        numbers = numbers[keep]
    return numbers


def limit_rows(numbers: NDArray[np.int64], limit: int | None, seed: int | None = None) -> NDArray[np.int64]:
    """The first `limit` of the numbers [rows], or with a seed as many as `torch.randperm` draws, in their order."""
    if limit is None or limit >= len(numbers):
        return numbers
    if seed is None:
        return numbers[:limit]
    import torch

    drawn = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))[:limit]
    return np.asarray(numbers[np.sort(drawn.numpy())])


def _type_name(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
    return type(value).__name__


def _no_match(path: str, column: str, value: Scalar, found: Sequence[Any]) -> RmkitError:
    """The error for a value of `where` that no row has."""
    condition = f"{column} {_to_yaml(value)}"
    present = [other for other in found if other is not None]
    if value is not None and present and _type_name(value) not in map(_type_name, present):
        type_name, example = _type_name(present[0]), _to_yaml(present[0])
        return RmkitError(
            f"{path}: where has {condition}, {_type_name(value)}, but the column holds {type_name}, such as "
            f"{_shorten(example)}.",
            f"Write the value as {type_name}, for example {column}: {example}."
            if type_name in ("text", "a number", "true or false")
            else "Select rows by a column of text, numbers, or true and false.",
        )
    values = ", ".join(map(_shorten, list(dict.fromkeys(map(_to_yaml, found)))[:12]))
    return RmkitError(f"{path} has no row with {condition}; it has {values}.", "Use one of these values.")


def _to_yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)  # JSON is YAML


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


# --- sources -------------------------------------------------------------------------------------------------------


def _load_local(local: Path, split: str, subset: str | None, choose: Choose) -> SplitRows:
    """Rows of a file or folder.

    Args:
        choose: the columns to load from JSON files, where the others may hold anything.
    """
    import datasets

    with quiet_datasets():
        try:
            if local.suffix in (".jsonl", ".json") and local.is_file():
                return SplitRows(*read_json([local], choose), None)
            if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
                return _take_split(datasets.load_from_disk(str(local)), split, str(local))
            if local.suffix == ".parquet":
                return _take_split(datasets.Dataset.from_parquet(str(local)), split, str(local))
            if local.suffix == ".csv" and local.is_file():
                return _take_split(_read_csv(local), split, str(local))
            if local.is_dir():
                return _load_folder(local, split, subset, choose)
        except RmkitError:
            raise
        except Exception as error:  # the readers raise anything on a damaged file
            cause = first_line(_original(error))
            if any(sign in cause for sign in _NO_ROWS):
                raise RmkitError(f"{local} holds no rows.", "Give a file with preference pairs.") from None
            raise RmkitError(
                f"{local} cannot be read: {cause}", "Check that the file is complete and that its suffix is right."
            ) from None
    raise RmkitError(f"{local}: unsupported file type.", "Give a save_to_disk folder, .parquet, .jsonl, .json or .csv.")


def _read_csv(file: Path) -> Any:
    """The rows of a CSV file, every value a text."""
    import datasets
    import pyarrow as pa
    from pyarrow import csv

    read = csv.ReadOptions(block_size=max(file.stat().st_size, 1))  # a row may not be longer than a block
    parse = csv.ParseOptions(newlines_in_values=True)
    names = csv.open_csv(file, read, parse).schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RmkitError(f"{file} has two columns {twice}.", "Rename one.")
    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return datasets.Dataset(csv.read_csv(file, read, parse, convert))


def _load_folder(folder: Path, split: str, subset: str | None, choose: Choose) -> SplitRows:
    """Rows of a folder of parquet or JSON files."""
    import datasets

    files = _files_of_split(folder, split) if subset is None else {}
    builder = datasets.load_dataset_builder(**(files or {"path": str(folder), "name": subset}))
    files_by_split = {
        str(name): [Path(file) for file in paths] for name, paths in (builder.config.data_files or {}).items()
    }
    if not files and builder.name in ("json", "parquet") and subset is None and split in files_by_split:
        _refuse_unrelated(folder, split, files_by_split[split])
    if builder.name == "json":
        _refuse_missing_split(files_by_split, split, str(folder))
        return SplitRows(*read_json(files_by_split[split], choose), split)
    if builder.name == "csv":  # pandas would turn texts that look like numbers into numbers
        raise RmkitError(
            f"{folder} holds CSV files, in which texts and numbers look alike.",
            "Give one .csv file, whose values are read as texts, or convert them to .jsonl or .parquet.",
        )
    builder.download_and_prepare()
    return _take_split(builder.as_dataset(), split, str(folder))


def _files_of_split(folder: Path, split: str) -> dict[str, Any]:
    """The files of a folder that are named after a split (filtered.jsonl, data/test_prefs-00000-of-00001.parquet).

    `datasets` finds such files only for the splits whose names it knows.
    """
    for builder, suffix in (("parquet", ".parquet"), ("json", ".jsonl"), ("json", ".json")):
        files = [
            str(file)
            for pattern in (f"{split}{suffix}", f"{split}-[0-9]*{suffix}")  # one file, or several parts
            for file in sorted(folder.rglob(pattern))
        ]
        if len({Path(file).parent for file in files}) > 1:
            raise RmkitError(
                f"{folder} holds several sets, such as {files[0]} and {files[-1]}.", "Give the folder of one set."
            )
        if files:
            return {"path": builder, "data_files": {split: files}}
    return {}


def _refuse_unrelated(folder: Path, split: str, files: Sequence[Path]) -> None:
    """Refuse a folder whose files are not one set. Parts of a set have the same name but for their numbers.

    `datasets` takes all files as the split train if no name says train, and only those of one type.
    """
    readme = folder / "README.md"
    if readme.is_file() and "data_files:" in readme.read_text(encoding="utf-8", errors="replace"):
        return  # which names the files of a split
    named = split != "train" or any(_TRAIN.search(str(file.relative_to(folder))) for file in files)
    if not named:
        others = [file for suffix in (".parquet", ".jsonl", ".csv") for file in folder.rglob(f"*{suffix}")]
        files = list(dict.fromkeys([*files, *others]))
    names = sorted(str(file.relative_to(folder)) for file in files)
    if len({_PART.sub("", name.partition(".")[0]) for name in names}) == 1:
        return
    listed = ", ".join([*names[:5], "..."] if len(names) > 5 else names)
    if not named:
        raise RmkitError(
            f"{folder} holds files that are not named as the parts of one set: {listed}.",
            f"Give one of them as the path, or name them {split}-0, {split}-1 and so on.",
        )
    first, *rest = files
    columns = _columns_of(first)
    for file in rest:
        if _columns_of(file) != columns:
            raise RmkitError(
                f"{folder} holds files of the split {split} with different columns, such as {first.name} "
                f"({', '.join(sorted(columns))}) and {file.name} ({', '.join(sorted(_columns_of(file)))}).",
                f"Give one of them as the path: {listed}.",
            )


def _columns_of(file: Path) -> set[str]:
    """The columns of a file; of JSON, those of its first rows."""
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        return {*pq.read_schema(file).names}
    return first_columns(file)


def _load_from_hub(path: str, subset: str | None, revision: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, name=subset, revision=revision)
    except Exception as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise Unreachable(
            f"{path} is not a local file, and the Hub does not provide it{offline}: {first_line(_original(error))}",
            "Check the spelling, the network and the access token, or give a local path.",
        ) from None


def _take_split(loaded: Any, split: str, path: str) -> SplitRows:
    """A split of a `DatasetDict`, or a `Dataset` as a whole."""
    if not hasattr(loaded, "keys"):
        return SplitRows(loaded, list(loaded.column_names), None)
    _refuse_missing_split(loaded, split, path)
    return SplitRows(loaded[split], list(loaded[split].column_names), split)


def _refuse_missing_split(splits: Iterable[str], split: str, path: str) -> None:
    if split not in splits:
        raise RmkitError(f"{path} has no split {split}; it has {', '.join(splits)}.", "Use one of these splits.")


def _original(error: BaseException) -> BaseException:
    """The error that `datasets` has wrapped."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
