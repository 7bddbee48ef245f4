"""How a run is spread over processes: plan it from the recipe and the launcher, and check that the plan took effect.

A recipe's `distributed:` names a file in accelerate_configs/ (or gives a path). `rmkit train` launches with that file.
Other launchers are recognised by the environment that they set:

- `accelerate launch` with DeepSpeed (from a `--config_file` or options) exports the ZeRO stage: it overrides the recipe
- Without DeepSpeed nothing in the environment tells whether accelerate has read a configuration: the recipe decides the
  sharding, through TrainingArguments.deepspeed. The same holds for torchrun.
- The number of processes that runs overrides the one in the recipe's configuration, unless that is 1, or one process
  runs where nobody chose the number (without GPUs, or without a launcher).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import ComputeEnvironment

from rmkit.config.recipe import Recipe
from rmkit.config.resources import ACCELERATE_CONFIGS, find_accelerate_config
from rmkit.config.strict_yaml import load_yaml
from rmkit.errors import RmkitError
from rmkit.processes import running_processes, running_sharding, visible_gpus

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
_MULTI_NODE = "Run `accelerate launch` on each machine, with the line at the head of zero3_multinode.yaml."
_LAUNCHER = "accelerate launch"


@dataclass(frozen=True)
class LaunchPlan:
    """How a run should be spread over processes.

    Attributes:
        name: the configuration or launcher that decides, for messages and run.json.
        processes: their number; None: any.
        sharding: none | zero0..3; None: any.
        config: the content of the accelerate configuration; empty without one.
    """

    name: str
    processes: int | None
    sharding: str | None
    config: dict[str, Any]

    @property
    def uses_deepspeed(self) -> bool:
        """Whether the plan has a ZeRO stage, 0 included."""
        return self.sharding is not None and self.sharding.startswith("zero")


def launch_options(name: str | None, processes: int) -> list[str]:
    """The options of `accelerate launch` for a configuration by name or path, and a number of processes.

    Raises:
        RmkitError: if the configuration cannot be launched from here, or there are fewer GPUs than processes.
    """
    config = {} if name is None else read_config(name)
    if config.get("num_machines", 1) > 1:
        raise RmkitError(f"{name} starts processes on several machines; rmkit train starts them on one.", _MULTI_NODE)
    _check_gpus(processes)
    # Without DeepSpeed accelerate starts one process, whatever --num_processes says, unless it gets this flag.
    several = ["--multi_gpu"] if processes > 1 and _sharding_of(config) == "none" else []
    port = [] if config.get("main_process_port") else ["--main_process_port", "0"]  # any free one
    threads = cpu_threads(processes)
    per_process = ["--num_cpu_threads_per_process", str(threads)] if threads else []
    # Always a file: without one accelerate reads the user's default configuration.
    file = ["--config_file", str(find_accelerate_config(name or "single_gpu"))]
    return [*several, *file, *port, *per_process, "--num_processes", str(processes)]


def process_count(name: str | None) -> int:
    """How many processes `rmkit train` starts without --num-processes: one per visible GPU.

    Without GPUs it is the configuration's num_processes. A configuration with num_processes: 1 gives 1 everywhere.
    """
    named = None if name is None else read_config(name).get("num_processes")
    return 1 if named == 1 else visible_gpus() or named or 1


def cpu_threads(processes: int) -> int | None:
    """Threads for each process that `rmkit train` starts; None with a GPU, or where OMP_NUM_THREADS decides.

    accelerate gives every process one thread by default, which leaves all other cores idle.
    """
    if visible_gpus() or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, _cores() // processes)


def threads_note() -> str | None:
    """A line for a CPU run that `accelerate launch` has given one thread; None elsewhere.

    accelerate exports OMP_NUM_THREADS=1 whether the user has set it or not, so the number is left as it is.
    """
    cores = _cores()
    if visible_gpus() or not _by_accelerate() or os.environ.get("OMP_NUM_THREADS") != "1" or cores == 1:
        return None
    return (
        f"Each process uses 1 of {cores} CPU cores (OMP_NUM_THREADS=1, accelerate's default). `rmkit train RECIPE` or "
        "`accelerate launch --num_cpu_threads_per_process N` uses more."
    )


def _by_accelerate() -> bool:
    """Whether the user's own `accelerate launch` has started this process, rather than `rmkit train`."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and _PROCESSES not in os.environ


