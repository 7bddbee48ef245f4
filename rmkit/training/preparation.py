"""From a recipe to encoded pairs: the steps that come before weights, the same for `rmkit train` and `rmkit check`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, TaskType
from transformers import AutoModel, PretrainedConfig

from rmkit.config.recipe import Recipe, training_arguments
from rmkit.data.overlap import find_overlap
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.data.sources.use import ignored_split, load_set
from rmkit.encoding.batches import Layout
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.pairs import EncodedPairs, encode_pairs
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.errors import RmkitError
from rmkit.library_errors import first_line, template_limit
from rmkit.model_files.weights import folder_notes
from rmkit.models.positions import last_position, made_for, refuse_longer
from rmkit.processes import zero3_disabled
from rmkit.reward_models import RewardModel
from rmkit.reward_models import saving as checkpoint
from rmkit.reward_models.saving import ModelMetadata, ModelRef
from rmkit.training import trainer_class
from rmkit.training.launch import accumulation_steps


def load_data(recipe: Recipe) -> dict[str, PreferenceData]:
    """The training set, which comes first, and the evaluation sets."""
    sets = (recipe.data.train, *recipe.data.evaluation)
    return {each.name: load_set(each, root=recipe.data.root, identical=recipe.data.identical) for each in sets}


def warnings(
    recipe: Recipe, data: Mapping[str, PreferenceData], used: Mapping[str, Sequence[PreferencePair]]
) -> list[str]:
    """Lines to be said of the sets: a split that a file does not have, what the sets share with the training set.

    Args:
        used: the pairs of each set that training and scoring use.
    """
    train, *evaluated = (recipe.data.train, *recipe.data.evaluation)
    ignored = [ignored_split(each, data[each.name]) for each in (train, *evaluated)]
    shared = [find_overlap(used[train.name], used[each.name]).warning(each.name) for each in evaluated]
    return [line for line in (*ignored, *shared) if line is not None]


def load_encoder(recipe: Recipe, base: ModelRef) -> tuple[ChatEncoder, list[str]]:
    """The encoder of a base, and what was changed in its tokenizer (one line each, to be said to the user)."""
    tokenizer, notes = load_tokenizer(
        base.name,
        revision=base.revision,
        chat_template=recipe.base.chat_template,
        added_tokens=recipe.base.added_tokens,
        trust_remote_code=recipe.base.trust_remote_code,
    )
    with template_limit(base.name):
        encoder = ChatEncoder(tokenizer, recipe.base.date_string, recipe.data.special_tokens)
    return encoder, notes + folder_notes(base.name, base.revision)


def load_config(recipe: Recipe, base: ModelRef) -> PretrainedConfig:
    """The configuration of a base."""
    return checkpoint.load_config(base.name, base.revision, recipe.base.trust_remote_code)


def encode(
    recipe: Recipe, data: Mapping[str, PreferenceData], reward_model: RewardModel[Any]
) -> dict[str, EncodedPairs]:
    """Every set encoded once, by the recipe's rules for what is too long or identical."""
    return {
        name: encode_pairs(
            each,
            reward_model,
            max_length=recipe.data.max_length,
            over_length=recipe.data.over_length,
            identical=recipe.data.identical,
        )
        for name, each in data.items()
    }


def refuse_beyond_positions(recipe: Recipe, encoded: Mapping[str, EncodedPairs], config: PretrainedConfig) -> None:
    """Refuse sets with texts that end after a base's last position.

    Raises:
        RmkitError: naming the set and the length that fits.
    """
    known = made_for(config)
    if known is None or max(pairs.longest for pairs in encoded.values()) <= known:
        return
    with zero3_disabled(), torch.device("meta"):
        limit = last_position(AutoModel.from_config(config, trust_remote_code=recipe.base.trust_remote_code))
    for name, pairs in encoded.items():
        refuse_longer(name, pairs.longest, limit)


def trainer_arguments(recipe: Recipe, processes: int, **launcher_options: Any) -> Any:
    """TrainingArguments of the type's class, for so many processes; `launcher_options` are what the launcher decides.

    Raises:
        RmkitError: if the batch size cannot be divided, or transformers refuses a field.
    """
    options = training_arguments(recipe)
    batch_size = options.pop("batch_size")
    trainer = trainer_class(recipe.reward_model)
    options |= trainer.config_defaults | launcher_options
    options |= {
        "output_dir": str(recipe.output_dir / "checkpoints"),
        "per_device_eval_batch_size": recipe.evaluation.batch_size,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
    }
    options.setdefault("activation_checkpointing", False)  # TRL's classes turn it on
    micro_batch_size = options["per_device_train_batch_size"]
    options["gradient_accumulation_steps"] = accumulation_steps(batch_size, micro_batch_size, processes)
    if options.get("use_liger_kernel"):  # its fused loss would replace rmkit's forward
        options["liger_kernel_config"] = (options.get("liger_kernel_config") or {}) | {
            "fused_linear_cross_entropy": False
        }
    with refusals("TrainingArguments"):
        return trainer.config_class(**options)


def make_record(
    recipe: Recipe, reward_model: RewardModel[Any], base: ModelRef, layout: Layout, arguments: Any, sharding: str
) -> ModelMetadata:
    """What is recorded of a run's reward model, but for the files of its tokenizer and reference.

    Args:
        arguments: the TrainingArguments of the run.
        sharding: none | zero0..3.
    """
    # DeepSpeed turns the whole model to bfloat16, and that is what is saved; elsewhere bf16 means autocast.
    whole = arguments.bf16 and sharding.startswith("zero")
    return ModelMetadata(
        reward_model=recipe.reward_model,
        base=base,
        adapter=recipe.lora is not None,
        dtype="bfloat16" if whole else recipe.base.dtype,
        autocast=arguments.bf16 and not whole,
        attention=recipe.base.attention,
        layout=layout,
        date_string=recipe.base.date_string,
        template_hash=reward_model.encoder.template_hash,
        special_tokens=recipe.data.special_tokens,
    )


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Say in a line what transformers, TRL or PEFT refuse of a recipe that rmkit found nothing wrong with."""
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError, RuntimeError) as error:
        raise RmkitError(
            f"{what[0].upper()}{what[1:]} cannot be made of this recipe: {first_line(error)}",
            "Mend what it names under training: or lora: in the recipe.",
        ) from None


def lora_config(recipe: Recipe, reward_model: RewardModel[Any]) -> LoraConfig | None:
    """PEFT's settings of the recipe's adapters; None for full fine-tuning."""
    if recipe.lora is None:
        return None
    return LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=recipe.lora.target_modules,
        modules_to_save=["score"] if reward_model.head else None,
        task_type=TaskType.SEQ_CLS if reward_model.head else TaskType.CAUSAL_LM,
    )
