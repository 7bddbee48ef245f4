"""What would fail late in a run is tried before it starts, by `rmkit train` and `rmkit check` alike.

Optimizer, schedule and compiler run once on a toy; the model directory is written without weights and read back; places
to write to are tried, and their room is compared with what the run will need. A refused run leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from peft import PeftConfig, PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, Trainer, get_scheduler
from transformers.utils import is_liger_kernel_available

from rmkit.config.recipe import Recipe, training_arguments
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.errors import RmkitError, first_line
from rmkit.hub import push as hub
from rmkit.model_files.gguf import plain_folder
from rmkit.model_files.weights import no_progress_bar
from rmkit.models.quantization import require_four_bit
from rmkit.processes import running_sharding, zero3_disabled
from rmkit.reward_models import RewardModel
from rmkit.reward_models.loading import check_reference
from rmkit.reward_models.metadata import ModelMetadata, read_metadata
from rmkit.reward_models.origins import ModelRef
from rmkit.reward_models.saving import keep_generation_config, save
from rmkit.runs.directory import RunDirectory
from rmkit.training import launch
from rmkit.training.checking import empty_model
from rmkit.training.disk_space import check_places, check_room, estimate_room, scratch

_OPTIMIZER_PACKAGES = {
    # part of a name in transformers' OptimizerNames, first match: the module that it needs, and what pip installs
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "torch_4bit": ("torchao", "torchao"),
    "torch_8bit": ("torchao", "torchao"),
    "schedule_free": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "anyprecision": ("torchdistx", "git+https://github.com/pytorch/torchdistx"),
    "xla": ("torch_xla", "torch_xla"),
    "npu": ("torch_npu", "torch_npu"),
    "bnb": ("bitsandbytes", "bitsandbytes"),
    "8bit": ("bitsandbytes", "bitsandbytes"),
    "paged": ("bitsandbytes", "bitsandbytes"),
    "lion": ("bitsandbytes", "bitsandbytes"),
    "ademamix": ("bitsandbytes", "bitsandbytes"),
}


def preflight(
    recipe: Recipe,
    reward_model: RewardModel[Any],
    record: ModelMetadata,
    config: PretrainedConfig,
    arguments: Any,
    pairs: int,
    plan: launch.LaunchPlan | None,
) -> list[str]:
    """Try everything that a run will need, on one process and before weights are loaded; returns lines to print.

    Args:
        config: of the base.
        arguments: the TrainingArguments of the run.
        pairs: in the training set.
        plan: how the run is spread over processes.

    Raises:
        RmkitError: for the first thing that would fail.
    """
    check_places(recipe, cache=reward_model.reference is not None)
    sharding = (plan.sharding if plan else None) or running_sharding(arguments)
    _check_sharding(plan, sharding)
    if recipe.base.load_in is not None:
        gpu = arguments.device.type == "cuda"
        require_four_bit(f"base.load_in: {recipe.base.load_in}", "Leave base.load_in out, or train on a GPU.", gpu)
    steps_per_epoch, steps = count_steps(recipe, pairs)
    if reward_model.reference not in (None, "base"):
        revision = reward_model.settings.reference_revision
        check_reference(reward_model, record.reference or ModelRef(name=str(reward_model.reference), revision=revision))
    with zero3_disabled():
        model = empty_model(recipe, reward_model, config)
    notes = check_training(arguments, model, steps)
    if (recipe.evaluation.every_steps or 0) > steps:
        every = recipe.evaluation.every_steps
        notes.append(
            f"warning: evaluation.every_steps is {every}, and the run has {steps} steps: it scores at its end."
        )
    with scratch(recipe.output_dir, "output_dir", "Give another output_dir.") as folder:
        needed = estimate_room(recipe, model, record, arguments, sharding, steps, steps_per_epoch)
        notes += check_room(recipe.output_dir, folder, needed, recipe.resume == "auto")
        rehearse_save(folder, model, reward_model, record)
    if recipe.hub is not None:
        hub.check_access(
            RunDirectory(recipe.output_dir),
            recipe.hub,
            record.model_dump(mode="json"),
            recipe.model_dump(mode="json"),
        )
    return notes


# --- training ------------------------------------------------------------------------------------------------------


def count_steps(recipe: Recipe, pairs: int) -> tuple[int, int]:
    """Optimizer steps per epoch, and of the whole run.

    Raises:
        RmkitError: if there are none.
    """
    options = training_arguments(recipe)
    batches = pairs / options["batch_size"]
    per_epoch = math.floor(batches) if options.get("dataloader_drop_last") else math.ceil(batches)
    if per_epoch == 0:
        raise RmkitError(
            f"The training set has {pairs} pairs, too few for one step with training.dataloader_drop_last.",
            "Set training.dataloader_drop_last: false, or a smaller training.batch_size.",
        )
    max_steps = options.get("max_steps", -1)
    if max_steps == 0:
        raise RmkitError("training.max_steps is 0.", "Give a number of steps, or leave training.max_steps out.")
    return per_epoch, max_steps if max_steps > 0 else math.ceil(options["num_train_epochs"] * per_epoch)


def _check_sharding(plan: launch.LaunchPlan | None, sharding: str) -> None:
    if sharding.startswith("zero") and find_spec("deepspeed") is None:
        raise RmkitError(
            f"Sharding {sharding} needs the package deepspeed.",
            "Install it (`pip install deepspeed`, on Linux), or use distributed: ddp.",
        )
    keys = plan.config.get("deepspeed_config", {}) if plan else {}
    if "nvme" in (keys.get("offload_optimizer_device"), keys.get("offload_param_device")):
        raise RmkitError(
            f"{plan.name if plan else ''} offloads to NVMe, which rmkit does not support.", "Offload to cpu."
        )


def check_training(arguments: Any, model: nn.Module, steps: int) -> list[str]:
    """Take one step on a toy model with the optimizer, schedule, loader and compiler of a run; returns warnings.

    Args:
        model: the model without weights, whose modules `optim_target_modules` names.

    Raises:
        RmkitError: naming the field that cannot be used, or that would be ignored.
    """
    toy = nn.Linear(4, 4).to(arguments.device)
    _check_kernels(arguments)
    with _refused("dataloader_*", "Correct the training.dataloader_* fields; dataloader_num_workers: 0 needs none."):
        DataLoader(
            [0],  # type: ignore[arg-type]
            num_workers=arguments.dataloader_num_workers,
            persistent_workers=arguments.dataloader_persistent_workers,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            multiprocessing_context=arguments.dataloader_multiprocessing_context,
        )
    if arguments.activation_checkpointing:
        options = {"use_reentrant": False} | (arguments.activation_checkpointing_kwargs or {})
        with _refused("activation_checkpointing_kwargs", "Leave training.activation_checkpointing_kwargs out."):
            checkpoint(toy, torch.ones(1, 4, device=arguments.device, requires_grad=True), **options)
    _check_compile(arguments, toy)
    optimizer = _check_optimizer(arguments, model, toy)
    return _check_schedule(arguments, optimizer, steps)


def _check_kernels(arguments: Any) -> None:
    if not arguments.use_liger_kernel:
        return
    if not is_liger_kernel_available():
        raise RmkitError(
            "training.use_liger_kernel needs the package liger-kernel.",
            "Install it (`pip install liger-kernel`), or leave training.use_liger_kernel out.",
        )
    if arguments.device.type == "cpu":
        raise RmkitError(
            "training.use_liger_kernel needs a GPU; none is visible.", "Leave training.use_liger_kernel out."
        )


def _check_compile(arguments: Any, toy: nn.Module) -> None:
    if not arguments.torch_compile:
        return
    backend, mode = arguments.torch_compile_backend, arguments.torch_compile_mode
    with _refused("torch_compile", "Leave training.torch_compile, torch_compile_backend and torch_compile_mode out."):
        DynamoBackend(backend.upper())
        torch.compile(toy, backend=backend, mode=mode)(torch.ones(1, 4, device=arguments.device))


def _check_optimizer(arguments: Any, model: nn.Module, toy: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer of `arguments` and take a step on `toy` with it."""
    name = arguments.optim.value
    module, package = next((needed for part, needed in _OPTIMIZER_PACKAGES.items() if part in name), ("torch", "torch"))
    if find_spec(module) is None:
        raise RmkitError(
            f"training.optim {name} needs the package {package.rpartition('/')[2]}.",
            f"Install it (`pip install {package}`), or use training.optim: adamw_torch.",
        )
    remedy = "Correct training.optim_args and the adam_* fields, or use training.optim: adamw_torch without them."
    with _refused(f"optim {name}", remedy):
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        own = [key for key in ("params", "model", "optimizer_dict") if key in options]
        # Optimizers of chosen modules bring the model's parameters, which have no data yet: no step then.
        parameters = [options.pop(key) for key in own][-1] if own else toy.parameters()
        optimizer: torch.optim.Optimizer = optimizer_class(parameters, **options)
        if not own:
            toy(torch.ones(1, 4, device=arguments.device)).sum().backward()
            optimizer.step()
    for field in ("optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon"):
        if not _is_used(field, arguments, model):
            raise RmkitError(
                f"training.{field} is not used by optim {name}.", f"Leave training.{field} out, or use another optim."
            )
    return optimizer


