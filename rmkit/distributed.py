"""How a run is spread over processes: what the recipe or the launcher asks for, and whether that is what came about.

A recipe's `distributed:` names a file in accelerate_configs/ (or gives a path). With a bare `accelerate launch` its
sharding goes through TrainingArguments.deepspeed; a `--config_file` given to accelerate goes before the recipe.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from accelerate import PartialState
from transformers.integrations import deepspeed

from rmkit.errors import RmkitError
from rmkit.recipe import Recipe
from rmkit.settings import load_yaml

_THREADS = "--num_cpu_threads_per_process"
_CONFIG_FILE, _PROCESSES = "RMKIT_CONFIG_FILE", "RMKIT_NUM_PROCESSES"
CONFIGS = Path(__file__).resolve().parent.parent / "accelerate_configs"


@dataclass(frozen=True)
class Plan:
    """What was asked for: a name to say, the number of processes (None: any), none | zero1..3 | fsdp, and the file."""

    name: str
    processes: int | None
    sharding: str
    config: dict[str, Any]


def launch_options(name: str | None, processes: int | None) -> list[str]:
    """The options of `accelerate launch` for a configuration by name or path, and a number of processes."""
    count = ["--num_processes", str(processes or 1)] if processes or name is None else []
    if name is not None:
        return ["--config_file", str(config_file(name)), *count]
    several = ["--multi_gpu"] if (processes or 1) > 1 else []
    return [*several, *count, "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


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


def said_by_launcher(config: str | None, processes: int | None) -> dict[str, str]:
    """What `rmkit train` was told, for the processes that it starts."""
    said = {_CONFIG_FILE: config, _PROCESSES: str(processes) if processes else None}
    return {variable: value for variable, value in said.items() if value}


def config_file(name: str) -> Path:
    """The accelerate configuration of a name in accelerate_configs/ or of a path.

    Raises:
        RmkitError: if there is none.
    """
    for candidate in (CONFIGS / f"{name}.yaml", Path(name)):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise RmkitError(f"distributed: {name} is neither a file nor one of {known}.", "Name one of these.")


def plan(recipe: Recipe) -> Plan | None:
    """What the launcher was told with --config_file, else what the recipe names; None if neither says anything."""
    command = launcher_command()
    processes = os.environ.get(_PROCESSES) or _option(command, "--num_processes")
    explicit = os.environ.get(_CONFIG_FILE) or _option(command, "--config_file")
    if explicit is None and recipe.distributed is None:
        return None
    name = explicit or str(recipe.distributed)
    config = load_yaml(config_file(name))
    if processes is not None:
        wanted: int | None = int(processes)
    elif explicit is None and visible_gpus():
        wanted = visible_gpus()  # a recipe trains on all of them
    else:
        wanted = config.get("num_processes")
    return Plan(name, wanted, _sharding_of(config), config)


def training_options(plan: Plan | None) -> dict[str, Any]:
    """What TrainingArguments must be told: DeepSpeed unless the launcher has set it up, and whether there is no GPU."""
    options: dict[str, Any] = {"use_cpu": visible_gpus() == 0}
    if plan is not None and plan.sharding.startswith("zero"):
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


def check_processes(plan: Plan | None, running: int) -> None:
    """Stop before weights load if another number of processes runs than was asked for.

    Raises:
        RmkitError: naming both; some launchers fall back to one process without a word.
    """
    if plan is not None and plan.processes is not None and running != plan.processes:
        raise RmkitError(f"{plan.name} asks for {plan.processes} processes, but {running} run.", _remedy(plan))


def check_sharding(plan: Plan | None, arguments: Any) -> None:
    """Stop before weights load if the model would be sharded in another way than was asked for.

    Raises:
        RmkitError: naming both.
    """
    sharding = running_sharding(arguments)
    if plan is not None and sharding != plan.sharding:
        raise RmkitError(f"{plan.name} asks for sharding {plan.sharding}, but the run has {sharding}.", _remedy(plan))


def _remedy(plan: Plan) -> str:
    return f"Launch with `accelerate launch --config_file {config_file(plan.name)}` or `rmkit train`."


def running_processes() -> int:
    """How many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def unsharded() -> Iterator[None]:
    """Load models whole inside: under ZeRO-3 transformers would partition every model that it loads."""
    # Whoever set the configuration up (launcher or TrainingArguments) holds it; transformers holds a weak reference.
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let the main process load and score by itself while the others wait: nothing is shared out or gathered inside."""
    state = PartialState()
    shared = state.num_processes, state.process_index
    state.num_processes, state.process_index = 1, 0
    try:
        with unsharded():
            yield
    finally:
        state.num_processes, state.process_index = shared


def running_sharding(arguments: Any) -> str:
    """none | zero1..3 | fsdp, as TrainingArguments have set it up."""
    plugin = getattr(arguments, "deepspeed_plugin", None)
    if plugin is not None:
        return f"zero{plugin.zero_stage}"
    return "fsdp" if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true" else "none"


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


def visible_gpus() -> int:
    """How many GPUs this process sees."""
    import torch

    return torch.cuda.device_count()


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
        if part == name and number + 1 < len(command):
            return command[number + 1]
        if part.startswith(f"{name}="):
            return part.partition("=")[2]
    return None


def _sharding_of(config: dict[str, Any]) -> str:
    if "deepspeed_config" in config:
        return f"zero{config['deepspeed_config']['zero_stage']}"
    return "fsdp" if "fsdp_config" in config else "none"


def _skip_shared_memory_build() -> None:
    """On a CPU DeepSpeed compiles a communication kernel at the first start (a minute); gloo gives the same losses."""
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False
