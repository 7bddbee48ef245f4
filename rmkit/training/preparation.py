"""From a recipe to encoded pairs: the steps before any weights load, shared by `rmkit train` and `rmkit check`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, TaskType
from transformers import AutoModel, PretrainedConfig

from rmkit.config.recipe import VALIDATION, Recipe, training_arguments
from rmkit.data.overlap import find_overlap, prompt_text
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.data.sources.use import load_sets, reading_notes
from rmkit.encoding.batches import Layout
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.pairs import EncodedPairs, encode_pairs, training_rows
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.errors import RmkitError, first_line
from rmkit.library_errors import template_limit
from rmkit.model_files.adapters import chain
from rmkit.model_files.gguf import gguf_file
from rmkit.model_files.weights import folder_notes
from rmkit.models.positions import last_position, made_for, refuse_longer
from rmkit.processes import zero3_disabled
from rmkit.reward_models import RewardModel, loading
from rmkit.reward_models.metadata import ModelMetadata
from rmkit.reward_models.origins import ModelRef
from rmkit.training import trainer_class
from rmkit.training.launch import accumulation_steps


def check_four_bit(recipe: Recipe, sharding: str | None) -> None:
    """Refuse bases that `base.load_in: 4bit` cannot quantize, and DeepSpeed, before anything is read or built.

    Args:
        sharding: none | zero0..3; None: any.

    Raises:
        RmkitError: naming what does not go with it.
    """
    if recipe.base.load_in is None:
        return
    name, revision = str(recipe.base.name), recipe.base.revision
    whole = "Leave base.load_in out, or give the original model as a folder of safetensors or a hub id."
    if sharding is not None and sharding.startswith("zero"):
        raise RmkitError(
            f"base.load_in: 4bit does not work with DeepSpeed ({sharding}).",
            "Use distributed: ddp; a base in 4 bit has little to shard.",
        )
    if gguf_file(name) is not None:
        raise RmkitError(f"base.load_in: 4bit does not quantize a GGUF file: {name}.", whole)
    if chain(name, revision):
        raise RmkitError(
            f"base.load_in: 4bit does not quantize an adapter: {name}.",
            "Leave base.load_in out, or merge the adapter into its base (PEFT's merge_and_unload) first.",
        )
    config = loading.load_config(name, revision, recipe.base.trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise RmkitError(f"The base {name} is quantized already.", whole)


def load_data(recipe: Recipe) -> dict[str, PreferenceData]:
    """The sets of a recipe, see `rmkit.data.sources.use.load_sets`; the training sets come first."""
    return load_sets(recipe.data)


def warnings(
    recipe: Recipe, data: Mapping[str, PreferenceData], used: Mapping[str, Sequence[PreferencePair]]
) -> list[str]:
    """Lines to print about the sets: how they were read, the mixture, the validation set, overlap with training sets.

    Args:
        used: by set, the pairs that training and scoring use.
    """
    settings, training = recipe.data, [each.name for each in recipe.data.training_sets]
    sets = (*settings.training_sets, *settings.evaluation)
    notes = [line for each in sets for line in reading_notes(each, data[each.name])]
    if len(training) > 1 or any(each.weight != 1 for each in settings.training_sets):
        shares = [f"{len(numbers)} pairs of {name}" for name, numbers in training_rows(settings, used).items()]
        notes.append(f"An epoch has {' and '.join(shares)}.")
    if recipe.evaluation.every_epoch and not settings.categories:  # recipes of earlier versions have it without a set
        notes.append("warning: evaluation.every_epoch has no set to score")
    if settings.validation is not None:
        cut, prompts = used[VALIDATION], len({prompt_text(pair) for pair in used[VALIDATION]})
        notes.append(f"{VALIDATION}: {len(cut)} pairs of {prompts} prompts, cut from {' and '.join(training)}")
    for number, name in enumerate(training[1:], 1):
        others, pairs = training[:number], used[name]
        count = int(find_overlap(itertools.chain.from_iterable(used[other] for other in others), pairs).prompt.sum())
        if count:
            notes.append(f"warning: {name}: {count} of {len(pairs)} pairs have their prompt in {' or '.join(others)}")
    for name in settings.categories:
        overlap = find_overlap(itertools.chain.from_iterable(used[other] for other in training), used[name])
        notes += filter(None, [overlap.warning(name)])
    return notes


def load_encoder(recipe: Recipe, base: ModelRef) -> tuple[ChatEncoder, list[str]]:
    """The encoder of a base, and a line to print for every change to its tokenizer."""
    tokenizer, notes = load_tokenizer(
        base.name,
        revision=base.revision,
        chat_template=recipe.base.chat_template,
        added_tokens=recipe.base.added_tokens,
        trust_remote_code=recipe.base.trust_remote_code,
    )
    with template_limit(base.name):
        encoder = ChatEncoder(tokenizer, recipe.base.date_string, recipe.data.special_tokens)
    return encoder, notes + encoder.notes + folder_notes(base.name, base.revision)


def load_config(recipe: Recipe, base: ModelRef) -> PretrainedConfig:
    """The configuration of a base."""
    return loading.load_config(base.name, base.revision, recipe.base.trust_remote_code)


def encode(
    recipe: Recipe, data: Mapping[str, PreferenceData], reward_model: RewardModel[Any]
) -> dict[str, EncodedPairs]:
    """Encode every set once, by the recipe's rules for pairs that are too long or identical."""
    return {
        name: encode_pairs(
            preferences,
            reward_model,
            max_length=recipe.data.max_length,
            over_length=recipe.data.over_length,
            identical=recipe.data.identical,
        )
        for name, preferences in data.items()
    }


