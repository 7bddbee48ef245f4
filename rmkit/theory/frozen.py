"""Fixed hidden states (Assumption 1), and actual gradient steps to compare predictions with.

The steps go through the reward models' own code (`outputs`, `rewards`, `loss`), which does not use the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from rmkit.encoding.batches import Batch, pad
from rmkit.encoding.chat import TokenSequence
from rmkit.errors import RmkitError
from rmkit.evaluation.scoring import sequence_outputs
from rmkit.models.language_model import apply_head, bind
from rmkit.models.positions import last_position, refuse_longer
from rmkit.reward_models import RewardModel


@dataclass(frozen=True)
class Frozen:
    """A sequence with its hidden states [tokens, hidden size] in float64."""

    sequence: TokenSequence
    hidden: Tensor


@dataclass
class FrozenHeadModel:
    """A reward model set up for the theory: one process, the trained matrix a separate parameter in float64.

    Attributes:
        reward_model: its type.
        model: a bound model, with a reward head if the type has one.
        notes: what was changed in the model, one line per change.
    """

    reward_model: RewardModel[Any]
    model: PreTrainedModel
    notes: list[str] = field(default_factory=list)

    @property
    def weight(self) -> nn.Parameter:
        """The trained matrix under Assumption 1: u as [1, hidden size], or U [vocabulary, hidden size]."""
        module = self.model.score if self.reward_model.head else self.model.get_output_embeddings()
        weight: nn.Parameter = module.weight
        return weight


def freeze_backbone(reward_model: RewardModel[Any], model: PreTrainedModel | PeftModel) -> FrozenHeadModel:
    """Set up a model in place: merge adapters, untie the unembedding, convert the trained matrix to float64.

    The rest keeps its dtype. With a float64 backbone, hidden states are as exact as transformers allows.
    """
    notes = []
    if isinstance(model, PeftModel):
        model = bind(model.merge_and_unload())
        notes.append("The adapters are merged into the weights.")
    if reward_model.head:
        model.score.double()
    else:
        unembedding, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if unembedding.weight is embedding.weight:
            unembedding.weight = nn.Parameter(unembedding.weight.detach().clone())
            notes.append("The unembedding is tied to the embeddings: it is untied in a copy, as the equations assume.")
        unembedding.double()
    return FrozenHeadModel(reward_model, model.eval().requires_grad_(), notes)


@torch.no_grad()
def freeze(
    frozen_model: FrozenHeadModel,
    sequences: Sequence[TokenSequence],
    batch_size: int = 8,
    description: str | None = None,
) -> list[Frozen]:
    """The hidden states of sequences, with `batch_size` sequences per forward pass.

    Raises:
        RmkitError: if one is longer than the model's position embeddings, or has a response of several turns, of which
            the equations say nothing.
    """
    if any(sequence.gaps for sequence in sequences):
        raise RmkitError(
            "A response has several turns; the equations are about responses of one turn.", "Use pairs of single turns."
        )
    refuse_longer("the pairs", max(map(len, sequences), default=0), last_position(frozen_model.model))
    device = next(frozen_model.model.parameters()).device
    frozen: list[Frozen] = []
    with tqdm(total=len(sequences), desc=description, unit="seq", disable=description is None) as bar:
        for start in range(0, len(sequences), batch_size):
            some = sequences[start : start + batch_size]
            batch = {name: tensor.to(device) for name, tensor in _pad(frozen_model, some).items()}
            hidden = apply_head(frozen_model.model, _hidden_states, batch).unflatten(0, (len(some), -1))
            frozen += [
                Frozen(sequence, row[: len(sequence)].double().clone())
                for sequence, row in zip(some, hidden, strict=True)
            ]
            bar.update(len(some))
    return frozen


def concatenate(frozen: Sequence[Frozen]) -> tuple[Tensor, Batch]:
    """Join sequences: hidden states [positions, hidden size], and the batch of positions to read."""
    hidden = torch.cat([state.hidden for state in frozen])
    device = hidden.device
    lengths = torch.tensor([len(state.sequence) for state in frozen])
    starts = lengths.cumsum(0) - lengths
    response = torch.cat(
        [
            torch.arange(state.sequence.response_start, len(state.sequence)) + start
            for state, start in zip(frozen, starts, strict=True)
        ]
    )
    batch = {
        "input_ids": torch.cat([torch.tensor(state.sequence.ids) for state in frozen])[None],
        "last": starts + lengths - 1,
        "response": response,
        "predictor": response - 1,
        "response_lengths": torch.tensor([len(state.sequence) - state.sequence.response_start for state in frozen]),
    }
    return hidden, {name: tensor.to(device) for name, tensor in batch.items()}


def outputs(frozen_model: FrozenHeadModel, frozen: Sequence[Frozen]) -> Tensor:
    """The reward model's outputs [sequences, outputs] in float64, from frozen hidden states."""
    hidden, batch = concatenate(frozen)
    return frozen_model.reward_model.outputs(frozen_model.model, hidden, batch)


