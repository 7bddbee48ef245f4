"""The overlap of an evaluation set with the training set: shared prompts, responses, pairs and n-grams."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from rmkit.data.conversations import as_text
from rmkit.data.preferences import PreferencePair

NGRAM = 13
"""Number of consecutive words that count as an overlap, as in contamination studies since GPT-3."""

_KEYS = (itemgetter(0), itemgetter(1), itemgetter(0, 1), itemgetter(0, 1, 2))  # of (prompt, chosen, rejected)
_WORD = re.compile(r"\w+")

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Overlap:
    """Which pairs of an evaluation set share texts with the training set. Every mask is [pairs].

    Attributes:
        prompt: the prompt is a training prompt.
        chosen: the chosen response is the chosen response of a training pair.
        prompt_and_chosen: both, in one training pair.
        pair: the whole pair is a training pair.
        ngram: the prompt shares `NGRAM` words with a training prompt; None if n-grams were not compared.
    """

    prompt: Mask
    chosen: Mask
    prompt_and_chosen: Mask
    pair: Mask
    ngram: Mask | None = None

    def counts(self) -> dict[str, int]:
        """The number of pairs, and how many share a prompt, a chosen response or both in one training pair."""
        masks = {"prompt": self.prompt, "chosen": self.chosen, "prompt_and_chosen": self.prompt_and_chosen}
        return {"pairs": len(self.prompt), **{name: int(mask.sum()) for name, mask in masks.items()}}

    def warning(self, name: str) -> str | None:
        """A line about the accuracy on the evaluation set `name`; None if no prompt is shared."""
        size, prompts, pairs = len(self.prompt), self.prompt.sum(), self.pair.sum()
        if pairs == size:
            return f"WARNING: {name}: ALL {size} PAIRS ARE TRAINING PAIRS. Its accuracy is not about new pairs."
        if prompts:
            both = f", {pairs} with both responses" if pairs else ""
            return f"warning: {name}: {prompts} of {size} pairs have their prompt in the training set{both}"
        return None


def find_overlap(
    training: Iterable[PreferencePair], evaluation: Iterable[PreferencePair], *, ngrams: bool = False
) -> Overlap:
    """The overlap of an evaluation set with the training set, ignoring whitespace at the ends of texts.

    The training set may be too large for memory: it is read once, and only texts that the evaluation set has are kept
    (with `ngrams`, also every different training prompt).

    Args:
        ngrams: also compare prompts by n-grams of `NGRAM` words, ignoring case, punctuation and tools, which are the
            same for many prompts. A shorter prompt has a single n-gram, all of its words.
    """
    evaluation = list(evaluation)
    own = [_texts(pair) for pair in evaluation]
    own_grams = [_ngrams(_asked(pair)) if ngrams else [] for pair in evaluation]
    wanted: list[set[Hashable]] = [set(map(key, own)) for key in _KEYS]
    found: list[set[Hashable]] = [set() for _ in _KEYS]
    wanted_grams = {gram for grams in own_grams for gram in grams}
    found_grams: set[tuple[str, ...]] = set()
    prompts: set[str] = set()
    for pair in training:
        texts = _texts(pair)
        for number, key in enumerate(_KEYS):
            value = key(texts)
            if value in wanted[number]:
                found[number].add(value)
        if ngrams and texts[0] not in prompts:
            prompts.add(texts[0])
            found_grams.update(wanted_grams.intersection(_ngrams(_asked(pair))))
    prompt, chosen, prompt_and_chosen, whole = (
        np.array([key(texts) in values for texts in own], dtype=bool) for key, values in zip(_KEYS, found, strict=True)
    )
    ngram = np.array([not found_grams.isdisjoint(grams) for grams in own_grams], dtype=bool) if ngrams else None
    return Overlap(prompt, chosen, prompt_and_chosen, whole, ngram)


def prompt_text(pair: PreferencePair) -> str:
    """The text by which prompts are compared: conversations and tools as text, without whitespace at the ends.

    Options of the chat template do not make another prompt: the answer would still be known.
    """
    return as_text(pair.prompt).strip()


def _texts(pair: PreferencePair) -> tuple[str, str, str]:
    return prompt_text(pair), as_text(pair.chosen).strip(), as_text(pair.rejected).strip()


def _asked(pair: PreferencePair) -> str:
    """The turns of a prompt as text, without tools."""
    return as_text(pair.prompt if isinstance(pair.prompt, str) else replace(pair.prompt, tools=""))


def _ngrams(text: str) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    if len(words) < NGRAM:
        return [tuple(words)] if words else []
    return [tuple(words[start : start + NGRAM]) for start in range(len(words) - NGRAM + 1)]
