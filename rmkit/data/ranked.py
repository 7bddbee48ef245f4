"""Rows with several responses and their scores or ranks, or with two responses and a winner, as preference pairs.

Every pair of such a row has the columns `chosen` and `rejected`, so that `rmkit.data.formats` reads it as any other.
Pairs are made when they are read. Ties are no preference: they are left out and counted.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmkit.config.recipe import Pairing
from rmkit.data.rows import iter_rows
from rmkit.data.sharegpt import holds_messages, is_list
from rmkit.errors import RmkitError

TIES, TOO_FEW, NO_SCORE, NO_WINNER = (
    "ties",
    "fewer than two responses",
    "a response without a score or rank",
    "no winner",
)
_TEXTS = ("response", "text", "content", "completion", "answer", "output")
_INNER_SCORES, _INNER_RANKS = ("overall_score", "score", "rating"), ("rank",)
_NAMED = re.compile(r"(?:(?:model|assistant|response|answer|completion|conversation|output)[ _]?)?(\w+)")
_TIE = re.compile(r"(?:tie|both|draw|equal|neither)(?:[ _(].*)?")
EXAMPLE = "for example columns: {responses: answers, scores: ratings}"


@dataclass(frozen=True)
class Judged:
    """Where the responses of a row stand, and what says which is better.

    Attributes:
        path: the source, for errors.
        responses: a column of lists, or two columns with one response each.
        text: the key of the response in a list's items; empty if the items are the responses.
        by: `scores` (higher is better), `ranks` (lower is better) or `winner`.
        column: the column of scores, ranks or the winner; that of the responses if their items hold it.
        key: the key of score or rank in these items.
        pairing: which responses of a row become pairs.
        margin: where the scores or ranks are, if their difference is the margin.
        unused: other columns or keys that could judge the responses; None if the user has named what judges them.
    """

    path: str
    responses: tuple[str, ...]
    by: str
    column: str
    text: str = ""
    key: str = ""
    pairing: Pairing = "best_worst"
    margin: str = ""
    unused: tuple[str, ...] | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys((*self.responses, self.column)))

    def pair_columns(self, names: Sequence[str]) -> list[str]:
        """The columns of the pairs: those of the rows, with chosen and rejected for the responses."""
        others = [name for name in names if name not in (*self.columns, "margin")]
        return [*others, "chosen", "rejected", *(["margin"] if self.margin else [])]

    @property
    def judge_name(self) -> str:
        """The column of scores, ranks or winner, with the key in the responses' items."""
        return f"{self.column}.{self.key}" if self.key else self.column

    def describe(self, per_row: int) -> str:
        """What was recognised, for one line."""
        unused = f", not used: {', '.join(self.unused)}" if self.unused else ""
        if self.by == "winner":
            return f"{' and '.join(self.responses)} by {self.column}{unused}"
        text = f"{self.responses[0]} by {self.judge_name}"
        if self.by == "ranks":
            text += " (lower is better)"
        text += f", pairing {self.pairing}"
        if per_row > 1:
            text += f" (index = {per_row} * row + number)"
        return (f"{text}, their difference as margin" if self.margin else text) + unused

    def judge(self, row: int, values: Mapping[str, Any]) -> tuple[list[tuple[int, int, int]], list[float], int] | str:
        """The pairs of a row as (better, worse, number), the values of its responses, and the ties among its pairs.

        Instead, the reason why a row gives no pair: one of `TOO_FEW`, `NO_SCORE`, `NO_WINNER`.
        """
        if self.by == "winner":
            side = self._winner(row, values[self.column])
            if side is None:
                return NO_WINNER
            scores = [0.0, 0.0]
            if side >= 0:
                scores[side] = 1.0
        else:
            responses, found = values[self.responses[0]] or [], values[self.column] or []
            if self.key:
                found = [each and each[self.key] for each in found]
            if not isinstance(found, list):
                raise RmkitError(
                    f"{self.path}: row {row}, column {self.column} holds {found!r}, one value for {len(responses)} "
                    "responses.",
                    "Give a list with one value per response.",
                )
            if len(found) != len(responses):
                raise RmkitError(
                    f"{self.path}: row {row} has {len(responses)} responses and {len(found)} {self.by}.",
                    "Give every response one, or remove the row.",
                )
            if len(responses) < 2:
                return TOO_FEW
            for each in found:
                if isinstance(each, bool) or not isinstance(each, int | float | None):
                    raise RmkitError(
                        f"{self.path}: row {row} has {each!r} among its {self.by}, not a number.",
                        "Give numbers, or null for a response to leave the row out.",
                    )
            if any(each is None or not math.isfinite(each) for each in found):
                return NO_SCORE
            scores = [float(each) if self.by == "scores" else -float(each) for each in found]
        pairs, ties = pair_responses(scores, self.pairing)
        return pairs, scores, ties

    def response(self, values: Mapping[str, Any], number: int) -> Any:
        """A response of a row."""
        if len(self.responses) == 2:
            return values[self.responses[number]]
        response = values[self.responses[0]][number]
        if self.text:
            return response[self.text]
        if self.key and isinstance(response, Mapping):  # a message that holds its score
            return {key: value for key, value in response.items() if key != self.key}
        return response

    def _winner(self, row: int, value: Any) -> int | None:
        """0 for the first column, 1 for the second, -1 for a tie, None if there is no value."""
        if value is None or value == "":
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value).strip().lower()
        endings = [column.lower().rpartition("_")[2] for column in self.responses]
        text = re.sub(r"^(\d+)\.0$", r"\1", text)  # as CSV files of pandas have it, if a row has no winner
        named = _NAMED.fullmatch(text)
        for side, column in enumerate(self.responses):
            if text == column.lower() or (named is not None and named[1] == endings[side]):
                return side
        if isinstance(value, str) and _TIE.fullmatch(text):
            return -1
        raise RmkitError(
            f"{self.path}: row {row}, column {self.column} has {value!r}, which names neither {self.responses[0]} nor "
            f"{self.responses[1]}.",
            f"Write {endings[0]} or {endings[1]}, or tie.",
        )


