"""The keys of a recipe's `training:` section: the fields of TrainingArguments, except those that rmkit sets itself."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)

from rmkit.config.strict_yaml import Seed, expected_value, suggest, suggest_key
from rmkit.errors import RmkitError

TRAINING_DEFAULTS: dict[str, Any] = {
    # The paper's optimizer settings (Appendix D.3), the same for every type of reward model.
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 0.0,
    "optim": "adamw_torch",
    "weight_decay": 0.0,
    "num_train_epochs": 5,
    "seed": 0,
    # Choices of rmkit.
    "bf16": False,
    "logging_steps": 10,
    "report_to": "none",
    "save_strategy": "no",
}
BATCH_SIZE = 32
MICRO_BATCH_SIZE = 4

OWNED_FIELDS = {
    # field -> the recipe key that sets it
    "output_dir": "output_dir",
    "gradient_checkpointing": "training.activation_checkpointing",
    "gradient_checkpointing_kwargs": "training.activation_checkpointing_kwargs",
    "gradient_accumulation_steps": "training.batch_size",
    "auto_find_batch_size": "training.per_device_train_batch_size",
    "fp16": "training.bf16",
    "deepspeed": "distributed",
    "fsdp": "distributed: zero3",
    "fsdp_config": "distributed: zero3",
    "parallelism_config": "distributed",
    "accelerator_config": "distributed",
    "use_cpu": "distributed",
    "local_rank": "distributed",
    "max_length": "data.max_length",
    "truncation_mode": "data.over_length",
    "model_init_kwargs": "base",
    "chat_template_path": "base.chat_template",
    "disable_dropout": "base.dropout",
    "trust_remote_code": "base.trust_remote_code",
    "beta": "reward_model.beta",
    "loss_type": "reward_model.type",
    "reference_free": "reward_model.reference",
    "ref_model": "reward_model.reference",
    "precompute_ref_log_probs": "reward_model.reference",
    "lora_r": "lora.r",
    "peft_config": "lora",
    "do_eval": "evaluation",
    "do_predict": "evaluation",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "eval_strategy": "evaluation.every_steps",
    "eval_steps": "evaluation.every_steps",
    "load_best_model_at_end": "evaluation.save_best",
    "metric_for_best_model": "evaluation.save_best",
    "greater_is_better": "evaluation.save_best",
    "bf16_full_eval": "training.bf16",
    "fp16_full_eval": "training.bf16",
    "resume_from_checkpoint": "resume: auto",
    "push_to_hub": "hub.push",
    "hub_model_id": "hub.repo_id",
    "hub_strategy": "hub.push",
    "hub_private_repo": "hub.private",
    "hub_token": "`hf auth login` or the variable HF_TOKEN",
}
REFUSED_FIELDS = {
    # field -> why no recipe key sets it
    "do_train": "a recipe always trains",
    "eval_on_start": "the sets are always scored before training",
    "eval_delay": "the sets are always scored before training",
    **dict.fromkeys(
        [
            "prediction_loss_only",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "include_for_metrics",
            "batch_eval_metrics",
        ],
        "rmkit runs its own evaluation",
    ),
    **dict.fromkeys(
        ["remove_unused_columns", "label_names"],
        "rmkit's collator builds the batches",
    ),
    **dict.fromkeys(
        ["group_by_length", "train_sampling_strategy", "length_column_name"],
        "the order of pairs must be the same for every type of reward model",
    ),
    "label_smoothing_factor": "the loss is Eq. 3 or Eq. 7",
    "average_tokens_across_devices": "a step always averages over the pairs of all processes",
    "logging_nan_inf_filter": "a non-finite loss always stops the run",
    "hub_always_push": "rmkit waits for every push",
    "hub_revision": "rmkit pushes to the default branch",
}
_BOUNDS: dict[str, Any] = {
    # Bounds that the annotations of TrainingArguments lack.
    "batch_size": PositiveInt,
    "per_device_train_batch_size": PositiveInt,
    "num_train_epochs": PositiveFloat,
    "learning_rate": NonNegativeFloat,
    "weight_decay": NonNegativeFloat,
    "max_grad_norm": NonNegativeFloat,
    "warmup_steps": NonNegativeFloat,
    "dataloader_num_workers": NonNegativeInt,
    "optim_args": Annotated[str, Field(pattern=r"^\w+=[^=,]+(,\s*\w+=[^=,]+)*$")] | None,
    "seed": Seed,
    "data_seed": Seed | None,
    "max_steps": Annotated[int, Field(ge=-1)],
    "save_steps": PositiveFloat,
    "save_total_limit": PositiveInt | None,
    "logging_steps": PositiveFloat,
    "adam_beta1": Annotated[float, Field(ge=0, lt=1)],
    "adam_beta2": Annotated[float, Field(ge=0, lt=1)],
    "adam_epsilon": NonNegativeFloat,
    "neftune_noise_alpha": PositiveFloat | None,
    "torch_empty_cache_steps": PositiveInt | None,
    "dataloader_prefetch_factor": PositiveInt | None,
    "dataloader_multiprocessing_context": Literal["fork", "forkserver", "spawn"] | None,
    "include_num_input_tokens_seen": bool | Literal["all", "non_padding", "no"],
    "log_level": Literal["debug", "info", "warning", "error", "critical", "passive"],
    "log_level_replica": Literal["debug", "info", "warning", "error", "critical", "passive"],
    "ddp_backend": Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl", "xccl"] | None,
    "ddp_timeout": PositiveInt,
}
_NEED_A_METRIC = {"save_strategy": ["best"], "lr_scheduler_type": ["reduce_lr_on_plateau", "greedy"]}
"""Values that need a metric of the Trainer's own evaluation, which rmkit does not run."""

