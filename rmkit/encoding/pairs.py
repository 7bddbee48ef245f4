"""Preference pairs as token ids: every pair is encoded once, by the same rules for every reward model type.

`EncodedPairs` is the only holder of a set's token ids. Trainers get a table of pair numbers (`EncodedPairs.columns`),
and `PairCollator` looks up the ids when it builds a batch.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray

from rmkit.config.recipe import Data, SpecialTokens
from rmkit.data.conversations import Prompt, Response
from rmkit.data.mixture import draw
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.encoding.batches import Layout, collate, common_prefix, split
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.encoding.templated import TemplateReader
from rmkit.errors import RmkitError

_CHUNK = 1000


class PairReader(Protocol):
    """The part of a reward model (`reward_models.base`) that encoding needs: its encoder and the texts it reads."""

    encoder: ChatEncoder

    reads_responses: ClassVar[bool]

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[TokenSequence]:
        """The sequences that the reward model reads to reward the responses."""


@dataclass
class TokenSequences(Sequence[TokenSequence]):
    """Token sequences in flat arrays: 4 bytes per token, a tenth of what lists of Python integers take.

    An index returns a `TokenSequence`, a slice a list of them.

    Attributes:
        ids: [tokens] of all sequences, one after another.
        ends: [sequences + 1] offsets into `ids`, from 0.
        starts: [sequences] `response_start` of each.
        spells: [sequences] bit 0 is `prompt_spells`, bit 1 `response_spells`.
        gaps: number of a sequence -> its `gaps`, if it has some.
    """

    ids: array[int] = field(default_factory=lambda: array("i"))
    ends: array[int] = field(default_factory=lambda: array("q", [0]))
    starts: array[int] = field(default_factory=lambda: array("i"))
    spells: bytearray = field(default_factory=bytearray)
    gaps: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def append(self, sequence: TokenSequence) -> None:
        """Add a sequence."""
        if sequence.gaps:
            self.gaps[len(self)] = sequence.gaps
        self.ids.extend(sequence.ids)
        self.ends.append(len(self.ids))
        self.starts.append(sequence.response_start)
        self.spells.append(sequence.prompt_spells | sequence.response_spells << 1)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> TokenSequence: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenSequence]: ...

    def __getitem__(self, index: int | slice) -> TokenSequence | list[TokenSequence]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        ids = self.ids[self.ends[number] : self.ends[number + 1]].tolist()
        spells = self.spells[number]
        gaps = self.gaps.get(number, ())
        return TokenSequence(ids, self.starts[number], bool(spells & 1), bool(spells & 2), gaps)

    def head(self, number: int) -> TokenSequences:
        """The first sequences."""
        ends = self.ends[: number + 1]
        gaps = {at: gaps for at, gaps in self.gaps.items() if at < number}
        return TokenSequences(self.ids[: ends[-1]], ends, self.starts[:number], self.spells[:number], gaps)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence [sequences]."""
        return np.diff(np.asarray(self.ends))


@dataclass(frozen=True)
class EncodedPairs:
    """A set of pairs with the sequences that a reward model reads.

    Attributes:
        pairs: the texts, in the order of the source.
        chosen, rejected: [pairs] sequences.
        chosen_responses: [pairs] the prompt followed by the chosen response, whatever the type reads; the same object
            as `chosen` for types that read responses.
        response_lengths: [pairs] tokens of the chosen and of the rejected response with template suffix, whatever the
            type reads, so that lengths compare across types.
        dropped: reason -> number of pairs left out.
        control_texts: number of prompts and responses that spell control tokens.
        templated: number of prompts to which a chat template seems to have been applied already.
    """

    name: str
    pairs: Sequence[PreferencePair]
    chosen: TokenSequences
    rejected: TokenSequences
    chosen_responses: TokenSequences
    response_lengths: Sequence[tuple[int, int]]
    dropped: dict[str, int] = field(default_factory=dict)
    control_texts: int = 0
    templated: int = 0

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @property
    def lengths(self) -> list[int]:
        """Tokens of the longer sequence of each pair [pairs]."""
        lengths: list[int] = np.maximum(self.chosen.lengths, self.rejected.lengths).tolist()
        return lengths

    @property
    def tokens(self) -> list[int]:
        """Tokens of each pair [pairs]; the prefix that its two sequences share counts once."""
        both = zip(self.chosen, self.rejected, strict=True)
        return [
            len(chosen) + len(rejected) - common_prefix(np.asarray(chosen.ids), np.asarray(rejected.ids))
            for chosen, rejected in both
        ]

    def __getitem__(self, number: int) -> EncodedPair:
        chosen = self.chosen[number]
        shared = self.chosen_responses is self.chosen
        return EncodedPair(
            self.pairs[number],
            chosen,
            self.rejected[number],
            chosen if shared else self.chosen_responses[number],
            self.response_lengths[number],
        )

    def head(self, number: int) -> EncodedPairs:
        """The first pairs only."""
        return EncodedPairs(
            self.name,
            self.pairs[:number],
            self.chosen.head(number),
            self.rejected.head(number),
            self.chosen_responses.head(number),
            self.response_lengths[:number],
        )

    def columns(self) -> dict[str, list[Any]]:
        """The table that a trainer iterates over: `row` is the number of a pair in this set; see `PairCollator`."""
        columns: dict[str, list[Any]] = {"row": list(range(len(self))), "tokens": self.tokens}
        if any(pair.margin is not None for pair in self.pairs):
            columns["margin"] = [pair.margin or 0.0 for pair in self.pairs]
        return columns