def measured_changes(
    frozen_model: FrozenHeadModel,
    chosen: Frozen,
    rejected: Frozen,
    targets: Sequence[Frozen],
    learning_rates: Sequence[float],
    reference: Tensor | None = None,
) -> Tensor:
    """Changes [learning rates, targets] of rewards after a gradient step on one pair, with frozen hidden states.

    The step changes u or U by autograd through the type's own loss; then the rewards are recomputed.

    Args:
        reference: [1, 2, outputs] the reference's outputs on the pair, if the type has a reference.
    """
    weight = frozen_model.weight
    initial = weight.detach().clone()
    with torch.enable_grad():
        pair = outputs(frozen_model, [chosen, rejected]).unflatten(0, (1, 2))
        (gradient,) = torch.autograd.grad(frozen_model.reward_model.loss(pair, reference), weight)
    with torch.no_grad():
        before = outputs(frozen_model, targets)
        changes = []
        for learning_rate in learning_rates:
            weight.copy_(initial).sub_(gradient, alpha=learning_rate)
            changes.append(reward_change(frozen_model.reward_model, before, outputs(frozen_model, targets)))
        weight.copy_(initial)
    return torch.stack(changes)


def trainable_changes(
    frozen_model: FrozenHeadModel,
    chosen: TokenSequence,
    rejected: TokenSequence,
    targets: Sequence[TokenSequence],
    learning_rate: float,
    reference: Tensor | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Changes [targets] of rewards after the same step on all parameters, without Assumption 1 or a formula.

    transformers computes norms and attention weights in float32 for any model dtype, so this is less exact.
    """

    def compute() -> Tensor:
        return sequence_outputs(frozen_model.model, frozen_model.reward_model, targets, batch_size=batch_size)

    before = compute()
    device = next(frozen_model.model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in _pad(frozen_model, [chosen, rejected]).items()}
    with torch.enable_grad():
        frozen_model.reward_model.loss(
            apply_head(frozen_model.model, frozen_model.reward_model.outputs, batch).unflatten(0, (1, 2)), reference
        ).backward()
    trained = [parameter for parameter in frozen_model.model.parameters() if parameter.grad is not None]
    with torch.no_grad():
        for parameter in trained:
            parameter.sub_(parameter.grad, alpha=learning_rate)
        after = compute()
        for parameter in trained:
            parameter.add_(parameter.grad, alpha=learning_rate)
            parameter.grad = None
    return reward_change(frozen_model.reward_model, before, after)


def reward_change(reward_model: RewardModel[Any], before: Tensor, after: Tensor) -> Tensor:
    """Changes of rewards [...] between outputs [..., outputs]. The reference cancels, so any outputs can replace it."""
    reference = None if reward_model.reference is None else before
    return reward_model.rewards(after, reference) - reward_model.rewards(before, reference)


def _pad(frozen_model: FrozenHeadModel, sequences: Sequence[TokenSequence]) -> Batch:
    return pad(sequences, frozen_model.reward_model.encoder.tokenizer.pad_token_id)


def _hidden_states(model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
    return hidden
