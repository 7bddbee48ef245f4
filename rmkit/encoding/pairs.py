"""Preference pairs as token ids: every pair encoded once, by the same rules for every type of reward model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from rmkit.config.recipe import SpecialTokens
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.encoding.batches import common_prefix
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.errors import RmkitError

_CHUNK = 1000


class PairReader(Protocol):
    """What encoding needs of a reward model (`reward_models.base`): its encoder, and which tokens it reads."""

    encoder: ChatEncoder

    reads_responses: ClassVar[bool]

    def encode(self, prompts: Sequence[str], responses: Sequence[str]) -> list[TokenSequence]:
        """The sequences that are read to reward each response."""


@dataclass(frozen=True)
class EncodedPairs:
    """A set of pairs with the sequences that a reward model reads.

    Attributes:
        pairs: the texts, in the order of the source.
        chosen, rejected: [pairs] sequences.
        chosen_responses: [pairs] the prompt followed by the chosen response, whatever the type reads.
        response_lengths: [pairs] tokens of the chosen and of the rejected response with template suffix, whatever the
            type reads, so that lengths compare across types.
        dropped: reason -> number of pairs left out.
        control_texts: how many prompts and responses spell control tokens.
        templated: how many prompts look as if a chat template had been applied to them.
    """

    name: str
    pairs: Sequence[PreferencePair]
    chosen: Sequence[TokenSequence]
    rejected: Sequence[TokenSequence]
    chosen_responses: Sequence[TokenSequence]
    response_lengths: Sequence[tuple[int, int]]
    dropped: dict[str, int] = field(default_factory=dict)
    control_texts: int = 0
    templated: int = 0

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is read."""
        return max(self.lengths)

    @property
    def lengths(self) -> list[int]:
        """Tokens of the longer sequence of each pair [pairs]."""
        return [max(len(one), len(other)) for one, other in zip(self.chosen, self.rejected, strict=True)]

    @property
    def tokens(self) -> list[int]:
        """Tokens of each pair [pairs], those with which both sequences start counted once."""
        both = zip(self.chosen, self.rejected, strict=True)
        return [
            len(one) + len(other) - common_prefix(np.asarray(one.ids), np.asarray(other.ids)) for one, other in both
        ]

    def head(self, number: int) -> EncodedPairs:
        """The first pairs only."""
        return EncodedPairs(
            self.name,
            self.pairs[:number],
            self.chosen[:number],
            self.rejected[:number],
            self.chosen_responses[:number],
            self.response_lengths[:number],
        )

    def columns(self) -> dict[str, list[Any]]:
        """What the trainers read; `row` counts the pairs of this set."""
        columns: dict[str, list[Any]] = {"row": list(range(len(self))), "tokens": self.tokens}
        named = {"chosen": self.chosen, "rejected": self.rejected, "generation": self.chosen_responses}
        if self.chosen == self.chosen_responses:
            del named["generation"]
        for name, sequences in named.items():
            columns[f"{name}_ids"] = [sequence.ids for sequence in sequences]
            columns[f"{name}_start"] = [sequence.response_start for sequence in sequences]
        if any(pair.margin is not None for pair in self.pairs):
            columns["margin"] = [pair.margin or 0.0 for pair in self.pairs]
        return columns


