"""Splits as `datasets` writes them: train, train[:95%], train[100:200], train[-10%:], train+test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmkit.errors import RmkitError


class SplitRows(NamedTuple):
    """The rows of one split as a `datasets.Dataset`, the names of all columns, and its name; None without splits."""

    rows: Any
    names: list[str]
    split: str | None


@dataclass(frozen=True)
class Loaded:
    """The rows that a split names.

    Attributes:
        rows: all rows of the splits that are named, one split after the other, as a `datasets.Dataset`.
        names: the names of all columns of the source.
        split: what was asked for; None if the source has no splits, where only its slices count.
        index: the numbers of the rows that the slices keep.
    """

    rows: Any
    names: list[str]
    split: str | None
    index: NDArray[np.int64]


def split_names(split: str) -> list[str]:
    """The different splits that `train[:10%]+test` names: train, test."""
    return list(dict.fromkeys(part.strip().partition("[")[0] for part in split.split("+")))


def ignored_split(path: str | None, split: str, written: str) -> str:
    """The warning that a source has no splits: the name in `split` is ignored, its slices are not."""
    return f"{path} has no splits: {'the name in ' if '[' in split else ''}{written} is ignored"


def load_split(split: str, load: Callable[[str], SplitRows], path: str) -> Loaded:
    """The rows that `split` names; slices and sums are read by `datasets` itself.

    Args:
        load: the rows of the split of a name.
        path: the source, for errors.

    Raises:
        RmkitError: if `split` cannot be read, names no row or one row twice, or sums splits that do not fit together.
    """
    if "[" not in split and "+" not in split:
        rows, names, found = load(split)
        return Loaded(rows, names, found, np.arange(len(rows)))
    from datasets import ReadInstruction, concatenate_datasets

    try:
        instruction = ReadInstruction.from_spec(split)
        loaded = {name: load(name) for name in split_names(split)}
        lengths = {name: len(part.rows) for name, part in loaded.items()}
        slices = instruction.to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise RmkitError(
            f"{path}: the split {split} cannot be read: {error}",
            "Write it as in train[:95%], train[100:200], train[-10%:] or train+test.",
        ) from None
    first = next(iter(loaded.values()))
    if first.split is None and len(loaded) > 1:
        raise RmkitError(
            f"{path} has no splits, so {split} would read its rows twice.", "Name one split; its slice is used."
        )
    starts = dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist(), strict=False))
    index = np.concatenate([starts[each.splitname] + np.arange(each.from_, each.to) for each in slices])
    if not len(index):
        raise RmkitError(f"{path}: the split {split} holds no row; there are {_counts(lengths)}.", "Use other bounds.")
    if len(np.unique(index)) < len(index):
        raise RmkitError(f"{path}: the split {split} holds a row twice.", "Use slices that do not overlap.")
    try:
        rows = concatenate_datasets([part.rows for part in loaded.values()])
    except (ValueError, TypeError) as error:
        raise RmkitError(
            f"{path}: the splits of {split} have columns of different types: {error}", "Load them as two sets."
        ) from None
    names = list(dict.fromkeys(name for part in loaded.values() for name in part.names))
    return Loaded(rows, names, None if first.split is None else split, index)


def _counts(lengths: Mapping[str, int]) -> str:
    return ", ".join(f"{length} in {name}" for name, length in lengths.items())