@dataclass
class PairCollator:
    """Builds a batch of sequences chosen_0, rejected_0, chosen_1, ... from rows of `pairs.columns()`.

    Besides the tensors of `Batch` it holds `index` [pairs] and, if the set has margins, `margin` [pairs]. With
    `generation`, the batch also contains the chosen responses themselves, read by the nested batch of that name.
    """

    pairs: EncodedPairs
    pad_token_id: int
    layout: Layout = "padded"
    generation: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        numbers = [row["row"] for row in rows]
        sequences = [each[number] for number in numbers for each in (self.pairs.chosen, self.pairs.rejected)]
        count = len(sequences)
        if self.generation:
            sequences += [self.pairs.chosen_responses[number] for number in numbers]
        first, rest = split(collate(sequences, self.layout, self.pad_token_id), count)
        batch: dict[str, Any] = {**first, "generation": rest} if self.generation else {**first}
        batch["index"] = torch.tensor(numbers)
        if "margin" in rows[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float32)
        return batch


@dataclass(frozen=True)
class EncodedPair:
    """A pair with the sequences that a reward model reads; see `EncodedPairs` for the attributes."""

    pair: PreferencePair
    chosen: TokenSequence
    rejected: TokenSequence
    chosen_response: TokenSequence
    response_lengths: tuple[int, int]
    control_texts: int = 0
    templated: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longer sequence."""
        return max(len(self.chosen), len(self.rejected))


def encode_pairs(
    data: PreferenceData,
    reader: PairReader,
    *,
    max_length: int | None = None,
    over_length: Literal["drop", "error"] = "drop",
    identical: Literal["drop", "error"] = "drop",
) -> EncodedPairs:
    """Encode a set. Pairs over a length limit are dropped and counted, or raise an error; none is ever truncated.

    The limit applies to the longest text that any reward model type reads for a pair, whether response or verification
    prompt, including the template, so every type keeps the same pairs.

    Raises:
        RmkitError: if `over_length` or `identical` is `error` and there is such a pair, or if no pair is left.
    """
    dropped: dict[str, int] = {}
    options: dict[str, Any] = {"max_length": max_length, "over_length": over_length, "identical": identical}
    return collect(data.name, iter_encoded(data, reader, dropped, **options), dropped)


def collect(name: str, encoded: Iterable[EncodedPair], dropped: dict[str, int]) -> EncodedPairs:
    """Pack pairs into a set. `dropped` may still be filled while `encoded` is iterated over."""
    pairs: list[PreferencePair] = []
    response_lengths: list[tuple[int, int]] = []
    chosen, rejected, chosen_responses = TokenSequences(), TokenSequences(), TokenSequences()
    control_texts = templated = 0
    for pair in encoded:
        pairs.append(pair.pair)
        response_lengths.append(pair.response_lengths)
        chosen.append(pair.chosen)
        rejected.append(pair.rejected)
        if pair.chosen_response is not pair.chosen:  # for all pairs or for none: the type decides
            chosen_responses.append(pair.chosen_response)
        control_texts += pair.control_texts
        templated += pair.templated
    return EncodedPairs(
        name,
        tuple(pairs),
        chosen,
        rejected,
        chosen_responses if len(chosen_responses) else chosen,
        tuple(response_lengths),
        dropped,
        control_texts,
        templated,
    )


def training_rows(data: Data, sets: Mapping[str, Sized]) -> dict[str, NDArray[np.int64]]:
    """By training set, the numbers of its pairs that make up an epoch; a pair may stand several times.

    Args:
        sets: the sets of `rmkit.data.sources.use.load_sets`, encoded or not.
    """
    weights = {each.name: max(each.weight, 1.0) for each in data.training_sets}  # lower ones have been applied
    return {name: draw(len(sets[name]), weight, data.seed) for name, weight in weights.items()}


def mix(encoded: Mapping[str, EncodedPairs], rows: Mapping[str, NDArray[np.int64]]) -> EncodedPairs:
    """The pairs of an epoch as one set; a single set that stands in it once is returned as it is.

    Args:
        rows: see `training_rows`.
    """
    if len(rows) == 1:
        ((name, numbers),) = rows.items()
        if len(numbers) == len(encoded[name]):
            return encoded[name]
    pairs = (encoded[name][number] for name, numbers in rows.items() for number in numbers.tolist())
    return collect(" + ".join(rows), pairs, {})


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
    """Warnings about a set's texts, one line each.

    Args:
        lengths: [units] tokens of the longest sequence of each unit.
        control_texts, templated: see `EncodedPairs`.
        known: the model's context length, if known.
        special_tokens: see `ChatEncoder`.
        unit: what is counted: pairs or responses.
    """
    lines = []
    longer = sum(length > known for length in lengths) if known is not None else 0
    if longer:
        lines.append(
            f"{name}: {longer} of {len(lengths)} {unit} are longer than the model's context length of {known} tokens "
            f"(up to {max(lengths)} tokens; data.max_length or --max-length drops them)"
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
    """Encode the pairs of a set in chunks, so that few are in memory; for the arguments see `encode_pairs`.

    Args:
        dropped: reason -> number of pairs left out; updated during the iteration.
    """
    dropped |= data.dropped
    left = 0
    template = TemplateReader(reader.encoder)
    for start in range(0, len(data.pairs), _CHUNK):
        chunk = template.apply(data, data.pairs[start : start + _CHUNK])
        for encoded, longest, same in _encode_rows(data, chunk, reader, max_length is not None):
            row = data.place(encoded.pair)
            if max_length is not None and longest > max_length:
                reason = f"longer than {max_length} tokens"
                if over_length == "error":
                    raise RmkitError(
                        f"{row} takes {longest} tokens, over the limit of {max_length}.",
                        "Raise data.max_length, or set data.over_length: drop.",
                    )
            elif same:
                reason = "identical responses"
                if identical == "error":
                    raise RmkitError(
                        f"{row} has the same chosen and rejected once the template is applied.",
                        "Remove such rows, or set data.identical: drop.",
                    )
            else:
                left += 1
                yield encoded
                continue
            dropped[reason] = dropped.get(reason, 0) + 1
    if not left:
        raise RmkitError(
            f"{data.name}: no pair is left ({', '.join(f'{count} {reason}' for reason, count in dropped.items())}).",
            "Raise the limit (data.max_length or --max-length), or use other pairs.",
        )


def _encode_rows(
    data: PreferenceData, pairs: Sequence[PreferencePair], reader: PairReader, every_type: bool
) -> Iterator[tuple[EncodedPair, int, bool]]:
    """`_encode_chunk`, with errors that name the row."""
    try:
        yield from _encode_chunk(pairs, reader, every_type)
    except RmkitError:
        for pair in pairs:
            try:
                list(_encode_chunk([pair], reader, every_type))
            except RmkitError as error:
                raise RmkitError(f"{data.place(pair)}: {error.cause}", error.remedy) from None
        raise


def _encode_chunk(
    pairs: Sequence[PreferencePair], reader: PairReader, every_type: bool
) -> Iterator[tuple[EncodedPair, int, bool]]:
    """Encode pairs; with each, its longest text in tokens, and whether both responses are the same to the template.

    Args:
        every_type: measure the texts of every type, as the length limit does; otherwise only prompt and response.
    """
    encoder = reader.encoder
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    responses = [response for pair in pairs for response in (pair.chosen, pair.rejected)]
    plain = encoder.response_sequences(prompts, responses)
    read = plain if reader.reads_responses else reader.encode(prompts, responses)
    longest = [len(sequence) for sequence in plain]
    if every_type:
        verification = encoder.verification_sequences(prompts, responses)
        longest = [max(lengths) for lengths in zip(longest, map(len, verification), map(len, read), strict=True)]
    for number, pair in enumerate(pairs):
        chosen, rejected = plain[2 * number : 2 * number + 2]
        encoded = EncodedPair(
            pair,
            read[2 * number],
            read[2 * number + 1],
            chosen,
            (chosen.response_length, rejected.response_length),
            sum((chosen.prompt_spells, chosen.response_spells, rejected.response_spells)),
            encoder.is_templated(pair.prompt),
        )
        yield encoded, max(longest[2 * number : 2 * number + 2]), chosen == rejected
