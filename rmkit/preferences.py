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

from rmkit.errors import RmkitError

COLUMNS = ("prompt", "chosen", "rejected")
_NO_ROWS = ("StopIteration", "corresponds to no data", "BatchSize must be greater than 0")
"""How `datasets` fails on json, jsonl and parquet files without rows."""
_AT_ONCE = 1000
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


@dataclass(frozen=True)
class PreferencePair:
    """A prompt x, a chosen response y+ and a rejected response y-; `index` is the row in the source."""

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
    """

    def __init__(self, rows: Any, kept: NDArray[np.int64]):
        self._rows, self._kept = rows, kept

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
        for start in range(0, len(self), _AT_ONCE):
            yield from self[start : start + _AT_ONCE]

    def _made(self, numbers: NDArray[np.int64]) -> list[PreferencePair]:
        rows = _in_slices(self._rows.select(numbers))
        return [_pair(number, row) for number, row in zip(numbers.tolist(), rows, strict=True)]


@dataclass(frozen=True)
class PreferenceData:
    """A set of pairs, with what was left out on the way.

    Attributes:
        name: the set's name, also that of its files in a run directory.
        pairs: the usable pairs, in the order of the source.
        dropped: reason -> number of pairs left out.
        fingerprint: sha256 over the texts of the usable pairs.
    """

    name: str
    pairs: Sequence[PreferencePair]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(json.dumps([pair.prompt, pair.chosen, pair.rejected, pair.margin]).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PreferencePair]:
        return iter(self.pairs)


def load_preferences(
    path: str,
    *,
    name: str | None = None,
    split: str = "test",
    root: Path | str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    where: Mapping[str, str] | None = None,
    limit: int | None = None,
    identical: Literal["drop", "error"] = "drop",
) -> PreferenceData:
    """Load and check a set of preference pairs.

    Args:
        path: below `root` (or the working directory): a save_to_disk folder, a folder of parquet or jsonl files, or one
            .parquet, .jsonl or .json file; otherwise a hub id.
        split: the split to take, where the source has splits.
        where: keep the rows that have these values in these columns.
        limit: only the first so many rows.
        identical: what to do with pairs whose responses are the same text.

    Raises:
        RmkitError: if the source or split is missing, a column is missing or of another type, a text is empty, a margin
            is not a finite number, or nothing is left.
    """
    name = name or Path(path).name
    rows = load_rows(path, split=split, root=root, subset=subset, revision=revision, where=where)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    rows = rows.select_columns([column for column in (*COLUMNS, "margin") if column in rows.column_names])
    pairs = (row_pair(path, index, row) for index, row in enumerate(_in_slices(rows)))
    try:
        kept, dropped = _usable(pairs, name, identical)
        return PreferenceData(name, PairRows(rows, np.array(kept)), dropped)
    except UnicodeDecodeError:  # Arrow looks at the bytes only when a row is read
        raise RmkitError(f"{path} holds text that is not UTF-8.", "Convert the file to UTF-8.") from None


def load_rows(
    path: str,
    *,
    split: str = "test",
    root: Path | str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    where: Mapping[str, str] | None = None,
    columns: Sequence[str] = COLUMNS,
) -> Any:
    """The rows of a source as a `datasets.Dataset`; arguments as of `load_preferences`.

    Raises:
        RmkitError: if the source, the split or one of `columns` is missing, or no row is as `where` asks.
    """
    rows = _rows(path, split, Path(root) if root is not None else None, subset, revision)
    for column in (*columns, *(where or {})):
        if column not in rows.column_names:
            raise RmkitError(
                f"{path} has no column {column}; it has {', '.join(rows.column_names) or 'none'}.",
                f"Give the columns {', '.join(columns)}.",
            )
    for column, value in (where or {}).items():
        values = rows[column]
        keep = [number for number, each in enumerate(values) if each == value]
        if not keep:
            found = ", ".join(sorted({str(each) for each in values})[:12])
            raise RmkitError(f"{path} has no row with {column} {value}; it has {found}.", "Name one of these.")
        rows = rows.select(keep)
    return rows


def checked(pairs: Iterable[PreferencePair], name: str, identical: Literal["drop", "error"] = "drop") -> PreferenceData:
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
    """The numbers of the pairs that `checked` keeps, and how many it leaves out by reason. Holds one pair at a time."""
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
    for start in range(0, len(rows), _AT_ONCE):
        columns = rows[start : start + _AT_ONCE]
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _rows(path: str, split: str, root: Path | None, subset: str | None, revision: str | None) -> Any:
    """The rows of a source as a `datasets.Dataset`."""
    import datasets

    local = (root or Path()) / path
    if (
        not local.exists()
        and root is None
        and _HUB_ID.match(path)
        and not path.endswith((".parquet", ".jsonl", ".json"))
    ):
        return _from_hub(path, split, subset, revision)
    if not local.exists() and not (root is not None and path.count("/") == 1 and _HUB_ID.match(path)):
        raise RmkitError(f"{local} does not exist.", "Check data.root and the path, or give a hub id (owner/name).")
    if not local.exists():
        return _from_hub(path, split, subset, revision)
    shown, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it would log is in the error that it raises
    try:
        if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            loaded = datasets.load_from_disk(str(local))
        elif local.suffix == ".parquet":
            loaded = datasets.Dataset.from_parquet(str(local))
        elif local.suffix in (".jsonl", ".json"):
            loaded = datasets.Dataset.from_json(str(local))
        elif local.is_dir():
            files = _files_of_split(local, split) if subset is None else {}
            loaded = datasets.load_dataset(**files) if files else datasets.load_dataset(str(local), name=subset)
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
    return _split_of(loaded, split, str(local))


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


def _from_hub(path: str, split: str, subset: str | None, revision: str | None) -> Any:
    import datasets

    try:
        return _split_of(datasets.load_dataset(path, name=subset, revision=revision), split, path)
    except RmkitError:
        raise
    except Exception as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise RmkitError(
            f"{path} is neither a local file nor a data set that the hub gives{offline}: {_first_line(error)}",
            "Check the spelling, the network and the access token, or give a local path.",
        ) from None


def _split_of(loaded: Any, split: str, path: str) -> Any:
    if not hasattr(loaded, "keys"):
        return loaded
    if split not in loaded:
        raise RmkitError(f"{path} has no split {split}; it has {', '.join(loaded)}.", "Name one of these as the split.")
    return loaded[split]


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:  # `datasets` wraps what went wrong
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
