"""Collate sequences into tensors, in one of two layouts that heads read in the same way.

`share` packs sequences into one row that stores each shared prefix once, without padding; `pad` gives each sequence its
own row. Either way the batch names the positions of the flattened rows that heads read. Heads use these positions only,
so the layout never changes a reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmkit.encoding.chat import TokenSequence

Layout = Literal["shared", "padded"]

Batch = Mapping[str, Tensor]
"""Tensors by name:

input_ids, position_ids: [rows, tokens], the language model's inputs.
attention_mask: [rows, tokens], if padded; `branches` [branches, 2] if shared (`shared_attention.PackedRow`).
last: [sequences] position of each sequence's last token in the flattened rows.
response: [response tokens] positions of the responses' tokens that count, sequence after sequence.
predictor: [response tokens] the positions whose next-token distribution those tokens are drawn from.
response_lengths: [sequences] number of response tokens of each sequence.
"""

_MIN_SHARED = 16
"""Shorter shared prefixes are computed again, which is faster than concatenating their keys."""


def share(sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
    """Pack sequences into one row that stores each shared prefix once.

    Sequences are sorted by their ids in descending order. A sequence that is a prefix of others then follows them, and
    the longest prefix that a sequence shares with any earlier one is shared with the one directly before it.
    """
    paths: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)] * len(sequences)
    ids, positions, branches = [], [], []
    before, path = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    tokens = 0
    for number in sorted(range(len(sequences)), key=lambda index: sequences[index].ids, reverse=True):
        current = np.asarray(sequences[number].ids, dtype=np.int64)
        shared = common_prefix(before, current)
        if shared < min(_MIN_SHARED, len(current)):
            shared = 0
        own = len(current) - shared
        paths[number] = np.concatenate([path[:shared], np.arange(tokens, tokens + own)])
        if own:
            ids.append(current[shared:])
            positions.append(np.arange(shared, len(current)))
            branches.append((shared, own))
            before, path = current, paths[number]
            tokens += own
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids))[None],
        "position_ids": torch.from_numpy(np.concatenate(positions))[None],
        "branches": torch.tensor(branches),
        **_read_positions(paths, sequences),
    }


def common_prefix(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """The number of equal tokens at the start of two sequences."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def pad(
    sequences: Sequence[TokenSequence], pad_token_id: int, side: Literal["left", "right"] = "right"
) -> dict[str, Tensor]:
    """One row per sequence, padded to the longest; left and right padding give the same results."""
    width = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), width), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    position_ids = torch.zeros_like(input_ids)
    paths = []
    for row, sequence in enumerate(sequences):
        length = len(sequence)
        start = width - length if side == "left" else 0
        input_ids[row, start : start + length] = torch.tensor(sequence.ids)
        attention_mask[row, start : start + length] = 1
        position_ids[row, start : start + length] = torch.arange(length)
        paths.append(np.arange(length) + row * width + start)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        **_read_positions(paths, sequences),
    }


def _read_positions(paths: Sequence[NDArray[np.int64]], sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
    """The positions that heads read, from the positions of each sequence's tokens."""
    counted = [sequence.response_positions for sequence in sequences]
    responses = [path[each] for path, each in zip(paths, counted, strict=True)]
    predictors = [path[each - 1] for path, each in zip(paths, counted, strict=True)]
    return {
        "last": torch.tensor([path[-1] for path in paths]),
        "response": torch.from_numpy(np.concatenate(responses)),
        "predictor": torch.from_numpy(np.concatenate(predictors)),
        "response_lengths": torch.tensor([len(response) for response in responses]),
    }


def collate(sequences: Sequence[TokenSequence], layout: Layout, pad_token_id: int) -> dict[str, Tensor]:
    """Collate sequences into a batch of the given layout."""
    return share(sequences) if layout == "shared" else pad(sequences, pad_token_id)


def split(batch: Batch, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a batch in two with the same rows: one reads the first `number` sequences, the other one the rest."""
    tokens = int(batch["response_lengths"][:number].sum())
    first, rest = dict(batch), dict(batch)
    for name, at in (("last", number), ("response_lengths", number), ("response", tokens), ("predictor", tokens)):
        first[name], rest[name] = batch[name][:at], batch[name][at:]
    return first, rest
