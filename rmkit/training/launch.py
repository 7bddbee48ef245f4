"""How a run is spread over processes: what the recipe or the launcher asks for, and whether that is what came about.

A recipe's `distributed:` names a file in accelerate_configs/ (or gives a path). With a bare `accelerate launch` its
sharding goes through TrainingArguments.deepspeed; a `--config_file` given to accelerate goes before the recipe.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import ComputeEnvironment

from rmkit.config.recipe import Recipe
from rmkit.config.resources import ACCELERATE_CONFIGS, find_accelerate_config
from rmkit.config.strict_yaml import load_yaml
from rmkit.errors import RmkitError
from rmkit.processes import running_sharding, visible_gpus

_THREADS = "num_cpu_threads_per_process"
_CONFIG_FILE, _PROCESSES = "RMKIT_CONFIG_FILE", "RMKIT_NUM_PROCESSES"

# YAML takes a bare NO for false.
_TYPES = (False, DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.DEEPSPEED)
_REFUSED_VARIABLES = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_USE_SAGEMAKER",
)
_INSTEAD = "Use DeepSpeed's ZeRO-3 instead: `rmkit train RECIPE --config-file zero3`."
_BY_HAND = "Run `accelerate launch` on each machine, with the line at the head of zero3_multinode.yaml."


@dataclass(frozen=True)
class LaunchPlan:
    """What was asked for: a name to say, processes and sharding (none | zero0..3; None: any), and the file."""

    name: str
    processes: int | None
    sharding: str | None
    config: dict[str, Any]

    @property
    def uses_deepspeed(self) -> bool:
        """Whether some ZeRO stage was asked for."""
        return self.sharding is not None and self.sharding.startswith("zero")


def launch_options(name: str | None, processes: int) -> list[str]:
    """The options of `accelerate launch` for a configuration by name or path, and a number of processes.

    Raises:
        RmkitError: if the configuration cannot be launched from here, or there are fewer GPUs than processes.
    """
    config = {} if name is None else read_config(name)
    if config.get("num_machines", 1) > 1:
        raise RmkitError(f"{name} starts processes on several machines, rmkit train only on this one.", _BY_HAND)
    _check_gpus(processes)
    # Other types of configuration than DeepSpeed's start one process, whatever their number, unless they are told so.
    several = ["--multi_gpu"] if processes > 1 and _sharding_of(config) == "none" else []
    port = [] if config.get("main_process_port") else ["--main_process_port", "0"]  # any free one
    # Always a file: without one accelerate reads the user's own default, whatever `rmkit train` was told.
    where = ["--config_file", str(find_accelerate_config(name or "single_gpu"))]
    return [*several, *where, *port, "--num_processes", str(processes)]


def process_count(name: str | None) -> int:
    """How many processes `rmkit train` starts unless it is told: one for each visible GPU.

    On a machine without GPUs it is what the configuration says; one that says 1 means it everywhere.
    """
    named = None if name is None else read_config(name).get("num_processes")
    return 1 if named == 1 else visible_gpus() or named or 1


def threads(processes: int) -> int | None:
    """Threads with which each process should compute on a CPU; None where the user has said so, or there is a GPU.

    accelerate gives every process one thread unless it is told otherwise, and all other cores stay idle.
    """
    if visible_gpus() or os.environ.get("OMP_NUM_THREADS") != "1":
        return None
    try:
        launcher = psutil.Process(os.getppid())
        command, environment = launcher.cmdline(), launcher.environ()
    except psutil.Error:
        return None
    by_us = "train" in command and any(Path(part).name == "rmkit" for part in command[:4])
    if not (by_us or _launches(command)) or "OMP_NUM_THREADS" in environment or _option(command, _THREADS):
        return None
    cores = psutil.cpu_count(logical=False) or 1
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(cores, mine) // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))


def launcher_env(config: str | None, processes: int) -> dict[str, str]:
    """The environment of the processes that `rmkit train` starts: what it was told."""
    said = {_PROCESSES: str(processes), _CONFIG_FILE: config, "DS_ACCELERATOR": None if visible_gpus() else "cpu"}
    return {variable: value for variable, value in said.items() if value}


def read_config(name: str) -> dict[str, Any]:
    """The content of an accelerate configuration, by name or path.

    Raises:
        RmkitError: if there is none, accelerate does not take it, or it asks for what rmkit does not do.
    """
    path = find_accelerate_config(name)
    config = load_yaml(path)
    try:
        parsed = load_config_from_file(str(path))
    except (ValueError, TypeError) as error:
        raise RmkitError(f"{path}: {error}.", f"Compare it with {ACCELERATE_CONFIGS / 'ddp.yaml'}.") from None
    if parsed.compute_environment != ComputeEnvironment.LOCAL_MACHINE or parsed.distributed_type not in _TYPES:
        kind = getattr(parsed.distributed_type, "value", parsed.distributed_type)
        where = getattr(parsed.compute_environment, "value", parsed.compute_environment)
        raise RmkitError(f"{path}: distributed_type {kind} on {where} is not supported by rmkit.", _INSTEAD)
    if parsed.parallelism_config:
        raise RmkitError(f"{path}: parallelism_config is not supported by rmkit.", _INSTEAD)
    _check_dynamo(str(path), parsed.dynamo_config.get("dynamo_backend") if parsed.dynamo_config else None)
    stages = (0, 1, 2, 3)
    if parsed.distributed_type == DistributedType.DEEPSPEED and parsed.deepspeed_config.get("zero_stage") not in stages:
        raise RmkitError(
            f"{path}: deepspeed_config.zero_stage must be 0, 1, 2 or 3; rmkit takes no file of DeepSpeed's own.",
            f"Compare it with {ACCELERATE_CONFIGS / 'zero3.yaml'}.",
        )
    return config


def plan(recipe: Recipe) -> LaunchPlan | None:
    """What the launcher was told with options, else what the recipe names; None if neither says anything."""
    command = launcher_command()
    _check_dynamo("accelerate launch", _option(command, "dynamo_backend"))
    processes = os.environ.get(_PROCESSES) or _option(command, "num_processes")
    explicit = os.environ.get(_CONFIG_FILE) or _option(command, "config_file")
    name = explicit or recipe.distributed
    if name is None:
        sharding = _sharding_of_launcher()
        if processes is None:
            return None if sharding is None else LaunchPlan("accelerate", None, sharding, {})
        return LaunchPlan("--num_processes", int(processes), sharding, {})
    config = read_config(name)
    if processes is not None:
        wanted: int | None = int(processes)
    elif explicit is None:
        wanted = process_count(name)
    else:
        wanted = config.get("num_processes")
    return LaunchPlan(name, wanted, _sharding_of(config), config)


def _check_dynamo(where: str, backend: str | None) -> None:
    if (backend or "no").lower() != "no":
        raise RmkitError(
            f"{where}: dynamo_backend {backend} compiles the model, and the recipe does not say so.",
            "Leave it out, and set training.torch_compile=true and training.torch_compile_backend in the recipe.",
        )


def check_launcher() -> None:
    """Stop before anything is set up if the launcher asks accelerate for what rmkit does not do.

    Raises:
        RmkitError: naming the variable, which `accelerate launch` sets for its options and configurations.
    """
    for variable in _REFUSED_VARIABLES:
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise RmkitError(f"{variable} is set: rmkit does not support it.", f"Unset it. {_INSTEAD}")
    if os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
        raise RmkitError("accelerate was given a file of DeepSpeed's own, which rmkit does not take.", _INSTEAD)


def check_precision(bf16: bool) -> None:
    """Stop before anything is loaded if the launcher asks for another precision than the recipe, which decides it.

    Raises:
        RmkitError: naming it; autocast would be on, and neither scoring nor the saved model would know of it.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", "bf16" if bf16 else "no"):
        leave = "mixed_precision: no in accelerate's configuration (or `accelerate launch --mixed_precision no`)"
        raise RmkitError(
            f"accelerate was told mixed_precision {asked}, and the recipe does not say so.",
            f"Set training.bf16=true, or {leave}." if asked == "bf16" else f"Set {leave}.",
        )


