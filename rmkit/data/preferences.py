"""A preference pair, and sets of them. Knows nothing of models or tokenizers.

Rows that cannot be used are an error or are counted, never changed silently.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from rmkit.config.recipe import Pairing, Templated
from rmkit.data.conversations import Conversation, Prompt, Response, as_json, contents, parse_prompt
from rmkit.data.formats import Columns, PairFormat, find_columns, recognise
from rmkit.data.ranked import make_pairs
from rmkit.data.ranked_columns import FIELDS as JUDGED_FIELDS
from rmkit.data.ranked_columns import find_judged
from rmkit.data.rows import Where, iter_rows, limit_rows, load_rows, match_rows
from rmkit.data.templated import KNOWN_MARKS, already_applied
from rmkit.errors import RmkitError

COLUMNS = ("prompt", "chosen", "rejected")
_CHUNK = 1000


@dataclass(frozen=True)
class PreferencePair:
    """A prompt x, a chosen response y+ and a rejected response y-.

    The prompt is a text (one user turn) or a conversation, a response a text (one assistant turn) or several turns; see
    `rmkit.data.conversations`.
    `index` is the row in the source (in the split, over all its files), whatever slices, `where` and `limit` leave out.
    Where a row gives several pairs (`PreferenceData.pairs_per_row`), it is row * pairs_per_row + the number of the pair
    in it.
    """

    prompt: Prompt
    chosen: Response
    rejected: Response
    index: int = 0
    margin: float | None = None


class PairRows(Sequence[PreferencePair]):
    """Pairs that stay on disk in a `datasets.Dataset` and are created on access.

    Args:
        rows: validated rows with the columns of pairs.
        kept: [pairs] the numbers of the rows to use, ascending.
        index: [rows] the row of each in the source.
        form: the format of the rows.
    """

    def __init__(self, rows: Any, kept: NDArray[np.int64], index: NDArray[np.int64], form: PairFormat):
        self._rows, self._kept, self._index, self._form = rows, kept, index, form

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

    def select(self, numbers: NDArray[np.int64]) -> PairRows:
        """The pairs of these numbers, also on disk."""
        return PairRows(self._rows, self._kept[numbers], self._index, self._form)

    def _read(self, numbers: NDArray[np.int64]) -> list[PreferencePair]:
        rows = iter_rows(self._rows.select(numbers))
        converted = (
            (index, self._form.convert(index, row))
            for index, row in zip(self._index[numbers].tolist(), rows, strict=True)
        )
        return [_pair(index, row) for index, row in converted if not isinstance(row, str)]


@dataclass(frozen=True)
class PreferenceData:
    """A set of usable pairs and the counts of the others.

    Attributes:
        name: the set's name, also of its files in a run directory.
        pairs: the usable pairs, in the order of the source.
        dropped: reason -> number of pairs left out.
        split: the split that was loaded; None if the source has no splits.
        format: the format that was recognised and the columns that were not used; None for plain texts.
        pairs_per_row: the most pairs that a row of the source can give; index // pairs_per_row is the row.
        templated: what encoding does with texts to which a chat template was already applied.
        places: set and row of every pair by index, for errors, where pairs of several sets are numbered.
    """

    name: str
    pairs: Sequence[PreferencePair]
    dropped: dict[str, int] = field(default_factory=dict)
    split: str | None = None
    format: str | None = None
    pairs_per_row: int = 1
    templated: Templated = "error"
    places: Sequence[str] = ()

    def place(self, pair: PreferencePair) -> str:
        """The set and the row of a pair, for errors."""
        if self.places:
            return f"{self.name} ({self.places[pair.index]})"
        return f"{self.name}: row {pair.index // self.pairs_per_row}"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the usable pairs."""
        return fingerprint(self.pairs)

    def select(self, numbers: NDArray[np.int64]) -> PreferenceData:
        """The set with only the pairs of these numbers, in their order."""
        if isinstance(self.pairs, PairRows):
            return replace(self, pairs=self.pairs.select(numbers))
        return replace(self, pairs=[self.pairs[number] for number in numbers.tolist()])

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PreferencePair]:
        return iter(self.pairs)


def fingerprint(pairs: Iterable[PreferencePair]) -> str:
    """sha256 over the texts and margins of pairs, in order. Used in run.json and in the card of a prepared set."""
    digest = hashlib.sha256()
    for pair in pairs:
        texts = map(as_json, (pair.prompt, pair.chosen, pair.rejected))
        digest.update(json.dumps([*texts, pair.margin]).encode())
    return digest.hexdigest()


