"""A preference pair, and sets of them from a hub id, a save_to_disk folder, parquet, jsonl or json.

Knows nothing of models or tokenizers. What cannot be used is an error or is counted, never changed silently.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from rmkit.data.json_rows import read_json
from rmkit.errors import RmkitError, Unreachable

Scalar = bool | int | float | str | None
Where = Mapping[str, Scalar | Sequence[Scalar]]
"""column -> the value that rows must have there, or a list of which they must have one."""

COLUMNS = ("prompt", "chosen", "rejected")
_NO_ROWS = ("StopIteration", "corresponds to no data", "BatchSize must be greater than 0")
"""How `datasets` fails on files without rows."""
_CHUNK = 1000
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


@dataclass(frozen=True)
class PreferencePair:
    """A prompt x, a chosen response y+ and a rejected response y-.

    `index` is the row in the source (in the split, over all its files), whatever `where` and `limit` leave out.
    """

    prompt: str
    chosen: str
    rejected: str
    index: int = 0
    margin: float | None = None


class PairRows(Sequence[PreferencePair]):
    """Pairs that stay where a `datasets.Dataset` has them, on disk, and are made when they are asked for.

    Args:
        rows: with the columns of pairs, checked already.
        kept: [pairs] the numbers of the rows that count, ascending.
        index: [rows] the row of each in the source.
    """

    def __init__(self, rows: Any, kept: NDArray[np.int64], index: NDArray[np.int64]):
        self._rows, self._kept, self._index = rows, kept, index

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, at: int) -> PreferencePair: ...

    @overload
    def __getitem__(self, at: slice) -> list[PreferencePair]: ...

    def __getitem__(self, at: int | slice) -> PreferencePair | list[PreferencePair]:
        if isinstance(at, int):
            return self._made(self._kept[[at]])[0]
        return self._made(self._kept[at])

    def __iter__(self) -> Iterator[PreferencePair]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]

    def _made(self, numbers: NDArray[np.int64]) -> list[PreferencePair]:
        rows = _in_slices(self._rows.select(numbers))
        return [_pair(index, row) for index, row in zip(self._index[numbers].tolist(), rows, strict=True)]


@dataclass(frozen=True)
class PreferenceData:
    """A set of pairs, with what was left out on the way.

    Attributes:
        name: the set's name, also that of its files in a run directory.
        pairs: the usable pairs, in the order of the source.
        dropped: reason -> number of pairs left out.
        split: the split that was taken; None if the source has no splits.
    """

    name: str
    pairs: Sequence[PreferencePair]
    dropped: dict[str, int] = field(default_factory=dict)
    split: str | None = None

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the usable pairs."""
        return fingerprint(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PreferencePair]:
        return iter(self.pairs)


