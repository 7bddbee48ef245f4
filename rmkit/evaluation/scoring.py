"""The one scorer: sequences to outputs, outputs to rewards. Used in training, by `rmkit score` and from Python.

Pairs are taken in windows of a bounded number. In a window batches with the most tokens come first, so that memory runs
out at the start if at all. They depend on the sequences, the batch size and the layout only: a model and its reference
see the same ones, and so do a run and a later rescoring. Under several processes each takes every n-th batch, and all
return the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from rmkit.encoding.batches import Layout, collate
from rmkit.encoding.chat import TokenSequence
from rmkit.encoding.pairs import EncodedPairs
from rmkit.evaluation.limits import DEFAULT_BATCH_SIZE, WINDOW
from rmkit.evaluation.statistics import summary
from rmkit.models.language_model import apply_head, only_read
from rmkit.models.shared_attention import layout_of
from rmkit.reward_models.base import RewardModel


@dataclass(frozen=True)
class PairRewards:
    """Rewards [pairs, 2] of (chosen, rejected) in float64; `log_rewards` where rewards are probabilities."""

    rewards: NDArray[np.float64]
    log_rewards: NDArray[np.float64] | None = None

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """What a rewards file holds beside the index."""
        columns = {"chosen_reward": self.rewards[:, 0], "rejected_reward": self.rewards[:, 1]}
        if self.log_rewards is not None:
            columns |= {"chosen_log_reward": self.log_rewards[:, 0], "rejected_log_reward": self.log_rewards[:, 1]}
        return columns

    def __getitem__(self, pairs: slice) -> PairRewards:
        return PairRewards(self.rewards[pairs], None if self.log_rewards is None else self.log_rewards[pairs])

    @property
    def ranking(self) -> NDArray[np.float64]:
        """What ranks responses [pairs, 2]: log-rewards where there are any, since probabilities saturate."""
        return self.rewards if self.log_rewards is None else self.log_rewards

    def summary(self) -> dict[str, float]:
        """Accuracy, normalised margin, tie rate, Bradley-Terry loss, number of pairs."""
        return summary(self.rewards, self.log_rewards)


class Progress:
    """A bar over the responses of a pass, with the tokens that are read a second; without a description there is none.

    Args:
        total: responses, each counted once for every model that reads it; more than that where some are left out.
    """

    def __init__(self, description: str | None, total: int):
        shown = description is not None and PartialState().is_main_process
        self._bar = tqdm(total=total, desc=description, unit="response", disable=not shown)
        self._tokens = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._bar.total = self._bar.n
            self._bar.refresh()
        self._bar.close()

    def add(self, responses: int, tokens: int = 0) -> None:
        """So many are done, of which so many tokens were read."""
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
    """Outputs [sequences, outputs] in float64 on the CPU, in the order given. What is there twice is computed once.

    Args:
        model: bound (`rmkit.models.language_model.bind`), wrapped or not; all processes call it equally often (ZeRO-3).
        batch_size: different sequences a forward pass.
        layout: shared or padded; the model's own if it is left out.
    """
    state = PartialState()
    layout = layout or layout_of(model)
    number_of: dict[TokenSequence, int] = {}
    numbers = [number_of.setdefault(each, len(number_of)) for each in sequences]
    different = list(number_of)
    batches = _batches(different, batch_size, layout)
    rounds = -(-len(batches) // state.num_processes)
    device = next(model.parameters()).device if state.num_processes == 1 else state.device
    pad_token_id = reward_model.encoder.tokenizer.pad_token_id
    was_training = model.training
    model.eval()
    mine: list[tuple[int, Tensor]] = []
    for turn in range(rounds):
        at = turn * state.num_processes + state.process_index
        members = batches[min(at, len(batches) - 1)]
        batch = collate([different[member] for member in members], layout, pad_token_id)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with only_read(model, batch[reward_model.reads].unique()):
            outputs = apply_head(model, reward_model.outputs, batch)
        if at < len(batches):
            mine.append((at, outputs.double().cpu()))
        if progress is not None:
            together = batches[turn * state.num_processes : (turn + 1) * state.num_processes]
            lengths = [len(different[member]) for members in together for member in members]
            progress.add(len(lengths), sum(lengths))
    if progress is not None:
        progress.add(len(sequences) - len(different))
    model.train(was_training)
    gathered = dict(gather_object(mine)) if state.num_processes > 1 else dict(mine)
    in_order = torch.cat([gathered[number] for number in range(len(batches))])
    place = torch.tensor([member for members in batches for member in members]).argsort()
    return in_order[place[torch.tensor(numbers)]]


def _batches(sequences: Sequence[TokenSequence], batch_size: int, layout: Layout) -> list[list[int]]:
    """The numbers of the sequences that go through the model together, the most tokens first.

    Padded batches hold sequences of like length; shared ones hold those that start alike. The order in which sequences
    are given does not matter.
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
    """Outputs [pairs, 2, outputs] of (chosen, rejected) in float64, window after window.

    Args:
        description: shown beside the progress bar; without one there is no bar.
    """
    outputs = []
    with Progress(description, 2 * len(pairs)) as progress:
        for start in range(0, len(pairs), WINDOW):
            chosen, rejected = (each[start : start + WINDOW] for each in (pairs.chosen, pairs.rejected))
            options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
            both = sequence_outputs(model, reward_model, [*chosen, *rejected], **options)
            outputs.append(torch.stack(both.chunk(2), dim=1))
    return torch.cat(outputs)


def pair_rewards(reward_model: RewardModel[Any], outputs: Tensor, reference: Tensor | None) -> PairRewards:
    """Rewards from outputs [pairs, 2, outputs] of a model and of its reference, where it has one."""
    log_rewards = reward_model.log_rewards(outputs)
    return PairRewards(
        reward_model.rewards(outputs, reference).numpy(), None if log_rewards is None else log_rewards.numpy()
    )