def _cores() -> int:
    """Physical cores that this process may use."""
    cores = psutil.cpu_count(logical=False) or 1
    return min(cores, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else cores


def launcher_env(config: str | None, processes: int) -> dict[str, str]:
    """Environment variables by which `rmkit train` passes its options to the processes that it starts."""
    variables = {_PROCESSES: str(processes), _CONFIG_FILE: config, "DS_ACCELERATOR": None if visible_gpus() else "cpu"}
    return {name: value for name, value in variables.items() if value}


def read_config(name: str) -> dict[str, Any]:
    """The content of an accelerate configuration, by name or path.

    Raises:
        RmkitError: if there is none, accelerate rejects it, or rmkit does not support it.
    """
    path = find_accelerate_config(name)
    config = load_yaml(path)
    try:
        parsed = load_config_from_file(str(path))
    except (ValueError, TypeError) as error:
        raise RmkitError(f"{path}: {error}.", f"Compare it with {ACCELERATE_CONFIGS / 'ddp.yaml'}.") from None
    if parsed.compute_environment != ComputeEnvironment.LOCAL_MACHINE or parsed.distributed_type not in _TYPES:
        type_name = getattr(parsed.distributed_type, "value", parsed.distributed_type)
        where = getattr(parsed.compute_environment, "value", parsed.compute_environment)
        raise RmkitError(f"{path}: distributed_type {type_name} on {where} is not supported by rmkit.", _INSTEAD)
    if parsed.parallelism_config:
        raise RmkitError(f"{path}: parallelism_config is not supported by rmkit.", _INSTEAD)
    _check_dynamo(str(path), parsed.dynamo_config.get("dynamo_backend") if parsed.dynamo_config else None)
    stages = (0, 1, 2, 3)
    if parsed.distributed_type == DistributedType.DEEPSPEED and parsed.deepspeed_config.get("zero_stage") not in stages:
        raise RmkitError(
            f"{path}: deepspeed_config.zero_stage must be 0, 1, 2 or 3 (rmkit takes no DeepSpeed configuration file).",
            f"Compare it with {ACCELERATE_CONFIGS / 'zero3.yaml'}.",
        )
    return config


def plan(recipe: Recipe) -> LaunchPlan | None:
    """The plan of a run, from `rmkit train`, the launcher and the recipe; None if none of them decides anything.

    Raises:
        RmkitError: see `read_config`.
    """
    option, number = os.environ.get(_CONFIG_FILE), os.environ.get(_PROCESSES)
    name = option or recipe.distributed
    config = {} if name is None else read_config(name)
    processes = int(number) if number else None
    launched = _launched_deepspeed() if option is None else None
    if launched is not None and (name is None or _sharding_of(launched) != _sharding_of(config)):
        return LaunchPlan(_LAUNCHER, processes, _sharding_of(launched), launched)
    if name is None:
        return None if processes is None else LaunchPlan("--num-processes", processes, None, {})
    if processes is None:
        # Several processes were somebody's choice, and so is one where accelerate's default would be one per GPU.
        running = running_processes()
        chosen = running > 1 or (_by_accelerate() and visible_gpus() > 1)
        processes = running if chosen and config.get("num_processes") != 1 else process_count(name)
    return LaunchPlan(name, processes, _sharding_of(config), launched or config)


def override_note(recipe: Recipe, plan: LaunchPlan | None) -> str | None:
    """A line for a recipe whose `distributed:` the launcher overrides."""
    if plan is None or plan.name != _LAUNCHER or recipe.distributed is None:
        return None
    return f"accelerate launch has set up {plan.sharding}, which overrides distributed: {recipe.distributed}."


def _launched_deepspeed() -> dict[str, Any] | None:
    """What `accelerate launch` has set up with DeepSpeed, in the words of a configuration; None without DeepSpeed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") != "true":
        return None
    keys = {"offload_optimizer_device": "none", "offload_param_device": "none"}
    exported = {key: os.environ.get(f"ACCELERATE_DEEPSPEED_{key.upper()}", value) for key, value in keys.items()}
    stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))  # accelerate's own default
    return {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": stage, **exported}}


def _check_dynamo(where: str, backend: str | None) -> None:
    if (backend or "no").lower() != "no":
        raise RmkitError(
            f"{where}: dynamo_backend {backend} compiles the model, and the recipe does not say so.",
            "Leave it out, and set training.torch_compile=true and training.torch_compile_backend in the recipe.",
        )


def check_launcher() -> None:
    """Refuse options of accelerate that rmkit does not support, before anything is set up.

    Raises:
        RmkitError: naming the variable that `accelerate launch` exports for the option or configuration key.
    """
    _check_dynamo(_LAUNCHER, os.environ.get("ACCELERATE_DYNAMO_BACKEND"))
    for variable in _REFUSED_VARIABLES:
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise RmkitError(f"{variable} is set: rmkit does not support it.", f"Unset it. {_INSTEAD}")
    if os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
        raise RmkitError("accelerate uses a configuration file of DeepSpeed, which rmkit does not support.", _INSTEAD)


def check_precision(bf16: bool) -> None:
    """Refuse a mixed precision of the launcher that the recipe does not have: the recipe decides it.

    Raises:
        RmkitError: naming it. Autocast would be on in training only, and the saved model would not record it.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", "bf16" if bf16 else "no"):
        leave = "mixed_precision: no in accelerate's configuration (or `accelerate launch --mixed_precision no`)"
        raise RmkitError(
            f"accelerate uses mixed_precision {launched}, and the recipe does not say so.",
            f"Set training.bf16=true, or {leave}." if launched == "bf16" else f"Set {leave}.",
        )


def training_options(plan: LaunchPlan | None) -> dict[str, Any]:
    """Fields of TrainingArguments that the launch decides: use_cpu, and deepspeed unless the launcher set it up."""
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
            for variable, value in defaults.items():  # a launcher of one process leaves them out
                os.environ.setdefault(variable, value)
    return options


def check_processes(plan: LaunchPlan | None, running: int) -> None:
    """Refuse a number of processes that differs from the plan's, or exceeds the GPUs, before weights load.

    Raises:
        RmkitError: naming both numbers; some launchers silently fall back to one process.
    """
    # accelerate without a GPU and --multi_gpu starts one process; the address of the group is all that it exports.
    one_process = _by_accelerate() and "WORLD_SIZE" not in os.environ
    if one_process and "MASTER_ADDR" in os.environ:
        raise RmkitError(
            "accelerate launch was told to start several processes (MASTER_ADDR is set), but 1 runs.",
            "Use `rmkit train RECIPE --num-processes N`, or unset MASTER_ADDR to train in one process.",
        )
    if plan is not None and plan.processes is not None and running != plan.processes:
        planned = "1 process" if plan.processes == 1 else f"{plan.processes} processes"
        runs = "1 runs" if running == 1 else f"{running} run"
        raise RmkitError(f"{plan.name} asks for {planned}, but {runs}.", _remedy(plan))
    _check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def check_sharding(plan: LaunchPlan | None, arguments: Any) -> None:
    """Refuse a sharding that differs from the plan's, before weights load.

    Raises:
        RmkitError: naming both.
    """
    sharding = running_sharding(arguments)
    if plan is not None and plan.sharding not in (None, sharding):
        raise RmkitError(f"{plan.name} asks for sharding {plan.sharding}, but the run has {sharding}.", _remedy(plan))


def check_deepspeed(arguments: Any) -> None:
    """Refuse DeepSpeed options of the launcher that contradict the recipe or prevent saving, before weights load.

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
        launched = os.environ.get(f"ACCELERATE_{key.upper()}", "auto")
        if launched != "auto" and float(launched) != ours:
            raise RmkitError(
                f"{key} is {launched} {where}, and {ours} by the recipe.", f"Set it to auto: {field} decides it."
            )
    gathers = os.environ.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false") == "true"
    if running_sharding(arguments) == "zero3" and not gathers:
        raise RmkitError(
            "ZeRO-3 would not gather the weights, so the trained model could not be saved.",
            f"Set zero3_save_16bit_model: true {where} (or `accelerate launch --zero3_save_16bit_model true`).",
        )


def _remedy(plan: LaunchPlan) -> str:
    if plan.config.get("num_machines", 1) > 1:
        return _MULTI_NODE
    config = f" --config-file {plan.name}" if plan.config and plan.name != _LAUNCHER else ""
    number = f" --num-processes {plan.processes}" if plan.processes else ""
    return f"Use `rmkit train RECIPE{config}{number}`."


def _check_gpus(processes: int) -> None:
    gpus = visible_gpus()
    if gpus and processes > gpus:
        raise RmkitError(f"There are {processes} processes for {gpus} visible GPUs.", f"Give --num-processes {gpus}.")


def accumulation_steps(batch_size: int, micro_batch_size: int, processes: int) -> int:
    """Micro-batches per optimizer step, so that a step sees `batch_size` pairs on any number of processes.

    Raises:
        RmkitError: if processes times micro-batch size does not divide the batch size.
    """
    pairs = micro_batch_size * processes
    if batch_size % pairs:
        raise RmkitError(
            f"training.batch_size {batch_size} is not a multiple of {processes} processes x micro-batches of "
            f"{micro_batch_size} pairs.",
            "Change training.per_device_train_batch_size or the number of processes.",
        )
    return batch_size // pairs


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


def _sharding_of(config: Mapping[str, Any]) -> str:
    if config.get("distributed_type") == "DEEPSPEED":
        return f"zero{config['deepspeed_config']['zero_stage']}"
    return "none"


def _skip_shared_memory_build() -> None:
    """Keep DeepSpeed from compiling a CPU communication kernel at its first start (a minute); gloo replaces it."""
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False
