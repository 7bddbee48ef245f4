"""A preference pair, and sets of them. Knows nothing of models or tokenizers.

Rows that cannot be used are an error or are counted, never changed silently.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from rmkit.data.rows import Where, iter_rows, load_rows, match_rows
from rmkit.errors import RmkitError

COLUMNS = ("prompt", "chosen", "rejected")
_CHUNK = 1000


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
    """Pairs that stay on disk in a `datasets.Dataset` and are created on access.

    Args:
        rows: validated rows with the columns of pairs.
        kept: [pairs] the numbers of the rows to use, ascending.
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
            return self._read(self._kept[[at]])[0]
        return self._read(self._kept[at])

    def __iter__(self) -> Iterator[PreferencePair]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]

    def _read(self, numbers: NDArray[np.int64]) -> list[PreferencePair]:
        rows = iter_rows(self._rows.select(numbers))
        return [_pair(index, row) for index, row in zip(self._index[numbers].tolist(), rows, strict=True)]


@dataclass(frozen=True)
class PreferenceData:
    """A set of usable pairs and the counts of the others.

    Attributes:
        name: the set's name, also of its files in a run directory.
        pairs: the usable pairs, in the order of the source.
        dropped: reason -> number of pairs left out.
        split: the split that was loaded; None if the source has no splits.
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
    """sha256 over the texts and margins of pairs, in order. Used in run.json and in the card of a prepared set."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps([pair.prompt, pair.chosen, pair.rejected, pair.margin]).encode())
    return digest.hexdigest()


def dataset_pairs(rows: Any) -> PairRows:
    """The rows of a `datasets.Dataset` as pairs, without validation and without loading them into memory."""
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
    """Load and validate a set of preference pairs.

    Args:
        path: below `root` (or the working directory): a save_to_disk folder, a folder of parquet or jsonl files, or one
            .parquet, .jsonl or .json file; otherwise a hub id.
        split: the split to load, if the source has splits.
        where: keep the rows that have these values in these columns.
        limit: use only the first N of these rows.
        identical: whether pairs with two identical responses are dropped or are an error.

    Raises:
        RmkitError: if the source, the split or a column is missing, a column has the wrong type, a text is empty, a
            margin is not a finite number, or no pair is left.
    """
    name = name or Path(path).name
    rows, loaded_split = load_rows(
        path, split=split, root=root, subset=subset, revision=revision, where=where, columns=COLUMNS
    )
    index = match_rows(rows, where or {}, path)[:limit]
    rows = rows.select(index)
    rows = rows.select_columns([column for column in (*COLUMNS, "margin") if column in rows.column_names])
    pairs = (parse_row(path, number, row) for number, row in zip(index.tolist(), iter_rows(rows), strict=True))
    try:
        kept, dropped = _find_usable(pairs, name, identical)
        return PreferenceData(name, PairRows(rows, np.array(kept), index), dropped, loaded_split)
    except UnicodeDecodeError:  # Arrow decodes bytes only when a row is read
        raise RmkitError(f"{path} holds text that is not UTF-8.", "Convert the file to UTF-8.") from None


def drop_identical(
    pairs: Iterable[PreferencePair], name: str, identical: Literal["drop", "error"] = "drop"
) -> PreferenceData:
    """A set without the pairs whose two responses are the same text.

    Raises:
        RmkitError: if `identical` is `error` and there is such a pair, if only some pairs have a margin, or if no pair
            is left.
    """
    pairs = list(pairs)
    kept, dropped = _find_usable(pairs, name, identical)
    return PreferenceData(name, [pairs[number] for number in kept], dropped)


def parse_row(path: str, index: int, row: Mapping[str, Any]) -> PreferencePair:
    """The pair of a row.

    Raises:
        RmkitError: naming `path`, the row and the column, if a text is missing or empty or the margin is not a number.
    """
    for column in COLUMNS:
        text = row[column]
        if not isinstance(text, str):
            raise RmkitError(
                f"{path}: row {index}, column {column} holds {type(text).__name__}, not text.",
                "Convert it to plain text: one prompt, one chosen and one rejected response per row.",
            )
        if not text.strip():
            raise RmkitError(f"{path}: row {index} has an empty {column}.", "Remove the row or fill it in.")
    margin = row.get("margin")
    is_number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if margin is not None and not (is_number and math.isfinite(margin)):
        raise RmkitError(
            f"{path}: row {index} has the margin {margin!r}, not a finite number.", "Fix it or drop the column margin."
        )
    return _pair(index, row)


def _find_usable(
    pairs: Iterable[PreferencePair], name: str, identical: Literal["drop", "error"]
) -> tuple[list[int], dict[str, int]]:
    """The numbers of the pairs that `drop_identical` keeps, and how many it drops by reason, in one pass."""
    kept: list[int] = []
    same = with_margin = 0
    without_margin = None
    for number, pair in enumerate(pairs):
        if pair.chosen != pair.rejected:
            kept.append(number)
            if pair.margin is not None:
                with_margin += 1
            elif without_margin is None:
                without_margin = pair.index
        elif identical == "error":
            raise RmkitError(
                f"{name}: row {pair.index} has the same text as chosen and as rejected.",
                "Remove such rows, or set data.identical: drop.",
            )
        else:
            same += 1
    if not kept:
        raise RmkitError(
            f"{name} has no usable pair" + (f" ({same} have identical responses)." if same else "."),
            "Check the path, the split and the columns.",
        )
    if with_margin and without_margin is not None:  # pandas writes NaN as null
        raise RmkitError(
            f"{name}: row {without_margin} has no margin, but others have one.",
            "Fill it in or drop the column margin.",
        )
    return kept, {"identical responses": same} if same else {}


def _pair(index: int, row: Mapping[str, Any]) -> PreferencePair:
    margin = row.get("margin")
    return PreferencePair(
        row["prompt"], row["chosen"], row["rejected"], index, None if margin is None else float(margin)
    )