def fingerprint(pairs: Iterable[PreferencePair]) -> str:
    """sha256 over the texts and margins of pairs, in their order; the same in run.json and in a prepared set's card."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps([pair.prompt, pair.chosen, pair.rejected, pair.margin]).encode())
    return digest.hexdigest()


def dataset_pairs(rows: Any) -> PairRows:
    """The pairs of a `datasets.Dataset` that has the columns of pairs, not checked and left on disk."""
    numbers = np.arange(len(rows))
    columns = [column for column in (*COLUMNS, "margin") if column in rows.column_names]
    return PairRows(rows.select_columns(columns), numbers, numbers)


def load_preferences(
    path: str,
    *,
    name: str | None = None,
    split: str = "test",
    root: Path | str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    where: Where | None = None,
    limit: int | None = None,
    identical: Literal["drop", "error"] = "drop",
) -> PreferenceData:
    """Load and check a set of preference pairs.

    Args:
        path: below `root` (or the working directory): a save_to_disk folder, a folder of parquet or jsonl files, or one
            .parquet, .jsonl or .json file; otherwise a hub id.
        split: the split to take, where the source has splits.
        where: keep the rows that have these values in these columns.
        limit: only the first so many of these rows.
        identical: what to do with pairs whose responses are the same text.

    Raises:
        RmkitError: if the source or split is missing, a column is missing or of another type, a text is empty, a margin
            is not a finite number, or nothing is left.
    """
    name = name or Path(path).name
    rows, taken = load_rows(path, split=split, root=root, subset=subset, revision=revision, where=where)
    index = matching(rows, where or {}, path)[:limit]
    rows = rows.select(index)
    rows = rows.select_columns([column for column in (*COLUMNS, "margin") if column in rows.column_names])
    pairs = (row_pair(path, number, row) for number, row in zip(index.tolist(), _in_slices(rows), strict=True))
    try:
        kept, dropped = _usable(pairs, name, identical)
        return PreferenceData(name, PairRows(rows, np.array(kept), index), dropped, taken)
    except UnicodeDecodeError:  # Arrow looks at the bytes only when a row is read
        raise RmkitError(f"{path} holds text that is not UTF-8.", "Convert the file to UTF-8.") from None


def load_rows(
    path: str,
    *,
    split: str = "test",
    root: Path | str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    where: Where | None = None,
    columns: Sequence[str] = COLUMNS,
) -> tuple[Any, str | None]:
    """All rows of a source as a `datasets.Dataset`, and the split that they are, None if the source has no splits.

    Arguments as of `load_preferences`; `where` leaves nothing out here (see `matching`), its columns are loaded too.

    Raises:
        RmkitError: if the source, the split or one of `columns` is missing.
    """
    needed = list(dict.fromkeys([*columns, *(where or {})]))
    local = Path(root) if root is not None else None
    rows, names, taken = _rows(path, split, local, subset, revision, [*needed, "margin"])
    for column in needed:
        if column not in names:
            raise RmkitError(
                f"{path} has no column {column}; it has {', '.join(names) or 'none'}.",
                f"Give the columns {', '.join(columns)}." if column in columns else "Name one of these in where.",
            )
    return rows, taken


def matching(rows: Any, where: Where, path: str) -> NDArray[np.int64]:
    """The numbers [rows] of the rows that have the values of `where`, ascending.

    Text equals text, a number a number (1 is 1.0), true and false themselves, null what is missing; nothing else.

    Raises:
        RmkitError: naming what is there, if no row has a value, or the column holds values of another kind.
    """
    numbers = np.arange(len(rows))
    for column, wanted in where.items():
        found = rows.select(numbers)[column][:]
        keep = np.zeros(len(numbers), dtype=bool)
        values: Sequence[Any] = wanted if isinstance(wanted, list | tuple) else [wanted]
        for value in values:
            same = [_kind(each) == _kind(value) and each == value for each in found]
            if not any(same):
                raise _no_row(path, column, value, found)
            keep |= same
        numbers = numbers[keep]
    return numbers


def _kind(value: Any) -> str:
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


def _no_row(path: str, column: str, value: Scalar, found: Sequence[Any]) -> RmkitError:
    """What is wrong with a value of `where` that no row has."""
    asked = f"{column} {_as_yaml(value)}"
    present = [each for each in found if each is not None]
    if value is not None and present and _kind(value) not in map(_kind, present):
        kind, example = _kind(present[0]), _as_yaml(present[0])
        return RmkitError(
            f"{path}: where asks for {asked}, {_kind(value)}, but the column holds {kind}: {_cut(example)}, say.",
            f"Write the value as {kind}, for example {column}: {example}."
            if kind in ("text", "a number", "true or false")
            else "Choose rows by a column of texts, numbers or true and false.",
        )
    there = ", ".join(map(_cut, list(dict.fromkeys(map(_as_yaml, found)))[:12]))
    return RmkitError(f"{path} has no row with {asked}; it has {there}.", "Name one of these.")


def _as_yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)  # JSON is YAML


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def drop_identical(
    pairs: Iterable[PreferencePair], name: str, identical: Literal["drop", "error"] = "drop"
) -> PreferenceData:
    """A set without the pairs whose two responses are the same text.

    Raises:
        RmkitError: if `identical` is `error` and there is such a pair, if only some pairs have a margin, or if no pair
            is left.
    """
    made = list(pairs)
    kept, dropped = _usable(made, name, identical)
    return PreferenceData(name, [made[number] for number in kept], dropped)


def _usable(
    pairs: Iterable[PreferencePair], name: str, identical: Literal["drop", "error"]
) -> tuple[list[int], dict[str, int]]:
    """The numbers of the pairs that `drop_identical` keeps, and how many it drops by reason; one pair at a time."""
    kept, same, with_margin, without = [], 0, 0, None
    for number, pair in enumerate(pairs):
        if pair.chosen != pair.rejected:
            kept.append(number)
            with_margin += pair.margin is not None
            without = pair.index if pair.margin is None and without is None else without
        elif identical == "error":
            raise RmkitError(
                f"{name}: row {pair.index} has the same text as chosen and as rejected.",
                "Remove such rows, or set data.identical: drop.",
            )
        else:
            same += 1
    if not kept:
        raise RmkitError(
            f"{name} holds no usable pair" + (f" ({same} have identical responses)." if same else "."),
            "Check the path, the split and the columns.",
        )
    if with_margin and without is not None:  # pandas, for one, writes NaN as null
        raise RmkitError(
            f"{name}: row {without} has no margin, but others have one.", "Fill it in or drop the column margin."
        )
    return kept, {"identical responses": same} if same else {}


def row_pair(path: str, index: int, row: Mapping[str, Any]) -> PreferencePair:
    """The pair of a row.

    Raises:
        RmkitError: naming `path`, the row and the column, if a text is none or empty or the margin is no number.
    """
    for column in COLUMNS:
        text = row[column]
        if not isinstance(text, str):
            raise RmkitError(
                f"{path}: row {index}, column {column} holds {type(text).__name__}, not text.",
                "Convert it to plain text: one prompt and one response each.",
            )
        if not text.strip():
            raise RmkitError(f"{path}: row {index} has an empty {column}.", "Remove the row or fill it in.")
    margin = row.get("margin")
    is_number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if margin is not None and not (is_number and math.isfinite(margin)):
        raise RmkitError(
            f"{path}: row {index} has the margin {margin!r}, not a finite number.", "Mend it or drop the column margin."
        )
    return _pair(index, row)


def _pair(index: int, row: Mapping[str, Any]) -> PreferencePair:
    margin = row.get("margin")
    return PreferencePair(
        row["prompt"], row["chosen"], row["rejected"], index, None if margin is None else float(margin)
    )


def _in_slices(rows: Any) -> Iterator[dict[str, Any]]:
    """The rows of a `datasets.Dataset`, read many at once: one by one takes ten times as long."""
    for start in range(0, len(rows), _CHUNK):
        columns = rows[start : start + _CHUNK]
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _rows(
    path: str, split: str, root: Path | None, subset: str | None, revision: str | None, wanted: Sequence[str]
) -> tuple[Any, list[str], str | None]:
    """The rows of a source as a `datasets.Dataset`, the names of all its columns, and its split, if it has splits.

    Args:
        wanted: columns without which rows may come; JSON files may hold anything in the others.
    """
    import datasets

    local = ((root or Path()) / path).absolute()
    if not local.exists():
        is_file = local.suffix in (".parquet", ".jsonl", ".json")
        if _HUB_ID.match(path) and not is_file and (root is None or path.count("/") == 1):
            return _of_split(_from_hub(path, subset, revision), split, path)
        raise RmkitError(f"{local} does not exist.", "Check data.root and the path, or give a hub id (owner/name).")
    shown, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it would log is in the error that it raises
    try:
        if local.suffix in (".jsonl", ".json") and local.is_file():
            return *read_json([local], wanted), None
        if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            loaded = datasets.load_from_disk(str(local))
        elif local.suffix == ".parquet":
            loaded = datasets.Dataset.from_parquet(str(local))
        elif local.is_dir():
            files = _files_of_split(local, split) if subset is None else {}
            builder = datasets.load_dataset_builder(**(files or {"path": str(local), "name": subset}))
            if builder.name == "json":
                files_of = {str(each): paths for each, paths in builder.config.data_files.items()}
                _refuse_missing_split(files_of, split, str(local))
                return *read_json([Path(file) for file in files_of[split]], wanted), split
            if builder.name == "csv":  # pandas would make numbers of texts that look like some
                raise RmkitError(
                    f"{local} holds CSV files, in which texts and numbers look alike.",
                    "Convert them to .jsonl or .parquet.",
                )
            builder.download_and_prepare()
            loaded = builder.as_dataset()
        else:
            raise RmkitError(f"{local} is of no known kind.", "Give a save_to_disk folder, .parquet, .jsonl or .json.")
    except RmkitError:
        raise
    except Exception as error:  # whatever the readers raise on a broken file
        cause = _first_line(error)
        if any(each in cause for each in _NO_ROWS):
            raise RmkitError(f"{local} holds no rows.", "Give a file with preference pairs.") from None
        raise RmkitError(
            f"{local} cannot be read: {cause}", "Check that the file is whole and of the kind it is named."
        ) from None
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()
    return _of_split(loaded, split, str(local))


def _files_of_split(folder: Path, split: str) -> dict[str, Any]:
    """The files of a folder that are named after a split (filtered.jsonl, data/test_prefs-00000-of-00001.parquet).

    `datasets` finds such files only for the splits whose names it knows.
    """
    for kind, suffix in (("parquet", ".parquet"), ("json", ".jsonl"), ("json", ".json")):
        files = [
            str(file)
            for pattern in (f"{split}{suffix}", f"{split}-[0-9]*{suffix}")  # whole, or in parts
            for file in sorted(folder.rglob(pattern))
        ]
        if len({Path(file).parent for file in files}) > 1:
            raise RmkitError(
                f"{folder} holds several sets: {files[0]} and {files[-1]}, say.", "Give the folder of one."
            )
        if files:
            return {"path": kind, "data_files": {split: files}}
    return {}


def _from_hub(path: str, subset: str | None, revision: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, name=subset, revision=revision)
    except Exception as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise Unreachable(
            f"{path} is neither a local file nor a data set that the hub gives{offline}: {_first_line(error)}",
            "Check the spelling, the network and the access token, or give a local path.",
        ) from None


def _of_split(loaded: Any, split: str, path: str) -> tuple[Any, list[str], str | None]:
    """What `_rows` gives, of rows or of splits of them."""
    taken = None
    if hasattr(loaded, "keys"):
        _refuse_missing_split(loaded, split, path)
        loaded, taken = loaded[split], split
    return loaded, list(loaded.column_names), taken


def _refuse_missing_split(splits: Iterable[str], split: str, path: str) -> None:
    if split not in splits:
        raise RmkitError(f"{path} has no split {split}; it has {', '.join(splits)}.", "Name one of these as the split.")


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # `datasets` wraps what went wrong
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