def training_options(plan: LaunchPlan | None) -> dict[str, Any]:
    """What TrainingArguments must be told: DeepSpeed unless the launcher has set it up, and whether there is no GPU."""
    options: dict[str, Any] = {"use_cpu": visible_gpus() == 0}
    if plan is not None and plan.uses_deepspeed:
        if options["use_cpu"]:
            _skip_shared_memory_build()
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") != "true":
            options["deepspeed"] = deepspeed_config(plan.config)
            defaults = {
                "RANK": "0",
                "LOCAL_RANK": "0",
                "WORLD_SIZE": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "0",
            }
            for variable, value in defaults.items():  # what a launcher of one process leaves out
                os.environ.setdefault(variable, value)
    return options


def check_processes(plan: LaunchPlan | None, running: int) -> None:
    """Stop before weights load if another number of processes runs than was asked for, or than there are GPUs.

    Raises:
        RmkitError: naming both; some launchers fall back to one process without a word.
    """
    if plan is not None and plan.processes is not None and running != plan.processes:
        asked = "1 process" if plan.processes == 1 else f"{plan.processes} processes"
        runs = "1 runs" if running == 1 else f"{running} run"
        raise RmkitError(f"{plan.name} asks for {asked}, but {runs}.", _remedy(plan))
    _check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def check_sharding(plan: LaunchPlan | None, arguments: Any) -> None:
    """Stop before weights load if the model would be sharded in another way than was asked for.

    Raises:
        RmkitError: naming both.
    """
    sharding = running_sharding(arguments)
    if plan is not None and plan.sharding not in (None, sharding):
        raise RmkitError(f"{plan.name} asks for sharding {plan.sharding}, but the run has {sharding}.", _remedy(plan))