def dataset_pairs(rows: Any) -> PairRows:
    """The rows of a `datasets.Dataset` as pairs, without validation and without loading them into memory."""
    numbers = np.arange(len(rows))
    form = PairFormat("the set", find_columns(rows.column_names, {}, "the set"))
    return PairRows(rows.select_columns(form.needed), numbers, numbers, form)


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
    limit_seed: int | None = None,
    identical: Literal["drop", "error"] = "drop",
    columns: Columns | None = None,
    pairing: Pairing | None = None,
    templated: Templated = "error",
) -> PreferenceData:
    """Load and validate a set of preference pairs, in any of the formats of `rmkit.data.formats`.

    Args:
        path: below `root` (or the working directory): a save_to_disk folder, a folder of parquet or jsonl files, or one
            .parquet, .jsonl, .json or .csv file; otherwise a hub id.
        split: the split to load, or slices and sums as `datasets` writes them (`train[:95%]`, `train+test`). A source
            without splits is read whole, or sliced. `where` and `limit` apply to the rows of the slice.
        where: keep the rows that have these values in these columns.
        limit: use only the first N of these rows.
        limit_seed: draw these N rows with this seed instead.
        identical: whether pairs with two identical responses are dropped or are an error.
        columns: field (`FIELDS` of `rmkit.data.formats` and `ranked_columns`) -> column, for other names.
        pairing: which responses become pairs where rows have several, see `rmkit.data.ranked`; default best_worst.
        templated: `error` refuses texts to which a chat template was already applied, as far as their structure shows
            it (`rmkit.data.templated`); `read` leaves them to `rmkit.encoding.templated`; `text` reads them as texts.

    Raises:
        RmkitError: if the source, the split or a column is missing, a column has the wrong type, a text is empty, a
            margin is not a finite number, or no pair is left.
    """
    name, given = name or Path(path).name, columns or {}

    pair_given = {field: column for field, column in given.items() if field not in (*JUDGED_FIELDS, "margin")}

    def choose(names: Sequence[str]) -> list[str]:
        judged = find_judged(names, given, pairing, path)
        if judged is None:
            found = find_columns(names, given, path)
        else:
            found = find_columns(judged.pair_columns(names), pair_given, path) | {"": tuple(judged.columns)}
        return [column for each in found.values() for column in each]

    loaded = load_rows(path, split=split, root=root, subset=subset, revision=revision, where=where, columns=choose)
    rows, names = loaded.rows, loaded.names
    source = index = limit_rows(match_rows(loaded, where or {}, path), limit, limit_seed)
    judged = find_judged(names, given, pairing, path)
    left_out: Mapping[str, int] = {}
    try:
        if judged is None:
            per_row, rows = 1, rows.select(index)
        else:
            made = make_pairs(judged, rows, index)
            per_row, rows, source, index, left_out = made.per_row, made.rows, made.source, made.index, made.dropped
            given = pair_given
        pair_names = names if judged is None else judged.pair_columns(names)
        form = recognise(path, rows, pair_names, given, path.endswith(".csv"), templated)
        rows = rows.select_columns(form.needed)
        converted = (
            (number, form.convert(number, row)) for number, row in zip(source.tolist(), iter_rows(rows), strict=True)
        )
        pairs = (row if isinstance(row, str) else parse_row(path, number, row, templated) for number, row in converted)
        kept, dropped = _find_usable(pairs, name, identical, left_out)
        recognised = form.description
        if judged is not None:
            recognised = f"{made.description}, {recognised or 'standard'}"
            if "margin" in names and not judged.margin:
                recognised += ", margin is not used"
        if templated == "read":
            recognised = f"{recognised or 'standard'}, texts with a chat template are read back into turns"
        kept_rows = PairRows(rows, np.array(kept), index, form)
        return PreferenceData(name, kept_rows, dropped, loaded.split, recognised, per_row, templated)
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


def parse_row(path: str, index: int, row: Mapping[str, Any], templated: Templated = "error") -> PreferencePair:
    """The pair of a row.

    Raises:
        RmkitError: naming `path`, the row and the column, if a text is missing or empty, the margin is not a number, or
            `templated` is `error` and a chat template was already applied to a text.
    """
    for column in COLUMNS:
        text = row[column]
        if column == "prompt" and isinstance(text, list | tuple | Conversation):
            parse_prompt(text, f"{path}: row {index}, the prompt")
            continue
        if isinstance(text, tuple):  # turns of a response, which the format has checked
            continue
        if not isinstance(text, str):
            raise RmkitError(
                f"{path}: row {index}, column {column} holds {type(text).__name__}, not text.",
                "Give text in every row, or lists of messages with role and content as both chosen and rejected.",
            )
        if not text.strip():
            raise RmkitError(f"{path}: row {index} has an empty {column}.", "Remove the row or fill it in.")
    margin = row.get("margin")
    is_number = isinstance(margin, int | float) and not isinstance(margin, bool)
    if margin is not None and not (is_number and math.isfinite(margin)):
        raise RmkitError(
            f"{path}: row {index} has the margin {margin!r}, not a finite number.", "Fix it or drop the column margin."
        )
    pair = _pair(index, row)
    for column, text in (("prompt", pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)):
        if templated == "error" and any(map(KNOWN_MARKS.spelled_in, contents(text))):
            raise already_applied(f"{path}: row {index}, column {column}")
    return pair


def _find_usable(
    pairs: Iterable[PreferencePair | str],
    name: str,
    identical: Literal["drop", "error"],
    left_out: Mapping[str, int] | None = None,
) -> tuple[list[int], dict[str, int]]:
    """The numbers of the pairs that `drop_identical` keeps, and how many it drops by reason, in one pass.

    Args:
        pairs: instead of a pair that cannot be used, the reason.
        left_out: reason -> number, of those that were left out before.
    """
    kept: list[int] = []
    with_margin = 0
    reasons = Counter(left_out)
    without_margin = None
    for number, pair in enumerate(pairs):
        if isinstance(pair, str):
            reasons[pair] += 1
        elif pair.chosen != pair.rejected:
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
            reasons["identical responses"] += 1
    if not kept:
        raise RmkitError(
            f"{name} has no usable pair"
            + (f" ({', '.join(f'{count} have {reason}' for reason, count in reasons.items())})." if reasons else "."),
            "Check the path, the split and the columns.",
        )
    if with_margin and without_margin is not None:  # pandas writes NaN as null
        raise RmkitError(
            f"{name}: row {without_margin} has no margin, but others have one.",
            "Fill it in or drop the column margin.",
        )
    return kept, dict(reasons)


def _pair(index: int, row: Mapping[str, Any]) -> PreferencePair:
    margin = row.get("margin")
    prompt = row["prompt"] if isinstance(row["prompt"], str) else parse_prompt(row["prompt"], f"row {index}")
    return PreferencePair(prompt, row["chosen"], row["rejected"], index, None if margin is None else float(margin))
