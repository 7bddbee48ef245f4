"""Validate a run before it starts: example texts, overlap with the training set, steps, tokens and memory."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from rmkit.config.recipe import Explicit, Generative, Implicit, Lora, Recipe, training_arguments
from rmkit.data.preferences import PreferencePair
from rmkit.encoding.batches import Layout
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.pairs import EncodedPairs
from rmkit.errors import RmkitError, first_line
from rmkit.models.quantization import BYTES, quantized_layers
from rmkit.reward_models import RewardModel, make_reward_model
from rmkit.training import launch
from rmkit.training.preparation import lora_config, refusals

# --- example texts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """One text in the format of a type of reward model.

    Attributes:
        prompt, response: the decoded tokens up to where the response starts, and from there on, with a bar at the
            borders between the assistant's turns and what stands between them.
        last: the decoded last token, at which rewards are read.
        tokens, response_tokens: their numbers.
        bos, eos: how often these tokens occur; None if the tokenizer has no such token.
        problem: why this base does not support this type; the other fields are empty then.
    """

    type: str
    prompt: str = ""
    response: str = ""
    last: str = ""
    tokens: int = 0
    response_tokens: int = 0
    bos: int | None = None
    eos: int | None = None
    problem: str | None = None


def examples(recipe: Recipe, encoder: ChatEncoder, pair: PreferencePair) -> list[Example]:
    """The chosen response of a pair in every type's format; types other than the recipe's have default settings."""
    by_type = {settings.type: settings for settings in (Explicit(), Implicit(), Generative(), recipe.reward_model)}
    return [_example(type_name, settings, encoder, pair) for type_name, settings in by_type.items()]


def _example(name: str, settings: Any, encoder: ChatEncoder, pair: PreferencePair) -> Example:
    try:
        (sequence,) = make_reward_model(settings, encoder).encode([pair.prompt], [pair.chosen])
    except RmkitError as error:
        return Example(name, problem=error.cause)
    tokenizer, ids = encoder.tokenizer, sequence.ids
    borders = [sequence.response_start, *chain.from_iterable(sequence.gaps), len(ids)]
    return Example(
        name,
        prompt=tokenizer.decode(ids[: sequence.response_start]),
        response="|".join(tokenizer.decode(ids[start:end]) for start, end in pairwise(borders)),
        last=tokenizer.decode(ids[-1:]),
        tokens=len(ids),
        response_tokens=sequence.response_length,
        bos=_count(ids, tokenizer.bos_token_id),
        eos=_count(ids, tokenizer.eos_token_id),
    )


def token_counts(encoder: ChatEncoder, pairs: EncodedPairs) -> tuple[str, str]:
    """The number of BOS and EOS tokens in a sequence of a set: "1", "1 to 3", or "none" without such a token."""
    sequences = [*pairs.chosen, *pairs.rejected]
    return (
        _range(_count(sequence.ids, encoder.tokenizer.bos_token_id) for sequence in sequences),
        _range(_count(sequence.ids, encoder.tokenizer.eos_token_id) for sequence in sequences),
    )


def _count(ids: Sequence[int], token: int | None) -> int | None:
    return None if token is None else ids.count(token)


def _range(counts: Iterable[int | None]) -> str:
    known = [count for count in counts if count is not None]
    if not known:
        return "none"
    return str(min(known)) if min(known) == max(known) else f"{min(known)} to {max(known)}"


# --- steps, tokens and memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepCounts:
    """Steps and tokens of a training run; `tokens` are those of an epoch without padding.

    `shared` of them are in prefixes that both sequences of a pair have in common, which are computed once.
    """

    pairs: int
    tokens: int
    shared: int
    processes: int
    accumulation: int
    steps_per_epoch: int
    steps: int


def work(recipe: Recipe, training: EncodedPairs, plan: launch.LaunchPlan | None, layout: Layout) -> StepCounts:
    """Count steps and tokens as transformers' Trainer does.

    Raises:
        RmkitError: if processes and micro-batches do not divide the batch size.
    """
    options = training_arguments(recipe)
    processes = (plan.processes if plan else None) or 1
    micro_batch = options["per_device_train_batch_size"]
    accumulation = launch.accumulation_steps(options["batch_size"], micro_batch, processes)
    micro_batches = math.ceil(len(training) / (micro_batch * processes))
    steps_per_epoch = math.ceil(micro_batches / accumulation)
    max_steps = options.get("max_steps", -1)
    steps = max_steps if max_steps > 0 else math.ceil(options["num_train_epochs"] * steps_per_epoch)
    tokens = sum(len(sequence) for sequence in (*training.chosen, *training.rejected))
    shared = tokens - sum(training.tokens) if layout == "shared" else 0
    return StepCounts(len(training), tokens, shared, processes, accumulation, steps_per_epoch, steps)


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU for weights, gradients and optimizer states, and the estimator that gave them.

    Attributes:
        parameters: their number; `trainable` of them are trained, and `quantized` are held in 4 bit.
    """

    parameters: int
    trainable: int
    quantized: int
    per_gpu: int
    estimator: str


