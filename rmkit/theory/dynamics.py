"""What one gradient step on a pair (x, y+, y-) does to the reward of any response (Section 4.1; Appendix B.3-B.5).

The equations come first, as pure functions; `predict` applies a type's equation to frozen sequences. All changes are
per unit of learning rate. The equations are linear in it, up to O(learning rate^2), a term that Eq. 4 lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rmkit.errors import RmkitError
from rmkit.models.language_model import logit_cap, logit_scale, segment_sum
from rmkit.reward_models import RewardModel
from rmkit.reward_models.explicit import ExplicitRewardModel
from rmkit.reward_models.generative import GenerativeRewardModel
from rmkit.reward_models.implicit import ImplicitRewardModel
from rmkit.theory.frozen import Frozen, FrozenHeadModel, concatenate, outputs

COEFFICIENT_BOUNDS = {
    "rho": (-2.0, 2.0),
    "rho_matching": (0.0, 2.0),
    "gamma_chosen": (0.0, 2.0),
    "gamma_rejected": (-2.0, 1.0),
}
"""Eq. 5 and Eq. 8."""

_CHUNK = 2**24  # entries: 128 MiB in float64, of [positions, vocabulary chunk] and of [positions, positions]


# --- the equations -------------------------------------------------------------------------------------------------


def loss_slope(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    """g = sigmoid(r(x, y-) - r(x, y+)), the slope of the Bradley-Terry loss (below Eq. 4)."""
    return torch.sigmoid(rejected_reward - chosen_reward)


def explicit_change(target: Tensor, chosen: Tensor, rejected: Tensor, g: Tensor) -> Tensor:
    """<h_target, h_chosen - h_rejected> g (Eq. 4): the whole change, exact at any learning rate.

    Args:
        target: [targets, hidden size] representations of the target responses.
        chosen, rejected: [hidden size] those of the training pair.
        g: scalar, `loss_slope`.

    Returns:
        [targets] per unit of learning rate.
    """
    return target @ (chosen - rejected) * g


@dataclass(frozen=True)
class Unembedding:
    """U [vocabulary, hidden size] in float64, its bias [vocabulary], and the cap c of logits c tanh(Uh / c), if any."""

    weight: Tensor
    bias: Tensor | None = None
    cap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Unembedding:
        """The unembedding of a language model."""
        layer = model.get_output_embeddings()
        bias = getattr(layer, "bias", None)
        return cls(layer.weight.detach(), None if bias is None else bias.detach(), logit_cap(model))

    def __call__(self, hidden: Tensor, part: slice = slice(None)) -> tuple[Tensor, Tensor | None]:
        """Logits [positions, chunk] of a chunk of the vocabulary, and the slope of the cap there (None: 1)."""
        logits = hidden @ self.weight[part].T
        if self.bias is not None:
            logits += self.bias[part]
        if self.cap is None:
            return logits, None
        capped = torch.tanh(logits / self.cap)
        return self.cap * capped, 1 - capped**2


@dataclass(frozen=True)
class Positions:
    """Predicted tokens [positions], and the hidden states [positions, hidden size] before them.

    A model with logits s U h (`logit_scale`) is one with logits U h' and hidden states h' = s h, as they are here.
    """

    hidden: Tensor
    tokens: Tensor


def coefficients(unembedding: Unembedding, target: Positions, source: Positions) -> Tensor:
    """rho_{k,l} = <e_{target_k} - pi_k, e_{source_l} - pi_l> (Eq. 5 and B.4; gamma of Eq. 8 with tokens Yes and No).

    With capped logits, e - pi is multiplied entrywise by the slope of the cap, in (0, 1]: the derivation of B.4 with
    d capped / d U. The bound [-2, 2], and rho > 0 where the tokens match (footnote 2), still hold.

    The vocabulary is processed in chunks, once for the normalisers and once for the products: memory is
    (targets + sources) * chunk + targets * sources, never targets * sources * vocabulary.

    Returns:
        [target positions, source positions] in float64.
    """
    parts = list(_parts(len(unembedding.weight), len(target.tokens) + len(source.tokens)))
    normalisers = [
        torch.logsumexp(torch.stack([unembedding(side.hidden, part)[0].logsumexp(-1) for part in parts]), 0)
        for side in (target, source)
    ]
    rho = target.hidden.new_zeros(len(target.tokens), len(source.tokens))
    for part in parts:
        left, right = (
            _residuals(unembedding, side, normaliser, part)
            for side, normaliser in zip((target, source), normalisers, strict=True)
        )
        rho += left @ right.T
    return rho


def implicit_contributions(rho: Tensor, target: Tensor, source: Tensor, signs: Tensor) -> Tensor:
    """rho_{k,l} <h_k, h_l> for all pairs of tokens, negated for tokens l of y- (the terms of Eq. 5).

    Args:
        rho: [target positions, source positions].
        target: [target positions, hidden size] hidden states before the tokens of the target responses.
        source: [source positions, hidden size] those before the tokens of y+, followed by y-.
        signs: [source positions] +1 for y+, -1 for y-.

    Returns:
        [target positions, source positions]; times g beta^2 and summed over a response, the change of its reward.
    """
    return rho * (target @ source.T) * signs


def generative_change(reward: Tensor, gamma: Tensor, target: Tensor, source: Tensor) -> Tensor:
    """pi(Yes) (gamma(y+) <h, h+> + gamma(y-) <h, h->) (Eq. 8).

    Args:
        reward: [targets] pi(Yes | I[x_bar, y_bar]).
        gamma: [targets, 2] gamma(y+) and gamma(y-).
        target: [targets, hidden size] hidden states at the end of I[x_bar, y_bar].
        source: [2, hidden size] those of I[x, y+] and I[x, y-].

    Returns:
        [targets] per unit of learning rate.
    """
    return reward * (gamma * (target @ source.T)).sum(-1)


# --- applied to a type ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """Changes of rewards per unit of learning rate.

    Attributes:
        equation: its name.
        change: [targets].
        parts: name -> [targets], for IM-RMs the contributions of matching tokens, of tokens in the template's suffix,
            and of all others, which add up to `change`; and the sums of their absolute values.
        coefficients: name -> (smallest, largest).
    """

    equation: str
    change: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    coefficients: dict[str, tuple[float, float]] = field(default_factory=dict)


@singledispatch
def predict(
    reward_model: RewardModel[Any],
    frozen_model: FrozenHeadModel,
    chosen: Frozen,
    rejected: Frozen,
    targets: Sequence[Frozen],
    reference: Tensor | None = None,
) -> Prediction:
    """The first-order change of the rewards of `targets` after a step on (chosen, rejected), by the type's equation.

    Args:
        reward_model: `frozen_model.reward_model`; its class selects the equation.
        reference: [1, 2, outputs] the reference's outputs on the pair, if the type has a reference.

    Raises:
        RmkitError: if no equation is known for the type.
    """
    raise RmkitError(
        f"The theory has no equation for reward models of the type {reward_model.settings.type}.",
        "Give an explicit, implicit or generative one (Eq. 4, 5 and 8).",
    )


@predict.register
@torch.no_grad()
def _(
    reward_model: ExplicitRewardModel,
    frozen_model: FrozenHeadModel,
    chosen: Frozen,
    rejected: Frozen,
    targets: Sequence[Frozen],
    reference: Tensor | None = None,
) -> Prediction:
    pair = reward_model.representation(*concatenate([chosen, rejected]))
    g = loss_slope(*reward_model.rewards(outputs(frozen_model, [chosen, rejected])))
    return Prediction("Eq. 4", explicit_change(reward_model.representation(*concatenate(targets)), pair[0], pair[1], g))


@predict.register
@torch.no_grad()
def _(
    reward_model: ImplicitRewardModel,
    frozen_model: FrozenHeadModel,
    chosen: Frozen,
    rejected: Frozen,
    targets: Sequence[Frozen],
    reference: Tensor | None = None,
) -> Prediction:
    rewards = reward_model.rewards(outputs(frozen_model, [chosen, rejected]).unflatten(0, (1, 2)), reference)
    scale = loss_slope(rewards[0, 0], rewards[0, 1]) * reward_model.settings.beta**2
    unembedding, scale_of_logits = Unembedding.of(frozen_model.model), logit_scale(frozen_model.model)
    suffix = len(reward_model.encoder.suffix_ids)
    source, lengths = response_positions([chosen, rejected], scale_of_logits)
    signs = torch.tensor([1.0, -1.0], dtype=scale.dtype, device=scale.device).repeat_interleave(lengths)
    in_source_suffix = _at_ends(lengths, suffix)
    sums: list[dict[str, Tensor]] = []
    ranges: dict[str, list[float]] = {"rho": [], "rho_matching": []}
    for some in _grouped(targets, _CHUNK // (4 * len(source.tokens))):
        target, lengths = response_positions(some, scale_of_logits)
        rho = coefficients(unembedding, target, source)
        contributions = implicit_contributions(rho, target.hidden, source.hidden, signs) * scale
        same = target.tokens[:, None] == source.tokens
        template = _at_ends(lengths, suffix)[:, None] & in_source_suffix
        masks = {"matching": same & ~template, "template": template, "other": ~same & ~template}
        sums.append(
            {
                name + mark: segment_sum((values * mask).sum(-1), lengths)
                for name, mask in masks.items()
                for mark, values in (("", contributions), ("_absolute", contributions.abs()))
            }
        )
        for name, values in (("rho", rho), ("rho_matching", rho[same])):
            ranges[name] += [float(values.min()), float(values.max())] if values.numel() else []
    parts = {name: torch.cat([group[name] for group in sums]) for name in sums[0]}
    change = parts["matching"] + parts["template"] + parts["other"]
    return Prediction(
        "Eq. 5", change, parts, {name: (min(values), max(values)) for name, values in ranges.items() if values}
    )


@predict.register
@torch.no_grad()
def _(
    reward_model: GenerativeRewardModel,
    frozen_model: FrozenHeadModel,
    chosen: Frozen,
    rejected: Frozen,
    targets: Sequence[Frozen],
    reference: Tensor | None = None,
) -> Prediction:
    def verdicts(frozen: Sequence[Frozen], tokens: list[int]) -> Positions:
        hidden = torch.stack([state.hidden[-1] for state in frozen]) * logit_scale(frozen_model.model)
        return Positions(hidden, torch.tensor(tokens, device=hidden.device))

    target = verdicts(targets, [reward_model.yes] * len(targets))
    source = verdicts([chosen, rejected], [reward_model.yes, reward_model.no])
    gamma = coefficients(Unembedding.of(frozen_model.model), target, source)
    change = generative_change(
        reward_model.rewards(outputs(frozen_model, targets)), gamma, target.hidden, source.hidden
    )
    names = ("gamma_chosen", "gamma_rejected")
    ranges = {name: (float(column.min()), float(column.max())) for name, column in zip(names, gamma.T, strict=True)}
    return Prediction("Eq. 8", change, {}, ranges)


def response_positions(frozen: Sequence[Frozen], scale: float = 1.0) -> tuple[Positions, Tensor]:
    """Positions of all response tokens including the suffix, joined, and lengths [responses].

    Args:
        scale: the `logit_scale` of the model.
    """
    hidden, batch = concatenate(frozen)
    tokens = batch["input_ids"].flatten()[batch["response"]]
    return Positions(scale * hidden[batch["predictor"]], tokens), batch["response_lengths"]


def _residuals(unembedding: Unembedding, at: Positions, normaliser: Tensor, part: slice) -> Tensor:
    """(e - pi) times the slope of the cap [positions, part]."""
    logits, slope = unembedding(at.hidden, part)
    residuals = -torch.exp(logits - normaliser[:, None])
    (inside,) = torch.nonzero((at.tokens >= part.start) & (at.tokens < part.start + residuals.shape[1]), as_tuple=True)
    residuals[inside, at.tokens[inside] - part.start] += 1
    return residuals if slope is None else residuals * slope


def _parts(vocabulary: int, positions: int) -> Iterator[slice]:
    size = max(1, _CHUNK // positions)
    return (slice(start, start + size) for start in range(0, vocabulary, size))


def _grouped(frozen: Sequence[Frozen], tokens: int) -> Iterator[Sequence[Frozen]]:
    """Consecutive groups of at least one sequence with at most `tokens` response tokens in total."""
    start, held = 0, 0
    for number, state in enumerate(frozen):
        length = len(state.sequence) - state.sequence.response_start
        if number > start and held + length > tokens:
            yield frozen[start:number]
            start, held = number, 0
        held += length
    yield frozen[start:]


def _at_ends(lengths: Tensor, suffix: int) -> Tensor:
    """Whether positions [positions] are among the last `suffix` of their responses."""
    ends = torch.repeat_interleave(lengths.cumsum(0), lengths)
    return torch.arange(len(ends), device=lengths.device) >= ends - suffix
