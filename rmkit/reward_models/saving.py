"""Saving a trained model: what transformers (or PEFT) writes, the tokenizer, and reward_model.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from rmkit.errors import RmkitError
from rmkit.files import replacing, write_json
from rmkit.hub.publication import RECORD
from rmkit.models.dropout import ConfigValue, own_dropout
from rmkit.reward_models.base import RewardModel
from rmkit.reward_models.metadata import ModelMetadata


def save(
    directory: Path,
    model: PreTrainedModel | PeftModel,
    state_dict: dict[str, Tensor],
    reward_model: RewardModel[Any],
    record: ModelMetadata,
    dropout: Sequence[ConfigValue] = (),
) -> None:
    """Write a model directory, whole or not at all.

    Args:
        state_dict: the gathered weights.
        dropout: the dropout settings for config.json, if training turned dropout off (`rmkit.models.dropout`).

    Raises:
        RmkitError: if a tensor is empty (ZeRO-3 without gathering) or not finite.
    """
    for name, tensor in state_dict.items():
        if tensor.numel() == 0:
            raise RmkitError(f"The weight {name} is empty: it was not gathered.", "Report this as a bug.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RmkitError(
                f"The weight {name} is not finite: training has diverged.",
                "Lower training.learning_rate, or use base.dtype: float32.",
            )
    # Rows of added tokens follow from the base's, so adapters need no copy of the embeddings.
    options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
    with replacing(directory) as temporary, own_dropout(dropout):
        model.save_pretrained(temporary, state_dict=dict(state_dict), **options)  # it drops tied weights
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's card; rmkit writes its own when it publishes
        reward_model.encoder.tokenizer.save_pretrained(temporary)
        write_json(temporary / RECORD, record.model_dump(mode="json"))


class BaseGenerationConfig(GenerationConfig):
    """The base's own settings, saved unchanged: transformers refuses to save what it only warns about when loading."""

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Refuse only settings that cannot be loaded either."""
        super().validate(False, user_set_attributes)


def keep_generation_config(model: PreTrainedModel) -> None:
    """Make sure that generation_config.json can be saved: a base's generation settings must not cost a run."""
    if getattr(model, "generation_config", None) is not None:
        config = BaseGenerationConfig()
        config.__dict__.update(model.generation_config.__dict__)
        model.generation_config = config
