"""Load models for the theory: a language model as any type of reward model, or a trained reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from rmkit.config.recipe import Explicit, Generative, Implicit, RewardModelSettings
from rmkit.encoding.batches import Batch
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.pairs import EncodedPairs
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.errors import RmkitError
from rmkit.evaluation.scoring import pair_outputs
from rmkit.models.positions import last_position, refuse_longer
from rmkit.reward_models import RewardModel, make_reward_model
from rmkit.reward_models.explicit import ExplicitRewardModel
from rmkit.reward_models.loading import Checkpoint, load, load_config, load_model
from rmkit.reward_models.metadata import ModelMetadata, read_metadata
from rmkit.reward_models.origins import ModelRef
from rmkit.reward_models.probe import check_forward
from rmkit.theory.frozen import FrozenHeadModel, freeze_backbone

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def possible_types(name: str) -> list[str] | None:
    """The types that a language model can be loaded as; None for a trained reward model, which has its own type."""
    if read_metadata(name) is not None:
        return None
    architectures = load_config(name).architectures or []
    is_classifier = any(model_class.endswith("ForSequenceClassification") for model_class in architectures)
    return None if is_classifier else ["explicit", "implicit", "generative"]


def load_as(
    name: str,
    type: str | None,
    *,
    beta: float = 0.01,
    seed: int = 0,
    dtype: str = "float64",
    date_string: str | None = None,
    chat_template: Path | None = None,
    base: str | None = None,
    verify: bool = True,
) -> Checkpoint:
    """Load a language model as an untrained reward model of a type or, without a type, a trained reward model.

    Args:
        beta: beta of the implicit type.
        seed: seed of the explicit type's head, which transformers draws.
        dtype: dtype of the backbone.
        chat_template: a Jinja file to use instead of the model's own template.
        base, verify: for a trained one, see `rmkit.reward_models.loading.load`.
    """
    if type is not None and base is not None:
        raise RmkitError(f"A base has no use: {name} is a language model.", "Remove --base (base=).")
    if type is None:
        checkpoint = load(
            name,
            dtype="float32",
            load_in="none",  # a quantized model cannot be cast to float64
            date_string=date_string,
            chat_template=chat_template,
            base=base,
            verify=verify,
        )
    else:
        choices: dict[str, RewardModelSettings] = {
            "explicit": Explicit(),
            "implicit": Implicit(beta=beta),
            "generative": Generative(),
        }
        if type not in choices:
            raise RmkitError(f"--type {type} is unknown.", f"Use one of {', '.join(choices)}.")
        tokenizer, notes = load_tokenizer(name, chat_template=chat_template)
        encoder = ChatEncoder(tokenizer, date_string)
        notes += encoder.notes
        reward_model = make_reward_model(choices[type], encoder)
        torch.manual_seed(seed)
        model = load_model(reward_model, ModelRef(name=name))
        if reward_model.head:
            notes.append(f"The model has no reward head: u is initialised as before training, with seed {seed}.")
        checkpoint = Checkpoint(reward_model, model, None, ModelMetadata(reward_model=choices[type]), notes)
    for model in (checkpoint.model, checkpoint.reference):
        if model is not None:
            model.to(DTYPES[dtype])
    check_forward(checkpoint.model, checkpoint.reward_model)
    return checkpoint


def reference_outputs(checkpoint: Checkpoint, pairs: EncodedPairs, batch_size: int = 8) -> Tensor | None:
    """Outputs [pairs, 2, outputs] of a trained model's reference; None without one, or if the model is its own."""
    options: dict[str, Any] = {"batch_size": batch_size}
    if checkpoint.reference is not None:
        return _outputs(checkpoint.reference, checkpoint.reward_model, pairs, **options)
    if checkpoint.reference_is_base:
        with checkpoint.model.disable_adapter():
            return _outputs(checkpoint.model, checkpoint.reward_model, pairs, **options)
    return None


def _outputs(model: nn.Module, reward_model: RewardModel[Any], pairs: EncodedPairs, **options: Any) -> Tensor:
    """Outputs [pairs, 2, outputs] of a model; pairs beyond its position embeddings are refused."""
    refuse_longer(pairs.name, pairs.longest, last_position(model))
    return pair_outputs(model, reward_model, pairs, **options)


class _Representations(ExplicitRewardModel):
    """An explicit reward model without its head: outputs are h_{x,y}."""

    def outputs(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        return self.representation(hidden, batch)


def hidden_differences(
    checkpoint: Checkpoint, pairs: EncodedPairs, batch_size: int = 8, description: str | None = None
) -> NDArray[np.float64]:
    """h_{x,y+} - h_{x,y-} [pairs, hidden size] of an explicit reward model's backbone.

    Raises:
        RmkitError: if the checkpoint is of another type.
    """
    reward_model = checkpoint.reward_model
    if not isinstance(reward_model, ExplicitRewardModel):
        raise RmkitError(
            f"This is a trained {reward_model.settings.type} reward model.",
            "Give a language model or an explicit reward model.",
        )
    representations = _Representations(reward_model.settings, reward_model.encoder)
    hidden = _outputs(checkpoint.model, representations, pairs, batch_size=batch_size, description=description)
    differences: NDArray[np.float64] = (hidden[:, 0] - hidden[:, 1]).numpy()
    return differences


def freeze_checkpoint(checkpoint: Checkpoint) -> FrozenHeadModel:
    """Set up a checkpoint's model for the theory. The checkpoint must not be used afterwards."""
    frozen_model = freeze_backbone(checkpoint.reward_model, checkpoint.model)
    frozen_model.notes[:0] = checkpoint.notes
    return frozen_model