def pair_responses(scores: Sequence[float], pairing: Pairing) -> tuple[list[tuple[int, int, int]], int]:
    """Pairs of responses as (better, worse, number), and the number of ties.

    `best_worst` is the best response against the worst one (the first of equals). `adjacent` pairs every response with
    the next one in the order of their scores; `number` counts these places. `all` is every two responses, numbered by
    their places in the row, so that the number does not depend on the scores.

    Args:
        scores: [responses] higher is better.
    """
    order = sorted(range(len(scores)), key=lambda at: -scores[at])  # stable
    if pairing == "best_worst":
        candidates = [(order[0], scores.index(min(scores)))]
    elif pairing == "adjacent":
        candidates = list(pairwise(order))
    else:
        candidates = list(combinations(range(len(scores)), 2))
    pairs = []
    for number, (first, second) in enumerate(candidates):
        if scores[first] != scores[second]:
            better, worse = (first, second) if scores[first] > scores[second] else (second, first)
            pairs.append((better, worse, number))
    return pairs, len(candidates) - len(pairs)


@dataclass(frozen=True)
class JudgedRows:
    """The rows of pairs, made on access from judged rows: as much of a `datasets.Dataset` as reading pairs takes.

    Attributes:
        rows: [pairs] the judged row of every pair, a `datasets.Dataset`.
        judged: how they are read.
        pairs: [pairs, 2] the numbers of the better and the worse response.
        margins: [pairs] the difference of their scores.
        names: the columns to return.
    """

    rows: Any
    judged: Judged
    pairs: NDArray[np.int64]
    margins: NDArray[np.float64]
    names: tuple[str, ...]

    @property
    def features(self) -> Any:
        """The types of the columns, as `datasets.Dataset.features`."""
        import datasets
        import pyarrow as pa

        schema = self.rows.features.arrow_schema
        response = schema.field(self.judged.responses[0]).type
        if len(self.judged.responses) == 1:
            response = response.value_type
        if self.judged.text:
            response = response.field(self.judged.text).type
        own = {"chosen": response, "rejected": response, "margin": pa.float64()}
        return datasets.Features.from_arrow_schema(
            pa.schema([pa.field(name, own[name]) if name in own else schema.field(name) for name in self.names])
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, at: int | slice) -> dict[str, Any]:
        if isinstance(at, int):
            return {name: values[0] for name, values in self[at : at + 1].items()}
        columns = self.rows[at]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        own: dict[str, Any] = {
            field: [self.judged.response(row, pair[side]) for row, pair in zip(rows, self.pairs[at], strict=True)]
            for side, field in enumerate(("chosen", "rejected"))
        }
        own["margin"] = self.margins[at].tolist()
        return {name: own[name] if name in own else columns[name] for name in self.names}

    def select(self, numbers: NDArray[np.int64]) -> JudgedRows:
        """Some of the pairs."""
        return replace(self, rows=self.rows.select(numbers), pairs=self.pairs[numbers], margins=self.margins[numbers])

    def select_columns(self, names: Sequence[str]) -> JudgedRows:
        """Some of the columns."""
        own = ("chosen", "rejected", "margin")
        read = [*self.judged.columns, *(name for name in names if name not in own)]
        return replace(self, rows=self.rows.select_columns(list(dict.fromkeys(read))), names=tuple(names))