def memory(
    recipe: Recipe, reward_model: RewardModel[Any], config: PretrainedConfig, plan: launch.LaunchPlan | None
) -> Memory:
    """Estimate the memory of a model of this type per GPU, with accelerate's or DeepSpeed's estimators.

    Activations and logits are not included. Frozen weights (under adapters) count once, in the dtype of the base.
    """
    with _without_warnings():
        return _memory(recipe, reward_model, config, plan)


def _memory(
    recipe: Recipe, reward_model: RewardModel[Any], config: PretrainedConfig, plan: launch.LaunchPlan | None
) -> Memory:
    model = empty_model(recipe, reward_model, config)
    sizes = [(parameter.numel(), parameter.element_size(), parameter.requires_grad) for parameter in model.parameters()]
    trainable = sum(number for number, _, trains in sizes if trains)
    frozen_bytes = sum(number * size for number, size, trains in sizes if not trains)
    quantized = 0
    if recipe.base.load_in is not None:
        weights = [layer.weight for layer in _quantized_layers(recipe, reward_model, config).values()]
        quantized = sum(weight.numel() for weight in weights)
        frozen_bytes += int(quantized * BYTES) - sum(weight.nbytes for weight in weights)
    processes = (plan.processes if plan else None) or 1
    sharding = plan.sharding if plan else "none"
    offload = plan is not None and plan.config.get("deepspeed_config", {}).get("offload_optimizer_device") == "cpu"
    match sharding:
        case "zero1" | "zero2":
            from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

            _, needed = estimate_zero2_model_states_mem_needs(trainable, processes, cpu_offload=offload)
            needed, estimator = needed + frozen_bytes, "DeepSpeed's estimator of ZeRO-2"
        case "zero3":
            from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

            largest = max(number for number, _, _ in sizes)
            _, needed, _ = estimate_zero3_model_states_mem_needs(
                trainable, largest, processes, cpu_offload=offload, cpu_offload_params=False
            )
            needed, estimator = needed + frozen_bytes // processes, "DeepSpeed's estimator of ZeRO-3"
        case _:
            from accelerate.commands.estimate import estimate_training_usage

            # Not its mixed precision: weights, gradients and moments are all in the dtype that the base is loaded in.
            trained_bytes = sum(number * size for number, size, trains in sizes if trains)
            needed = estimate_training_usage(trained_bytes, "float32")["step"] + frozen_bytes
            estimator = "accelerate's estimator"
    return Memory(sum(number for number, _, _ in sizes), trainable, quantized, int(needed), estimator)


