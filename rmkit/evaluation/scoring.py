"""The one scorer: sequences to outputs, outputs to rewards. Used in training, by `rmkit score` and from Python.

Batches with the most tokens are taken first, so that memory runs out at the start if at all. They depend on the
sequences, the batch size and the layout only: a model and its reference see the same ones, and so do a run and a later
rescoring. Under several processes each takes every n-th batch; all return the whole.
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

from rmkit.attention import layout_of
from rmkit.batching import Layout, laid_out
from rmkit.encoding import TokenSequence
from rmkit.evaluation.statistics import summary
from rmkit.language_model import run
from rmkit.pairs import EncodedPairs
from rmkit.reward_models.base import RewardModel

DEFAULT_BATCH_SIZE = 16


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

    @property
    def ranking(self) -> NDArray[np.float64]:
        """What ranks responses [pairs, 2]: log-rewards where there are any, since probabilities saturate."""
        return self.rewards if self.log_rewards is None else self.log_rewards

    def summary(self) -> dict[str, float]:
        """Accuracy, normalised margin, tie rate, Bradley-Terry loss, number of pairs."""
        return summary(self.rewards, self.log_rewards)


@torch.no_grad()
def sequence_outputs(
    model: nn.Module,
    reward_model: RewardModel[Any],
    sequences: Sequence[TokenSequence],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    layout: Layout | None = None,
    description: str | None = None,
) -> Tensor:
    """Outputs [sequences, outputs] in float64 on the CPU, in the order given.

    Args:
        model: bound (`rmkit.language_model.bind`), wrapped or not; all processes call it equally often (ZeRO-3).
        batch_size: sequences a forward pass.
        description: shown beside the progress bar; without one there is no bar.
    """
    state = PartialState()
    layout = layout or layout_of(model)
    batches = _batches(sequences, batch_size, layout)
    rounds = -(-len(batches) // state.num_processes)
    device = next(model.parameters()).device if state.num_processes == 1 else state.device
    pad_token_id = reward_model.encoder.tokenizer.pad_token_id
    was_training = model.training
    model.eval()
    mine: list[tuple[int, Tensor]] = []
    bar = tqdm(
        total=sum(map(len, sequences)),
        desc=description,
        unit="tok",
        unit_scale=True,
        disable=description is None or not state.is_main_process,
    )
    with bar:
        for number in range(rounds):
            at = number * state.num_processes + state.process_index
            members = batches[min(at, len(batches) - 1)]
            batch = laid_out([sequences[member] for member in members], layout, pad_token_id)
            outputs = run(model, reward_model.outputs, {name: tensor.to(device) for name, tensor in batch.items()})
            if at < len(batches):
                mine.append((at, outputs.double().cpu()))
            together = batches[number * state.num_processes : (number + 1) * state.num_processes]
            bar.update(sum(len(sequences[member]) for members in together for member in members))
    model.train(was_training)
    gathered = dict(gather_object(mine)) if state.num_processes > 1 else dict(mine)
    in_order = torch.cat([gathered[number] for number in range(len(batches))])
    return in_order[torch.tensor([member for members in batches for member in members]).argsort()]


def _batches(sequences: Sequence[TokenSequence], batch_size: int, layout: Layout) -> list[list[int]]:
    """The numbers of the sequences that go through the model together, the most tokens first.

    Padded batches hold sequences of like length; shared ones hold those that start alike.
    """
    numbers = range(len(sequences))
    key = (lambda number: sequences[number].ids) if layout == "shared" else (lambda number: len(sequences[number]))
    order = sorted(numbers, key=key, reverse=True)  # type: ignore[arg-type]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sorted(batches, key=lambda batch: -sum(len(sequences[member]) for member in batch))


def pair_outputs(model: nn.Module, reward_model: RewardModel[Any], pairs: EncodedPairs, **options: Any) -> Tensor:
    """Outputs [pairs, 2, outputs] of (chosen, rejected) in float64; options as of `sequence_outputs`."""
    outputs = sequence_outputs(model, reward_model, [*pairs.chosen, *pairs.rejected], **options)
    return torch.stack(outputs.chunk(2), dim=1)


def pair_rewards(reward_model: RewardModel[Any], outputs: Tensor, reference: Tensor | None) -> PairRewards:
    """Rewards from outputs [pairs, 2, outputs] of a model and of its reference, where it has one."""
    log_rewards = reward_model.log_rewards(outputs)
    return PairRewards(
        reward_model.rewards(outputs, reference).numpy(), None if log_rewards is None else log_rewards.numpy()
    )
