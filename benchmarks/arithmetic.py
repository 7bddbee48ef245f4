"""The necessary work: unique tokens, and the FLOPs of the linear layers on them. No torch."""

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
    """Token counts of a set of pairs.

    Attributes:
        tokens: tokens of both sequences of every pair: the prompt twice, no padding.
        unique_tokens: the common prefix of a pair's sequences counted once, plus the two remainders.
        heads_read: number of positions at which the model's head is read.
    """

    pairs: int
    tokens: int
    unique_tokens: int
    heads_read: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix of two sequences."""
    for position, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return position
    return min(len(first), len(second))


def counts(work: Work, pairs: Iterable[tuple[Tokens, Tokens]]) -> Counts:
    """Count the (chosen, rejected) sequences that a type of reward model reads.

    A reward head, and the verdict of a generative model, is read at the last token of a sequence. An implicit model
    predicts every token of both responses: it is read from the token before the first to the one before the last, and
    once per position of the common prefix.
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
        responses = [len(sequence.ids) - sequence.response_start for sequence in (chosen, rejected)]
        read += sum(responses) - (shared - chosen.response_start + 1)
    return Counts(number, tokens, unique, read)


def forward_flops(work: Work, shape: Shape, counted: Counts) -> int:
    """2 (W U + H R), the multiplications and additions of the linear layers in one forward pass.

    W is the number of weights of the linear layers and U of unique tokens; H is the number of weights of the head
    (hidden size for a reward head, vocabulary x hidden size for a language model) and R the number of positions at
    which it is read. The products of attention itself, norms and embeddings are left out.
    """
    head = shape.hidden_size if work in ("explicit", "scoring") else shape.head_weights
    return 2 * (shape.layer_weights * counted.unique_tokens + head * counted.heads_read)


def flops(work: Work, shape: Shape, counted: Counts, epochs: int, reference_passes: int) -> int:
    """FLOPs of a workload: scoring is one forward pass, an epoch three (the backward pass counts as two)."""
    passes = 1 if work == "scoring" else 3 * epochs + reference_passes
    return passes * forward_flops(work, shape, counted)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)
