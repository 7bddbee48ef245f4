"""The one scorer: sequences to outputs, outputs to rewards. Used in training, by `rmkit score` and from Python.

Pairs are processed in windows of bounded size. Within a window the batches with the most tokens come first, so that
memory runs out at the start if at all. Batches depend only on the sequences, the batch size and the layout: a model and
its reference see the same ones, and so do a run and a later rescoring. With n processes each computes every n-th batch,
and all return the full result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from rmkit.encoding.batches import Layout, collate
from rmkit.encoding.chat import TokenSequence
from rmkit.encoding.pairs import EncodedPairs
from rmkit.evaluation.limits import DEFAULT_BATCH_SIZE, WINDOW
from rmkit.models.language_model import apply_head, only_read
from rmkit.models.shared_attention import layout_of
from rmkit.reward_models.base import RewardModel
from rmkit.runs.rewards import PairRewards


class Progress:
    """A progress bar over responses that shows tokens per second; no bar without a description.

    Args:
        total: the number of responses, counted once per model that reads them; an upper bound if some are left out.
    """

    def __init__(self, description: str | None, total: int):
        visible = description is not None and PartialState().is_main_process
        self._bar = tqdm(total=total, desc=description, unit="response", disable=not visible)
        self._tokens = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        if error_type is None:
            self._bar.total = self._bar.n
            self._bar.refresh()
        self._bar.close()

    def add(self, responses: int, tokens: int = 0) -> None:
        """Advance by a number of responses, for which a number of tokens was read."""
        self._tokens += tokens
        if self._bar.disable:
            return
        elapsed = self._bar.format_dict["elapsed"] or 1.0
        self._bar.set_postfix_str(f"{tqdm.format_sizeof(self._tokens / elapsed)} tok/s", refresh=False)
        self._bar.update(responses)


@torch.no_grad()
def sequence_outputs(
    model: nn.Module,
    reward_model: RewardModel[Any],
    sequences: Sequence[TokenSequence],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    layout: Layout | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Outputs [sequences, outputs] in float64 on the CPU, in the given order. Repeated sequences are computed once.

    Args:
        model: bound (`rmkit.models.language_model.bind`), wrapped or not; all processes call it equally often (ZeRO-3).
        batch_size: distinct sequences per forward pass.
        layout: shared or padded; the model's own by default.
    """
    number_of: dict[TokenSequence, int] = {}
    numbers = [number_of.setdefault(sequence, len(number_of)) for sequence in sequences]
    distinct = list(number_of)
    layout = layout or layout_of(model)
    batches = _batches(distinct, batch_size, layout)
    was_training = model.training
    model.eval()
    outputs = _batch_outputs(model, reward_model, distinct, batches, layout, progress)
    model.train(was_training)
    if progress is not None:
        progress.add(len(sequences) - len(distinct))
    position = torch.tensor([member for batch in batches for member in batch]).argsort()
    return torch.cat(outputs)[position[torch.tensor(numbers)]]


def _batch_outputs(
    model: nn.Module,
    reward_model: RewardModel[Any],
    sequences: Sequence[TokenSequence],
    batches: Sequence[Sequence[int]],
    layout: Layout,
    progress: Progress | None,
) -> list[Tensor]:
    """The outputs of every batch, computed by all processes in turn: a process without a batch repeats the last one."""
    state = PartialState()
    processes = state.num_processes
    device = next(model.parameters()).device if processes == 1 else state.device
    own: list[tuple[int, Tensor]] = []
    for start in range(0, len(batches), processes):
        number = start + state.process_index
        members = [sequences[member] for member in batches[min(number, len(batches) - 1)]]
        batch = collate(members, layout, reward_model.encoder.tokenizer.pad_token_id)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with only_read(model, batch[reward_model.reads].unique()):
            outputs = apply_head(model, reward_model.outputs, batch)
        if number < len(batches):
            own.append((number, outputs.double().cpu()))
        if progress is not None:
            lengths = [len(sequences[member]) for batch in batches[start : start + processes] for member in batch]
            progress.add(len(lengths), sum(lengths))
    by_number = dict(gather_object(own)) if processes > 1 else dict(own)
    return [by_number[number] for number in range(len(batches))]


def _batches(sequences: Sequence[TokenSequence], batch_size: int, layout: Layout) -> list[list[int]]:
    """The numbers of the sequences of every batch, the batch with the most tokens first.

    Padded batches hold sequences of similar length, shared ones sequences with common prefixes. The order of
    `sequences` does not matter.
    """
    order = sorted(range(len(sequences)), key=lambda number: sequences[number].ids, reverse=True)
    if layout == "padded":
        order.sort(key=lambda number: -len(sequences[number]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sorted(batches, key=lambda batch: -sum(len(sequences[member]) for member in batch))


def pair_outputs(
    model: nn.Module,
    reward_model: RewardModel[Any],
    pairs: EncodedPairs,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    description: str | None = None,
) -> Tensor:
    """Outputs [pairs, 2, outputs] of (chosen, rejected) in float64, computed window by window.

    Args:
        description: label of the progress bar; no bar without one.
    """
    outputs = []
    with Progress(description, 2 * len(pairs)) as progress:
        for start in range(0, len(pairs), WINDOW):
            window = slice(start, start + WINDOW)
            chosen, rejected = pairs.chosen[window], pairs.rejected[window]
            options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
            both = sequence_outputs(model, reward_model, [*chosen, *rejected], **options)
            outputs.append(torch.stack(both.chunk(2), dim=1))
    return torch.cat(outputs)


def pair_rewards(
    reward_model: RewardModel[Any], outputs: Tensor, reference: Tensor | None, index: Sequence[int]
) -> PairRewards:
    """Rewards from the outputs [pairs, 2, outputs] of a model and, if it has one, of its reference.

    Args:
        index: [pairs] the row of each pair in its source.
    """
    log_rewards = reward_model.log_rewards(outputs)
    return PairRewards(
        np.array(index, dtype=np.int64),
        reward_model.rewards(outputs, reference).numpy(),
        None if log_rewards is None else log_rewards.numpy(),
    )
