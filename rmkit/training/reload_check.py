"""Check that a saved model equals the one in memory: the same weights, and the same outputs on a few pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rmkit.encoding.batches import collate
from rmkit.encoding.pairs import EncodedPairs
from rmkit.errors import RmkitError
from rmkit.models.language_model import apply_head
from rmkit.models.shared_attention import layout_of
from rmkit.reward_models import RewardModel

PROBE_PAIRS = 4
_REMEDY = "Do not use this model. Please report this, with recipe.yaml from the run directory."


@torch.no_grad()
def probe_outputs(model: nn.Module, reward_model: RewardModel[Any], pairs: EncodedPairs, batch_size: int) -> Tensor:
    """Outputs on both responses of every pair, in float64 on the CPU; all processes compute the same.

    Returns:
        [2 * pairs, outputs]; for additive types, whose sums could hide a difference, [response tokens, outputs].
    """
    sequences = [*pairs.chosen, *pairs.rejected]
    head = reward_model.token_outputs if reward_model.additive else reward_model.outputs
    device, pad_token_id = next(model.parameters()).device, reward_model.encoder.tokenizer.pad_token_id
    model.eval()
    outputs = []
    for start in range(0, len(sequences), batch_size):
        batch = collate(sequences[start : start + batch_size], layout_of(model), pad_token_id)
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        outputs.append(apply_head(model, head, on_device).double().cpu())
    return torch.cat(outputs)


def check_weights(where: object, saved: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> None:
    """Compare two state dicts number by number; one may have a wider dtype.

    Raises:
        RmkitError: if a weight differs or is missing in one of them.
    """
    names = {name for name in [*saved, *loaded] if "original_module" not in name}  # a head that an adapter replaces
    for name in sorted(names):
        weight, other = saved.get(name), loaded.get(name)
        if (
            weight is None
            or other is None
            or weight.shape != other.shape
            or not (weight == other.to(weight.device)).all()
        ):
            raise RmkitError(f"The weight {name} in {where} is not the one that was trained.", _REMEDY)


def check_outputs(where: object, live: Tensor, loaded: Tensor, tolerance: float) -> None:
    """Compare the outputs of the model in memory with those of the reloaded one.

    Args:
        tolerance: for the mean difference, relative to the mean magnitude of the outputs; 0 requires the same bits.

    Raises:
        RmkitError: if they differ by more.
    """
    change = (live - loaded).abs()
    if not change.mean() <= tolerance * live.abs().mean():
        raise RmkitError(
            f"Reloading {where} changes its outputs by {change.mean():.3g} on average (at most {change.max():.3g}).",
            _REMEDY,
        )