def _quantized_layers(recipe: Recipe, reward_model: RewardModel[Any], config: PretrainedConfig) -> dict[str, Any]:
    """The layers of the base that are held in 4 bit, without weights."""
    return quantized_layers(empty_model(recipe.model_copy(update={"lora": None}), reward_model, config))


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence DeepSpeed's warning about a missing accelerator, and transformers' about deprecated names in PEFT."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@_without_warnings()
def empty_model(recipe: Recipe, reward_model: RewardModel[Any], config: PretrainedConfig) -> Any:
    """The model without weights, adapters included.

    Raises:
        RmkitError: if the model does not support the recipe's attention function.
    """
    for name, value in reward_model.config.items():
        setattr(config, name, value)
    text_config = config.get_text_config()
    text_config.vocab_size = max(text_config.vocab_size, len(reward_model.encoder.tokenizer))  # rows for added tokens
    text_config.pad_token_id = reward_model.encoder.tokenizer.pad_token_id
    options: dict[str, Any] = {"dtype": getattr(torch, recipe.base.dtype)}
    if recipe.base.attention is not None:
        options["attn_implementation"] = recipe.base.attention
    try:
        with torch.device("meta"):
            model = reward_model.auto_class.from_config(
                config, trust_remote_code=recipe.base.trust_remote_code, **options
            )
    except (ImportError, ValueError) as error:
        if recipe.base.attention is None:
            raise
        raise RmkitError(
            f"base.attention {recipe.base.attention} cannot be used: {first_line(error).rstrip('.')}.",
            "Leave base.attention out; or install what it needs: `pip install flash-attn` for flash_attention_2, "
            "`pip install kernels` for kernels of the Hub.",
        ) from None
    adapters = lora_config(recipe, reward_model)
    if recipe.lora is None or adapters is None:
        return model
    from peft import get_peft_model

    with refusals("lora settings"):
        quantized = quantized_layers(model) if recipe.base.load_in is not None else {}
        adapted = get_peft_model(model, adapters, low_cpu_mem_usage=True)
    _refuse_unused(recipe.lora, adapted)
    _refuse_quantized(recipe.lora, quantized)
    return adapted


def _refuse_quantized(settings: Lora, quantized: Iterable[str]) -> None:
    """Refuse modules to train whole that are quantized, or hold what is.

    Raises:
        RmkitError: naming the module.
    """
    for module in settings.modules_to_save:
        if any(part.endswith(module) for name in quantized for part in accumulate(name.split("."), "{}.{}".format)):
            raise RmkitError(
                f"lora.modules_to_save: {module} is in 4 bit (base.load_in) and cannot be trained whole.",
                f"Remove {module} there; lora.target_modules puts adapters on it.",
            )


def _refuse_unused(settings: Lora, model: nn.Module) -> None:
    """Refuse names that PEFT ignores silently: patterns of no adapter, and modules to train whole that do not exist.

    Raises:
        RmkitError: naming the key, the name and the closest module.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper
    from peft.utils.other import get_pattern_key

    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    adapted = [name for name, module in modules.items() if isinstance(module, LoraLayer)]
    whole = [name for name, module in modules.items() if isinstance(module, ModulesToSaveWrapper)]
    for key, patterns in (("rank_pattern", settings.rank_pattern), ("alpha_pattern", settings.alpha_pattern)):
        for pattern in patterns:
            if not any(get_pattern_key([pattern], name) == pattern for name in adapted):
                raise RmkitError(
                    f"lora.{key}: {pattern} matches no module that has an adapter.",
                    f"Name one of {', '.join(sorted({name.rpartition('.')[2] for name in adapted}))}, or remove it.",
                )
    for module in settings.modules_to_save:
        if not any(name.endswith(module) for name in whole):
            candidates = {name.rpartition(".")[2] for name in modules} - {""}
            closest = get_close_matches(module, sorted(candidates), 1)
            raise RmkitError(
                f"lora.modules_to_save: the model has no module {module}.",
                f"Remove it{f', or write {closest[0]}' if closest else ''}.",
            )