_REQUIRES: dict[str, tuple[str, list[Any]]] = {
    # field -> (other field, values of it with which the field has an effect); the remedy names the first value
    "save_steps": ("save_strategy", ["steps"]),
    "save_total_limit": ("save_strategy", ["steps", "epoch"]),
    "save_only_model": ("save_strategy", ["steps", "epoch"]),
    "logging_steps": ("logging_strategy", ["steps"]),
    "activation_checkpointing_kwargs": ("activation_checkpointing", [True]),
    "liger_kernel_config": ("use_liger_kernel", [True]),
}


def training_options(
    training: Mapping[str, Any], source: str = "recipe", recipe_keys: Iterable[str] = ()
) -> dict[str, Any]:
    """The keyword arguments for TrainingArguments: a recipe's `training:` over rmkit's defaults.

    `batch_size` (pairs per optimizer step over all processes) stays in the result: gradient accumulation follows from
    it once the number of processes is known.

    Args:
        training: the section.
        source: the file that errors name.
        recipe_keys: dotted keys of the other sections, suggested for an unknown field.

    Raises:
        RmkitError: for a field that rmkit sets itself, an unknown field or an invalid value.
    """
    from transformers import TrainingArguments  # slow to import; only needed to check names and types

    hints = typing.get_type_hints(TrainingArguments) | _BOUNDS
    known = training_fields()
    for key, value in training.items():
        name = f"{source}: training.{key}"
        if key in OWNED_FIELDS:
            raise RmkitError(f"{name} is decided by rmkit.", f"Use {OWNED_FIELDS[key]} instead.")
        if key in REFUSED_FIELDS:
            raise RmkitError(f"{name} is decided by rmkit.", f"Leave it out: {REFUSED_FIELDS[key]}.")
        if key not in known:
            remedy = suggest_key(f"training.{key}", known, recipe_keys)
            raise RmkitError(f"{name} is not a field of TrainingArguments.", remedy)
        _check_value(name, value, hints[key])
        if value in _NEED_A_METRIC.get(key, []):
            raise RmkitError(
                f"{name} {value} follows a metric of the Trainer's own evaluation, which rmkit does not run.",
                f"Use another training.{key}, or leave it out"
                + ("; evaluation.save_best keeps the best model." if value == "best" else "."),
            )
    _check_reporters(training.get("report_to") or [], source)
    defaults = TRAINING_DEFAULTS | {"batch_size": BATCH_SIZE, "per_device_train_batch_size": MICRO_BATCH_SIZE}
    options = defaults | dict(training)
    _check_requirements(training, options, source)
    return options


def training_fields() -> list[str]:
    """The keys that `training:` accepts."""
    from transformers import TrainingArguments

    fields = [field.name for field in dataclasses.fields(TrainingArguments)]
    return [name for name in [*fields, "batch_size"] if name not in OWNED_FIELDS | REFUSED_FIELDS]


def _check_requirements(training: Mapping[str, Any], options: Mapping[str, Any], source: str) -> None:
    """Refuse a field of `training` that has no effect with the other `options`."""
    from transformers import TrainingArguments

    defaults = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    for key, (other, values) in _REQUIRES.items():
        if training.get(key) and options.get(other, defaults[other]) not in values:
            needed = " or ".join(map(json.dumps, values)).replace('"', "")
            raise RmkitError(
                f"{source}: training.{key} only has an effect with training.{other} {needed}.",
                f"Set training.{other}={needed.partition(' ')[0]}, or leave training.{key} out.",
            )


def _check_value(key: str, value: Any, hint: Any) -> None:
    choices = [option.value for choice in _alternatives(hint) if _is_enum(choice) for option in choice]
    if choices:  # transformers annotates these fields as any text too
        if value not in choices:
            raise RmkitError(f"{key} is {value!r}, which transformers does not know.", suggest(str(value), choices))
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise RmkitError(f"{key} is {value!r}: it must be a finite number.", f"Fix {key.split()[-1]}.")
    try:
        config = ConfigDict(strict=True, arbitrary_types_allowed=True)
        TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        expected = _type_name(hint) if first["type"].endswith("_type") else expected_value(first)
        raise RmkitError(f"{key} is {value!r}: it must be {expected}.", f"Fix {key.split()[-1]}.") from None


def _check_reporters(reporters: str | Sequence[str], source: str) -> None:
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    available = ["none", "all", *get_available_reporting_integrations()]
    for name in [reporters] if isinstance(reporters, str) else reporters:
        if name in available:
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise RmkitError(
                f"{source}: training.report_to is {name!r}, which transformers does not know.",
                f"Give one of {', '.join(available)}.",
            )
        package = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}.get(name, name)
        raise RmkitError(
            f"{source}: training.report_to is {name!r}, whose package is not installed.",
            f"Install it (`pip install {package}`), or give one of {', '.join(available)}.",
        )


def _alternatives(hint: Any) -> list[Any]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [inner for choice in typing.get_args(hint) for inner in _alternatives(choice)]
    return [typing.get_args(hint)[0]] if typing.get_origin(hint) is Annotated else [hint]


def _literals(hint: Any) -> list[Any]:
    return [choice for choice in _alternatives(hint) if typing.get_origin(choice) is Literal]


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    names |= {literal: " or ".join(map(repr, typing.get_args(literal))) for literal in _literals(hint)}
    alternatives = _alternatives(hint)
    shown = [names.get(choice) or ("a mapping" if "dict" in str(choice) else "a list") for choice in alternatives]
    return " or ".join(dict.fromkeys(shown))