def refuse_beyond_positions(recipe: Recipe, encoded: Mapping[str, EncodedPairs], config: PretrainedConfig) -> None:
    """Refuse sets with texts longer than the positions of the base.

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
    """TrainingArguments of the class of the type's trainer.

    Args:
        launcher_options: the fields that the launch decides.

    Raises:
        RmkitError: if processes and micro-batches do not divide the batch size, or transformers rejects a field.
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
    with refusals("training arguments"):
        return trainer.config_class(**options)


def make_record(
    recipe: Recipe, reward_model: RewardModel[Any], base: ModelRef, layout: Layout, arguments: Any, sharding: str
) -> ModelMetadata:
    """The metadata of a run's reward model, without the digests of tokenizer and reference.

    Args:
        arguments: the TrainingArguments of the run.
        sharding: none | zero0..3.
    """
    # DeepSpeed converts the whole model to bfloat16 and saves it so; otherwise bf16 means autocast.
    whole = arguments.bf16 and sharding.startswith("zero")
    return ModelMetadata(
        reward_model=recipe.reward_model,
        base=base,
        adapter=recipe.lora is not None,
        dtype="bfloat16" if whole else recipe.base.dtype,
        load_in=recipe.base.load_in,
        autocast=arguments.bf16 and not whole,
        attention=recipe.base.attention,
        layout=layout,
        date_string=reward_model.encoder.date_string,
        template_hash=reward_model.encoder.template_hash,
        plain_template=reward_model.encoder.plain_template,
        special_tokens=recipe.data.special_tokens,
    )


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Raise `RmkitError(Invalid <what>: ...)` for what transformers, TRL or PEFT reject in a recipe."""
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError, RuntimeError) as error:
        raise RmkitError(
            f"Invalid {what}: {first_line(error)}",
            "Fix that field under training: or lora: in the recipe.",
        ) from None


def lora_config(recipe: Recipe, reward_model: RewardModel[Any]) -> LoraConfig | None:
    """PEFT's configuration of the recipe's adapters; None for full fine-tuning."""
    if recipe.lora is None:
        return None
    head = ["score"] if reward_model.head else []
    return LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=recipe.lora.target_modules,
        use_dora=recipe.lora.use_dora,
        rank_pattern=dict(recipe.lora.rank_pattern),
        alpha_pattern=dict(recipe.lora.alpha_pattern),
        modules_to_save=list(dict.fromkeys(head + recipe.lora.modules_to_save)) or None,
        task_type=TaskType.SEQ_CLS if reward_model.head else TaskType.CAUSAL_LM,
    )
