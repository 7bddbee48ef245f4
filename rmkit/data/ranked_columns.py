"""The columns of rows with several responses, see `rmkit.data.ranked`, by their names or as the user names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rmkit.config.recipe import Pairing
from rmkit.data.ranked import EXAMPLE, Judged
from rmkit.errors import RmkitError

FIELDS = ("responses", "scores", "ranks", "winner")
_RESPONSES = ("responses", "completions", "answers", "candidates")
_SCORES, _RANKS = ("scores", "ratings"), ("ranks", "rankings", "rank")
_SIDES = [
    *((f"{name}_a", f"{name}_b") for name in ("response", "answer", "completion", "conversation")),
    *((f"{name}_0", f"{name}_1") for name in ("response", "answer")),
    *((f"{name}_1", f"{name}_2") for name in ("response", "output")),
]
_WINNERS = ("winner", "preferred", "preference", "label", "better_response_id")
_CHOSEN = ("chosen", "rejected", "chosen_response", "preferred_output")
"""Columns of sources that say themselves which response is chosen; they are read, unless responses are named."""

Given = Mapping[str, str | Sequence[str]]


def find_judged(names: Sequence[str], given: Given, pairing: Pairing | None, path: str) -> Judged | None:
    """The columns of responses and of what judges them; None for other sources.

    Args:
        names: all columns of the source.
        given: the columns of fields that have other names.

    Raises:
        RmkitError: if a column is missing or several may be meant, or `pairing` is given for other sources.
    """
    mapped = {name: (columns,) if isinstance(columns, str) else tuple(columns) for name, columns in given.items()}
    own = [name for name in FIELDS if name in mapped]
    for column in (column for name in own for column in mapped[name]):
        if not {column, column.partition(".")[0]} & {*names}:
            raise RmkitError(
                f"{path} has no column {column}; it has {', '.join(names)}.", "Name one of these in columns."
            )
    paired = bool({*_CHOSEN} & {*names, *mapped})
    responses = mapped.get("responses") or _responses(names, mapped, paired, path)
    if responses is None or (paired and not own):
        if own or pairing is not None:
            raise RmkitError(
                f"{path} is not read as several responses per row; its columns are {', '.join(names)}.",
                f"Name the responses, {EXAMPLE}, or remove {'pairing' if pairing else own[0]}.",
            )
        return None
    if (
        {"chosen", "rejected"} & {*mapped}
        or len(responses) > 2
        or len({*own} - {"responses"}) > 1
        or (len(responses) == 1 and "winner" in own)
    ):
        raise RmkitError(
            f"columns of {path} maps {', '.join(mapped)}, which do not go together.",
            "Map responses (a column of lists, or two columns), and one of scores, ranks and winner.",
        )
    margin = mapped.get("margin", ("",))[0]
    if len(responses) == 2:
        return _two_sides(responses, names, mapped, pairing, path)
    column, _, text = (responses[0], "", "") if responses[0] in names else responses[0].partition(".")
    by, judge = _judge(names, mapped, path)
    judge_column, _, key = (judge, "", "") if judge in names else judge.partition(".")
    if key and judge_column != column:
        raise RmkitError(
            f"columns of {path} maps {by} to {judge}, outside of the responses in {column}.",
            f"Map {by} to a column of lists, or to a key of the responses, such as {column}.{key}.",
        )
    unused = None if {"scores", "ranks"} & {*mapped} else _others(names, judge_column)
    return Judged(path, (column,), by, judge_column or column, text, key, pairing or "best_worst", margin, unused)


def _responses(
    names: Sequence[str], mapped: Mapping[str, tuple[str, ...]], paired: bool, path: str
) -> tuple[str, ...] | None:
    """The column of lists of responses, or the two columns of responses; None without them."""
    lists = [name for name in _RESPONSES if name in names]
    if len(lists) > 1 and not paired:
        raise RmkitError(
            f"{path} has several columns that may hold responses: {', '.join(lists)}.",
            f"Choose one with columns: {{responses: {lists[0]}}} in the set (--column responses={lists[0]}).",
        )
    if lists:
        return (lists[0],)
    sides = [pair for pair in _SIDES if {*pair} <= {*names}]
    judged = "winner" in mapped or any(name in names for name in _WINNERS)
    return sides[0] if sides and judged else None


def _two_sides(
    responses: tuple[str, ...],
    names: Sequence[str],
    mapped: Mapping[str, tuple[str, ...]],
    pairing: Pairing | None,
    path: str,
) -> Judged:
    winners = mapped.get("winner") or tuple(name for name in _WINNERS if name in names)
    if len(winners) != 1 or {"scores", "ranks"} & {*mapped}:
        raise RmkitError(
            f"{path} has two responses per row, and "
            + (f"several columns that may name the winner: {', '.join(winners)}." if winners else "no winner."),
            f"Name it, for example columns: {{winner: {winners[0] if winners else names[0]}}}.",
        )
    if pairing is not None or "margin" in mapped:
        what = "pairing" if pairing is not None else "columns: {margin: ...}"
        raise RmkitError(f"{path} has two responses and a winner per row: {what} has no use.", f"Remove {what}.")
    unused = None if "winner" in mapped else _others(names, winners[0])
    return Judged(path, responses, "winner", winners[0], unused=unused)


def _others(names: Sequence[str], used: str) -> tuple[str, ...]:
    """The columns that could judge the responses as well, and do not."""
    return tuple(name for name in (*_SCORES, *_RANKS, _WINNERS[0]) if name in names and name != used)


def _judge(names: Sequence[str], mapped: Mapping[str, tuple[str, ...]], path: str) -> tuple[str, str]:
    """`scores` or `ranks`, and their column; no column if they stand inside the responses."""
    for by, known in (("scores", _SCORES), ("ranks", _RANKS)):
        if by in mapped:
            return by, mapped[by][0]
        columns = [name for name in known if name in names]
        if "scores" not in mapped and "ranks" not in mapped and columns:
            if len(columns) > 1:
                raise RmkitError(
                    f"{path} has several columns that may hold {by}: {', '.join(columns)}.",
                    f"Choose one with columns: {{{by}: {columns[0]}}} in the set (--column {by}={columns[0]}).",
                )
            return by, columns[0]
    return "scores", ""