@dataclass(frozen=True)
class EncodedPair:
    """A pair with what is read of it; see `EncodedPairs` for the attributes."""

    pair: PreferencePair
    chosen: TokenSequence
    rejected: TokenSequence
    chosen_response: TokenSequence
    response_lengths: tuple[int, int]
    control_texts: int = 0
    templated: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence that is read."""
        return max(len(self.chosen), len(self.rejected))


def encode_pairs(
    data: PreferenceData,
    reader: PairReader,
    *,
    max_length: int | None = None,
    over_length: Literal["drop", "error"] = "drop",
    identical: Literal["drop", "error"] = "drop",
) -> EncodedPairs:
    """Encode a set once. Pairs over a length limit are left out and counted, or an error; none is ever cut.

    The limit is on the longest text that any type of reward model reads of a pair, prompt, response and verification
    prompt with their template, so the same pairs stay for every type.

    Raises:
        RmkitError: if `over_length` or `identical` is `error` and there is such a pair, or if no pair is left.
    """
    dropped: dict[str, int] = {}
    options: dict[str, Any] = {"max_length": max_length, "over_length": over_length, "identical": identical}
    return collect(data.name, list(iter_encoded(data, reader, dropped, **options)), dropped)


def collect(name: str, pairs: Sequence[EncodedPair], dropped: dict[str, int]) -> EncodedPairs:
    """Pairs as a set."""
    return EncodedPairs(
        name,
        tuple(each.pair for each in pairs),
        tuple(each.chosen for each in pairs),
        tuple(each.rejected for each in pairs),
        tuple(each.chosen_response for each in pairs),
        tuple(each.response_lengths for each in pairs),
        dropped,
        sum(each.control_texts for each in pairs),
        sum(each.templated for each in pairs),
    )


def remarks(
    name: str,
    lengths: Sequence[int],
    control_texts: int,
    templated: int,
    *,
    known: int | None,
    special_tokens: SpecialTokens,
    unit: str = "pairs",
) -> list[str]:
    """What users should know of a set's texts, a line each.

    Args:
        lengths: [units] tokens of the longest sequence of each.
        control_texts, templated: as of `EncodedPairs`.
        known: the tokens that the model was made for, if that is known.
        special_tokens: as of `ChatEncoder`.
        unit: what is counted, pairs or responses.
    """
    lines = []
    longer = sum(length > known for length in lengths) if known is not None else 0
    if longer:
        lines.append(
            f"{name}: {longer} of {len(lengths)} {unit} are longer than the {known} tokens that the model was made for "
            f"(up to {max(lengths)} tokens; data.max_length or --max-length leaves them out)"
        )
    if control_texts:
        treated = "read as text" if special_tokens == "text" else "kept as such"
        lines.append(
            f"{name}: texts that spell control tokens: {control_texts}, which are {treated} "
            f"(special_tokens: {special_tokens})"
        )
    if templated > len(lengths) / 2:
        lines.append(
            f"{name}: {templated} of {len(lengths)} prompts start with a control token or as the chat template does: "
            "a template seems to have been applied to them already; give plain texts"
        )
    return lines


def iter_encoded(
    data: PreferenceData,
    reader: PairReader,
    dropped: dict[str, int],
    *,
    max_length: int | None = None,
    over_length: Literal["drop", "error"] = "drop",
    identical: Literal["drop", "error"] = "drop",
) -> Iterator[EncodedPair]:
    """The pairs of a set one after another, of which few are held at a time; arguments as of `encode_pairs`.

    Args:
        dropped: reason -> number of pairs left out, counted while they are passed over.
    """
    encoder = reader.encoder
    dropped |= data.dropped
    left = 0
    for start in range(0, len(data.pairs), _CHUNK):
        some = data.pairs[start : start + _CHUNK]
        prompts = [pair.prompt for pair in some for _ in range(2)]
        responses = [response for pair in some for response in (pair.chosen, pair.rejected)]
        plain = encoder.response_sequences(prompts, responses)
        read = plain if reader.reads_responses else reader.encode(prompts, responses)
        longest = [len(each) for each in plain]
        if max_length is not None:
            asked = encoder.verification_sequences(prompts, responses)
            longest = [max(each) for each in zip(longest, map(len, asked), map(len, read), strict=True)]
        for number, pair in enumerate(some):
            chosen, rejected = 2 * number, 2 * number + 1
            length = max(longest[chosen], longest[rejected])
            if max_length is not None and length > max_length:
                reason = f"longer than {max_length} tokens"
                if over_length == "error":
                    raise RmkitError(
                        f"{data.name}: row {pair.index} takes {length} tokens, over the limit of {max_length}.",
                        "Raise data.max_length, or set data.over_length: drop.",
                    )
            elif plain[chosen] == plain[rejected]:  # texts that differ only in what the template strips
                reason = "identical responses"
                if identical == "error":
                    raise RmkitError(
                        f"{data.name}: row {pair.index} has the same chosen and rejected once the template is applied.",
                        "Remove such rows, or set data.identical: drop.",
                    )
            else:
                lengths = tuple(len(plain[each]) - plain[each].response_start for each in (chosen, rejected))
                yield EncodedPair(
                    pair,
                    read[chosen],
                    read[rejected],
                    plain[chosen],
                    (lengths[0], lengths[1]),
                    sum((plain[chosen].prompt_spells, plain[chosen].response_spells, plain[rejected].response_spells)),
                    encoder.is_templated(pair.prompt),
                )
                left += 1
                continue
            dropped[reason] = dropped.get(reason, 0) + 1
    if not left:
        raise RmkitError(
            f"{data.name}: no pair is left ({', '.join(f'{count} {reason}' for reason, count in dropped.items())}).",
            "Raise the limit (data.max_length, or --max-length), or give other pairs.",
        )