def _is_used(field: str, arguments: Any, model: nn.Module) -> bool:
    """Whether the field changes the optimizer; true if the field has its default."""
    value, default = getattr(arguments, field), type(arguments).__dataclass_fields__[field].default
    if value == default:
        return True
    with_it = Trainer.get_optimizer_cls_and_kwargs(arguments, model)[1]
    setattr(arguments, field, default)
    try:
        return str(with_it) != str(Trainer.get_optimizer_cls_and_kwargs(arguments, model)[1])
    except ValueError:  # some need their target modules
        return True
    finally:
        setattr(arguments, field, value)


def _check_schedule(arguments: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[str]:
    name, warmup = arguments.lr_scheduler_type.value, arguments.get_warmup_steps(steps)
    if name == "constant" and warmup:
        raise RmkitError(
            "training.warmup_steps is not used by lr_scheduler_type constant.",
            "Use training.lr_scheduler_type: constant_with_warmup, or leave warmup_steps out.",
        )
    if name in ("constant", "constant_with_warmup") and arguments.lr_scheduler_kwargs:
        raise RmkitError(
            f"training.lr_scheduler_kwargs is not used by lr_scheduler_type {name}.",
            "Leave training.lr_scheduler_kwargs out.",
        )
    with _refused(
        f"lr_scheduler_type {name}",
        "Correct training.lr_scheduler_kwargs and learning_rate, or use lr_scheduler_type: constant.",
    ):
        schedule = get_scheduler(name, optimizer, warmup, steps, arguments.lr_scheduler_kwargs)
        with warnings.catch_warnings():  # that the optimizer has stepped before the schedule existed
            warnings.simplefilter("ignore")
            schedule.step()
    if warmup > steps:
        return [f"warning: training.warmup_steps is {warmup}, and the run has {steps} steps: it ends in its warm-up."]
    return []


@contextlib.contextmanager
def _refused(field: str, remedy: str) -> Iterator[None]:
    """Raise `RmkitError` for any error inside: the field under `training:` cannot be used."""
    try:
        yield
    except Exception as error:  # whatever libraries raise on invalid options
        raise RmkitError(f"training.{field} cannot be used: {first_line(error).rstrip('.')}.", remedy) from None


# --- saving --------------------------------------------------------------------------------------------------------


def rehearse_save(
    folder: Path, model: PreTrainedModel | PeftModel, reward_model: RewardModel[Any], record: ModelMetadata
) -> None:
    """Write the model directory without weights into `folder`, and read it back.

    Raises:
        RmkitError: if something cannot be written, or differs when it is read.
    """
    directory = folder / "model"
    # One number replaces every adapter weight: without any weight PEFT saves nothing.
    adapters = {name: torch.zeros(1) for name, weight in model.named_parameters() if weight.requires_grad}
    try:
        _load_generation_config(model, record)
        with no_progress_bar():
            save(directory, model, adapters if isinstance(model, PeftModel) else {}, reward_model, record)
        if isinstance(model, PeftModel):
            PeftConfig.from_pretrained(str(directory))
        else:
            type(model.config).from_pretrained(directory)
        encoder = ChatEncoder(load_tokenizer(str(directory))[0], record.date_string)
        read_metadata(str(directory))
    except RmkitError:
        raise
    except Exception as error:  # transformers and PEFT raise all kinds
        base = "the base" if record.base is None else record.base.name
        raise RmkitError(
            f"The trained model could not be saved: {first_line(error).rstrip('.')}.",
            f"Correct that in a copy of {base} (config.json, generation_config.json or tokenizer files).",
        ) from None
    texts = ["How do I bake bread?"], ["Mix flour, water, salt and yeast."]
    same = encoder.template_hash == reward_model.encoder.template_hash
    if not same or [sequence.ids for sequence in encoder.response_sequences(*texts)] != [
        sequence.ids for sequence in reward_model.encoder.response_sequences(*texts)
    ]:
        raise RmkitError(
            "The tokenizer or chat template changes when it is saved and loaded again.",
            "Give the template as base.chat_template, or save the base's tokenizer again with this transformers.",
        )


def _load_generation_config(model: PreTrainedModel | PeftModel, record: ModelMetadata) -> None:
    """Load the generation config of the base, if it has one: a model without weights has only defaults."""
    if isinstance(model, PeftModel) or record.base is None or not model.can_generate():
        return
    with contextlib.suppress(OSError):
        found = GenerationConfig.from_pretrained(
            plain_folder(record.base.name), revision=record.base.revision or "main"
        )
        found.pad_token_id = model.generation_config.pad_token_id
        model.generation_config = found
    keep_generation_config(model)