@dataclass(frozen=True)
class JudgedPairs:
    """The pairs of a source of judged rows.

    Attributes:
        rows: [pairs] as columns.
        source: [pairs] the row of each in the source.
        index: [pairs] source * per_row + the number of the pair in its row.
        per_row: the most pairs that a row of the source can give.
        dropped: reason -> number of pairs (ties) or rows left out.
        description: what was recognised.
    """

    rows: JudgedRows
    source: NDArray[np.int64]
    index: NDArray[np.int64]
    per_row: int
    dropped: dict[str, int]
    description: str


def make_pairs(judged: Judged, rows: Any, index: NDArray[np.int64]) -> JudgedPairs:
    """The pairs of the rows `index` of a source.

    Args:
        rows: all rows of the source, a `datasets.Dataset`.

    Raises:
        RmkitError: if nothing judges the responses, or naming the row whose scores or winner cannot be read.
    """
    judged = _resolve(judged, rows)
    per_row = _pairs_per_row(judged, rows)
    source, pairs, margins, numbers = [], [], [], []
    dropped: Counter[str] = Counter()
    for row, values in zip(index.tolist(), iter_rows(rows.select(index).select_columns(judged.columns)), strict=True):
        found = judged.judge(row, values)
        if isinstance(found, str):
            dropped[found] += 1
            continue
        made, scores, ties = found
        if ties:
            dropped[TIES] += ties
        for better, worse, number in made:
            source.append(row)
            pairs.append((better, worse))
            margins.append(scores[better] - scores[worse])
            numbers.append(number)
    rows_of = np.array(source, dtype=np.int64)
    names = judged.pair_columns(rows.column_names)
    return JudgedPairs(
        JudgedRows(
            rows.select(rows_of), judged, np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(margins), (*names,)
        ),
        rows_of,
        rows_of * per_row + np.array(numbers, dtype=np.int64),
        per_row,
        dict(dropped),
        judged.describe(per_row),
    )


def _resolve(judged: Judged, rows: Any) -> Judged:
    """The keys of text and score in a list's items, from their types."""
    if judged.by == "winner":
        return judged
    import pyarrow as pa

    schema = rows.features.arrow_schema
    (column,) = judged.responses
    kind = schema.field(column).type
    if not is_list(kind):
        raise RmkitError(
            f"{judged.path}: column {column} holds {kind}, not a list of responses per row.", f"Give lists, {EXAMPLE}."
        )
    keys = [each.name for each in kind.value_type] if pa.types.is_struct(kind.value_type) else []
    text, key, by = judged.text, judged.key, judged.by
    if keys and not text and not holds_messages(kind.value_type):
        text = next((name for name in _TEXTS if name in keys), "")
        if not text:
            raise RmkitError(
                f"{judged.path}: the items of {column} have the keys {', '.join(keys)}, none of which is known to hold "
                "the response.",
                f"Name it, for example columns: {{responses: {column}.{keys[0]}}}.",
            )
    inner = [("scores", name) for name in _INNER_SCORES if name in keys]
    inner += [("ranks", name) for name in _INNER_RANKS if name in keys]
    if judged.column == column and not key:
        if not inner:
            raise RmkitError(
                f"{judged.path} has responses in {column}, and nothing that says which is better; its columns are "
                f"{', '.join(rows.column_names)}.",
                f"Name their scores or ranks, {EXAMPLE}.",
            )
        by, key = inner[0]
    for name in (each for each in (text, key) if each and each not in keys):
        raise RmkitError(
            f"{judged.path}: the items of {column} have no key {name}; they have {', '.join(keys) or 'none'}.",
            "Name one of these in columns.",
        )
    others = tuple(f"{column}.{name}" for _, name in inner if name != key)
    unused = None if judged.unused is None else (*judged.unused, *others)
    found = replace(judged, text=text, key=key, by=by, unused=unused)
    if judged.margin and judged.margin != found.judge_name:
        raise RmkitError(
            f"{judged.path} has several responses per row, and columns maps margin to {judged.margin}.",
            f"Map margin to {found.judge_name}, for the difference of its values, or remove it.",
        )
    return found


def _pairs_per_row(judged: Judged, rows: Any) -> int:
    """The most pairs that a row gives, whichever rows are used, so that they have the same index with any `limit`."""
    if judged.by == "winner" or judged.pairing == "best_worst" or not len(rows):
        return 1
    import pyarrow.compute as pc

    column = rows.with_format("arrow")[judged.responses[0]][:]
    most: int = pc.max(pc.list_value_length(column)).as_py() or 0
    return max(1, most - 1 if judged.pairing == "adjacent" else most * (most - 1) // 2)
