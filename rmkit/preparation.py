"""From a recipe to encoded pairs: the steps that come before weights, the same for `rmkit train` and `rmkit check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, TaskType
from transformers import PretrainedConfig

from rmkit.encoding import ChatEncoder
from rmkit.library_errors import template_limit
from rmkit.pairs import EncodedPairs, encode_pairs
from rmkit.preferences import PreferenceData
from rmkit.recipe import Recipe
from rmkit.reward_models import RewardModel, checkpoint
from rmkit.reward_models.checkpoint import Origin
from rmkit.sources.use import load_set
from rmkit.vocabulary import load_tokenizer
from rmkit.weights import folder_notes


def load_data(recipe: Recipe) -> dict[str, PreferenceData]:
    """The training set, which comes first, and the evaluation sets."""
    sets = (recipe.data.train, *recipe.data.evaluation)
    return {each.name: load_set(each, root=recipe.data.root, identical=recipe.data.identical) for each in sets}


def load_encoder(recipe: Recipe, base: Origin) -> tuple[ChatEncoder, list[str]]:
    """The encoder of a base, and what was changed in its tokenizer (one line each, to be said to the user)."""
    tokenizer, notes = load_tokenizer(
        base.name,
        revision=base.revision,
        chat_template=recipe.base.chat_template,
        added_tokens=recipe.base.added_tokens,
        trust_remote_code=recipe.base.trust_remote_code,
    )
    with template_limit(base.name):
        encoder = ChatEncoder(tokenizer, recipe.base.date_string)
    return encoder, notes + folder_notes(base.name, base.revision)


def load_config(recipe: Recipe, base: Origin) -> PretrainedConfig:
    """The configuration of a base."""
    return checkpoint.load_config(base.name, base.revision, recipe.base.trust_remote_code)


def encode(recipe: Recipe, data: Mapping[str, PreferenceData], kind: RewardModel[Any]) -> dict[str, EncodedPairs]:
    """Every set encoded once, by the recipe's rules for what is too long or identical."""
    return {
        name: encode_pairs(
            each,
            kind,
            max_length=recipe.data.max_length,
            over_length=recipe.data.over_length,
            identical=recipe.data.identical,
        )
        for name, each in data.items()
    }


def lora_config(recipe: Recipe, kind: RewardModel[Any]) -> LoraConfig | None:
    """PEFT's settings of the recipe's adapters; None for full fine-tuning."""
    if recipe.lora is None:
        return None
    return LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=recipe.lora.target_modules,
        modules_to_save=["score"] if kind.head else None,
        task_type=TaskType.SEQ_CLS if kind.head else TaskType.CAUSAL_LM,
    )