def check_deepspeed(arguments: Any) -> None:
    """Stop before weights load if the launcher tells DeepSpeed what the recipe decides, or not to save the model.

    Raises:
        RmkitError: naming the key of accelerate's configuration.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") != "true":
        return
    where = "under deepspeed_config in accelerate's configuration"
    for key, ours, field in (
        ("gradient_accumulation_steps", arguments.gradient_accumulation_steps, "training.batch_size"),
        ("gradient_clipping", arguments.max_grad_norm, "training.max_grad_norm"),
    ):
        told = os.environ.get(f"ACCELERATE_{key.upper()}", "auto")
        if told != "auto" and float(told) != ours:
            raise RmkitError(
                f"{key} is {told} {where}, and {ours} by the recipe.", f"Set it to auto: {field} decides it."
            )
    gathers = os.environ.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false") == "true"
    if running_sharding(arguments) == "zero3" and not gathers:
        raise RmkitError(
            "ZeRO-3 was not told to gather the weights, so the trained model could not be saved.",
            f"Set zero3_save_16bit_model: true {where} (or `accelerate launch --zero3_save_16bit_model true`).",
        )


def _remedy(plan: LaunchPlan) -> str:
    if plan.config.get("num_machines", 1) > 1:
        return _BY_HAND
    config = f" --config-file {plan.name}" if plan.config else ""
    return f"Use `rmkit train RECIPE{config} --num-processes {plan.processes or process_count(plan.name)}`."


def _check_gpus(processes: int) -> None:
    gpus = visible_gpus()
    if gpus and processes > gpus:
        raise RmkitError(f"There are {processes} processes for {gpus} visible GPUs.", f"Give --num-processes {gpus}.")


def accumulation_steps(batch_size: int, micro_batch_size: int, processes: int) -> int:
    """Micro-batches an optimizer step, so that it sees `batch_size` pairs on any number of processes.

    Raises:
        RmkitError: if they do not divide it.
    """
    together = micro_batch_size * processes
    if batch_size % together:
        raise RmkitError(
            f"training.batch_size {batch_size} is not a multiple of {processes} processes x micro-batches of "
            f"{micro_batch_size} pairs.",
            "Change training.per_device_train_batch_size or the number of processes.",
        )
    return batch_size // together


def deepspeed_config(config: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's own configuration from the keys of an accelerate file; sizes and dtype follow TrainingArguments."""
    keys = config["deepspeed_config"]
    zero: dict[str, Any] = {"stage": keys["zero_stage"]}
    for part in ("optimizer", "param"):
        device = keys.get(f"offload_{part}_device", "none")
        if device != "none":
            zero[f"offload_{part}"] = {"device": device}
    if keys["zero_stage"] == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = keys.get("zero3_save_16bit_model", True)
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def launcher_command() -> Sequence[str]:
    """The command line of the `accelerate launch` that started this process; empty if none did."""
    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    return command if _launches(command) else []


def _launches(command: Sequence[str]) -> bool:
    return "launch" in command or any("accelerate" in part for part in command[:3])


def _option(command: Sequence[str], name: str) -> str | None:
    for number, part in enumerate(command):
        option, given, value = part.partition("=")
        if option.startswith("--") and option[2:].replace("-", "_") == name:  # accelerate takes both spellings
            return value if given else next(iter(command[number + 1 :]), None)
    return None


def _sharding_of(config: Mapping[str, Any]) -> str:
    if config.get("distributed_type") == "DEEPSPEED":
        return f"zero{config['deepspeed_config']['zero_stage']}"
    return "none"


def _sharding_of_launcher() -> str | None:
    """What options of `accelerate launch` or its default configuration have set up; None but for DeepSpeed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") != "true":
        return None
    return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', 2)}"  # accelerate's own default


def _skip_shared_memory_build() -> None:
    """On a CPU DeepSpeed compiles a communication kernel at the first start (a minute); gloo gives the same losses."""
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False
