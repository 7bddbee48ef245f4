"""Several training sets as one: their shares, and the validation set that is cut off them by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from rmkit.config.recipe import VALIDATION
from rmkit.data.overlap import prompt_text
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.errors import RmkitError


def draw(count: int, weight: float, seed: int) -> NDArray[np.int64]:
    """The numbers of the pairs of a set of `count` pairs that make up its share of an epoch.

    Every pair `floor(weight)` times, and the rest of the weight, rounded to pairs, without replacement.
    """
    rest = round((weight - int(weight)) * count)
    sample = np.sort(np.random.default_rng(seed).permutation(count)[:rest])
    return np.concatenate([np.tile(np.arange(count), int(weight)), sample])


def sample(data: PreferenceData, weight: float, seed: int) -> PreferenceData:
    """A set with a weight below 1: the pairs that are drawn. Other sets are left alone.

    Raises:
        RmkitError: if the fraction is less than half a pair.
    """
    if weight >= 1:
        return data
    numbers = draw(len(data), weight, seed)
    if not len(numbers):
        raise RmkitError(
            f"{data.name}: weight {weight:g} leaves none of its {len(data)} pairs.", "Raise the weight of the set."
        )
    return data.select(numbers)


def cut_validation(
    training: Sequence[PreferenceData], share: float, seed: int
) -> tuple[list[PreferenceData], PreferenceData]:
    """Cut a validation set off the training sets by prompt: no prompt stands on both sides.

    Prompts are equal as in `rmkit.data.overlap`. They are ordered by a hash of seed and prompt, and the first ones are
    cut, so the cut depends on nothing else: not on the order of rows, weights or the number of processes.

    Args:
        share: a fraction of the different prompts of all sets, or (an integer) their number.

    Returns:
        The rest of every set, and the validation set. Its pairs keep their row as `index`; those of several sets are
        numbered.

    Raises:
        RmkitError: if no prompt is cut, or a training set has no pair left.
    """
    keys = [[_key(pair, seed) for pair in data] for data in training]
    prompts = sorted(set(chain.from_iterable(keys)))
    count = share if isinstance(share, int) else round(share * len(prompts))
    names = " and ".join(data.name for data in training)
    if not 0 < count < len(prompts):
        raise RmkitError(
            f"data.validation: {share} takes {count} of the {len(prompts)} prompts of {names}.",
            "Give a number or fraction that leaves prompts on both sides.",
        )
    cut = set(prompts[:count])
    if len({data.templated for data in training}) > 1:
        raise RmkitError(
            f"data.validation is cut off {names}, which differ in templated.",
            "Give these sets the same templated, or hold out an evaluation set of each.",
        )
    masks = [np.array([key in cut for key in own]) for own in keys]
    for data, mask in zip(training, masks, strict=True):
        if mask.all():
            raise RmkitError(
                f"data.validation: {share} leaves no pair of {data.name}.", "Lower it, or change data.seed."
            )
    rest = [data.select(np.flatnonzero(~mask)) for data, mask in zip(training, masks, strict=True)]
    parts = [data.select(np.flatnonzero(mask)) for data, mask in zip(training, masks, strict=True)]
    held = parts[0]
    if len(parts) > 1:
        places = [part.place(pair) for part in parts for pair in part]
        held = replace(held, pairs=_numbered(parts), split=None, pairs_per_row=1, places=places)
    return rest, replace(held, name=VALIDATION, dropped={}, format=None)


def join(training: Sequence[PreferenceData]) -> PreferenceData:
    """All pairs of the training sets, each once; a single set as it is."""
    if len(training) == 1:
        return training[0]
    return PreferenceData(" + ".join(data.name for data in training), list(chain.from_iterable(training)))


def refuse_mixed_margins(training: Sequence[PreferenceData]) -> None:
    """Refuse training sets of which only some have margins.

    Raises:
        RmkitError: naming one of each.
    """
    margins = {data.pairs[0].margin is not None: data.name for data in training}  # all pairs of a set have one, or none
    if len(margins) > 1:
        raise RmkitError(
            f"The training set {margins[True]} has margins, and {margins[False]} has none.",
            "Give all training sets a column margin, or none.",
        )


def _numbered(parts: Sequence[PreferenceData]) -> list[PreferencePair]:
    return [replace(pair, index=number) for number, pair in enumerate(chain.from_iterable(parts))]


def _key(pair: PreferencePair, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{prompt_text(pair)}".encode()).digest()
