"""Sequences to tensors: two layouts, and one way in which heads read both.

`share` puts every token once into one row, without padding; `pad` gives each sequence a row of its own. Either way a
batch says at which positions of the flattened rows the heads look. Heads use these positions only, so the layout never
changes a reward.
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

input_ids, position_ids: [rows, tokens], what the language model reads.
attention_mask: [rows, tokens], if padded; `branches` [sequences, 2] if shared (`shared_attention.PackedRow`).
last: [sequences] position of each sequence's last token in the flattened rows.
response: [response tokens] positions of the responses' tokens, sequence after sequence.
predictor: [response tokens] the positions whose next-token distribution those tokens are drawn from.
response_lengths: [sequences] number of response tokens of each.
"""

_WORTH_SHARING = 16
"""Shared tokens below this number are computed again: what joins the keys would take longer."""


def share(sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
    """One row that holds every token once, as far as sequences start alike.

    Sequences stand in the row by their ids, in descending order, so that one with which others start lies on their
    path, and each has what it shares with any other in common with the one before.
    """
    paths: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)] * len(sequences)
    ids, positions, branches = [], [], []
    before, path = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    tokens = 0
    for number in sorted(range(len(sequences)), key=lambda each: sequences[each].ids, reverse=True):
        these = np.asarray(sequences[number].ids, dtype=np.int64)
        shared = common_prefix(before, these)
        if shared < min(_WORTH_SHARING, len(these)):
            shared = 0
        own = len(these) - shared
        paths[number] = np.concatenate([path[:shared], np.arange(tokens, tokens + own)])
        if own:
            ids.append(these[shared:])
            positions.append(np.arange(shared, len(these)))
            branches.append((shared, own))
            before, path = these, paths[number]
            tokens += own
    starts = [sequence.response_start for sequence in sequences]
    return {
        "input_ids": torch.from_numpy(np.concatenate(ids))[None],
        "position_ids": torch.from_numpy(np.concatenate(positions))[None],
        "branches": torch.tensor(branches),
        **_read_at(paths, starts),
    }


def common_prefix(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """With how many equal tokens two sequences start."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def pad(
    sequences: Sequence[TokenSequence], pad_token_id: int, side: Literal["left", "right"] = "right"
) -> dict[str, Tensor]:
    """One row a sequence, padded to the longest. Position ids count real tokens, so the side of the padding is free."""
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
        **_read_at(paths, [sequence.response_start for sequence in sequences]),
    }


def _read_at(paths: Sequence[NDArray[np.int64]], starts: Sequence[int]) -> dict[str, Tensor]:
    """Where the heads look, from where in the flattened rows each sequence's tokens lie and where responses start."""
    responses = [path[start:] for path, start in zip(paths, starts, strict=True)]
    predictors = [path[start - 1 : -1] for path, start in zip(paths, starts, strict=True)]
    return {
        "last": torch.tensor([path[-1] for path in paths]),
        "response": torch.from_numpy(np.concatenate(responses)),
        "predictor": torch.from_numpy(np.concatenate(predictors)),
        "response_lengths": torch.tensor([len(each) for each in responses]),
    }


def collate(sequences: Sequence[TokenSequence], layout: Layout, pad_token_id: int) -> dict[str, Tensor]:
    """A batch of sequences in a layout."""
    return share(sequences) if layout == "shared" else pad(sequences, pad_token_id)


def split(batch: Batch, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two batches of the same rows, of which one reads the first `number` sequences and the other the rest."""
    tokens = int(batch["response_lengths"][:number].sum())
    first, rest = dict(batch), dict(batch)
    for name, at in (("last", number), ("response_lengths", number), ("response", tokens), ("predictor", tokens)):
        first[name], rest[name] = batch[name][:at], batch[name][at:]
    return first, rest
