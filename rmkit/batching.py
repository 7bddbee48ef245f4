"""Sequences to tensors: one batch layout for every type of reward model.

A batch says, beside what the language model reads, at which positions of the flattened rows the heads look. Heads use
these positions only, so where the padding lies, or how sequences are laid out in rows, never changes a reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rmkit.encoding import TokenSequence

MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids")

Batch = Mapping[str, Tensor]
"""Tensors by name:

input_ids, attention_mask, position_ids: [rows, tokens], what the language model reads.
last: [sequences] position of each sequence's last token in the flattened rows.
response: [response tokens] positions of the responses' tokens, sequence after sequence.
predictor: [response tokens] the positions whose next-token distribution those tokens are drawn from.
response_lengths: [sequences] number of response tokens of each.
"""


def pad(
    sequences: Sequence[TokenSequence], pad_token_id: int, side: Literal["left", "right"] = "right"
) -> dict[str, Tensor]:
    """One row a sequence, padded to the longest. Position ids count real tokens, so the side of the padding is free."""
    width = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), width), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    position_ids = torch.zeros_like(input_ids)
    last, response = [], []
    for row, sequence in enumerate(sequences):
        length = len(sequence)
        start = width - length if side == "left" else 0
        input_ids[row, start : start + length] = torch.tensor(sequence.ids)
        attention_mask[row, start : start + length] = 1
        position_ids[row, start : start + length] = torch.arange(length)
        last.append(row * width + start + length - 1)
        response.append(torch.arange(sequence.response_start, length) + row * width + start)
    positions = torch.cat(response)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "last": torch.tensor(last),
        "response": positions,
        "predictor": positions - 1,
        "response_lengths": torch.tensor([len(each) for each in response]),
    }


@dataclass
class PairCollator:
    """Rows of an encoded training set to a batch of sequences chosen_0, rejected_0, chosen_1, ...

    Beside the tensors of `Batch` it holds `index` [pairs], where the set has margins `margin` [pairs], and, for types
    that do not read responses as such, under `generation` the batch of the chosen responses.
    """

    pad_token_id: int
    side: Literal["left", "right"] = "right"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self._pad(rows, "chosen", "rejected")
        batch["index"] = torch.tensor([row["row"] for row in rows])
        if "margin" in rows[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float32)
        if "generation_ids" in rows[0]:
            batch["generation"] = self._pad(rows, "generation")
        return batch

    def _pad(self, rows: Sequence[Mapping[str, Any]], *names: str) -> dict[str, Tensor]:
        sequences = [TokenSequence(row[f"{name}_ids"], row[f"{name}_start"]) for row in rows for name in names]
        return pad(sequences, self.pad_token_id, self.side)
