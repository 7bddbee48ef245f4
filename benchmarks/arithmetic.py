"""What has to be computed: tokens counted once, and the arithmetic of the linear layers on them. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from benchmarks.shapes import Shape

Work = Literal["explicit", "implicit", "generative", "scoring"]


class Tokens(Protocol):
    """A `rmkit.encoding.chat.TokenSequence`."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def response_start(self) -> int: ...


@dataclass(frozen=True)
class Counts:
    """Of a set of pairs.

    Attributes:
        tokens: of both sequences of every pair, the prompt twice and no padding.
        unique_tokens: the prefix that the sequences of a pair share counted once, plus the two rests.
        heads_read: positions at which the model's head is read.
    """

    pairs: int
    tokens: int
    unique_tokens: int
    heads_read: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens up to where two sequences first differ."""
    for position, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return position
    return min(len(first), len(second))


def counts(work: Work, pairs: Iterable[tuple[Tokens, Tokens]]) -> Counts:
    """Of the (chosen, rejected) sequences that a type of reward model reads.

    A reward head, and the verdict of a generative model, is read at the last token of each sequence. An implicit model
    predicts every token of both responses: it is read from the token before the first to the one before the last, and
    once where the sequences are still the same.
    """
    number = tokens = unique = read = 0
    for chosen, rejected in pairs:
        shared = shared_prefix(chosen.ids, rejected.ids)
        number += 1
        tokens += len(chosen.ids) + len(rejected.ids)
        unique += len(chosen.ids) + len(rejected.ids) - shared
        if work != "implicit":
            read += 2
            continue
        responses = [len(each.ids) - each.response_start for each in (chosen, rejected)]
        read += sum(responses) - (shared - chosen.response_start + 1)
    return Counts(number, tokens, unique, read)


def forward_flops(work: Work, shape: Shape, counted: Counts) -> int:
    """2 (W U + H R), the multiplications and additions of the linear maps in one forward pass.

    W are the weights of the layers' linear maps and U the unique tokens; H are the weights of the head (hidden size
    for a reward head, vocabulary x hidden size for a language model) and R the positions at which it is read. The
    products of attention itself, norms and embeddings are left out.
    """
    head = shape.hidden_size if work in ("explicit", "scoring") else shape.head_weights
    return 2 * (shape.layer_weights * counted.unique_tokens + head * counted.heads_read)


def flops(work: Work, shape: Shape, counted: Counts, epochs: int, reference_passes: int) -> int:
    """Of a whole work: scoring is one forward pass; an epoch is three (the backward pass is two)."""
    passes = 1 if work == "scoring" else 3 * epochs + reference_passes
    return passes * forward_flops(work, shape, counted)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)
