"""The launch plan against the processes that run; ZeRO-3 on two CPU processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import yaml
from accelerate.commands import launch as accelerate_launch
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from conftest import REPOSITORY
from transformers import Trainer, TrainerCallback

from rmkit import RmkitError, load_reward_model
from rmkit.config.recipe import Recipe, load_recipe, training_arguments
from rmkit.config.resources import ACCELERATE_CONFIGS
from rmkit.data.preferences import load_preferences
from rmkit.runs.directory import RunDirectory
from rmkit.train import train
from rmkit.training import launch

CONFIGS = sorted(ACCELERATE_CONFIGS.glob("*.yaml"))
LAUNCHER_VARIABLES = {
    "RMKIT_CONFIG_FILE",
    "RMKIT_NUM_PROCESSES",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}


def recipe(**changes):
    content = {
        "base": {"name": "x"},
        "reward_model": {"type": "explicit"},
        "data": {"train": {"name": "t", "path": "p"}},
        "output_dir": "o",
    }
    return Recipe.model_validate(content | changes)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """No variable of a launcher, whatever other tests have left in the environment."""
    for name in os.environ:
        if name.startswith("ACCELERATE_") or name in LAUNCHER_VARIABLES:
            monkeypatch.delenv(name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_has_a_launch_line_and_accelerate_reads_it(path):
    from accelerate.commands.config.config_args import load_config_from_file

    text = path.read_text()
    line = next(line for line in text.splitlines() if "accelerate launch" in line)
    assert f"--config_file accelerate_configs/{path.name} " in line
    assert "rmkit/train.py recipes/" in line
    assert (REPOSITORY / line.split()[-1]).exists()
    assert load_config_from_file(str(path)).num_processes == yaml.safe_load(text)["num_processes"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_launches_every_configuration_as_written(path, monkeypatch):
    """accelerate's own launch, up to the point where it would start processes."""

    started = {}
    for name in ("simple_launcher", "multi_gpu_launcher", "deepspeed_launcher"):
        monkeypatch.setattr(accelerate_launch, name, lambda args, name=name: started.update(vars(args), launcher=name))
    config = yaml.safe_load(path.read_text())
    options = (
        ["--config_file", str(path), "--main_process_ip", "host"]
        if "multinode" in path.stem
        else launch.launch_options(str(path), yaml.safe_load(path.read_text())["num_processes"])
    )
    accelerate_launch.launch_command(
        accelerate_launch.launch_command_parser().parse_args([*options, "rmkit/train.py", "recipe.yaml"])
    )
    assert started["num_processes"] == config["num_processes"]
    assert started["num_machines"] == config["num_machines"]
    if "deepspeed_config" in config:
        assert started["launcher"] == "deepspeed_launcher"
        assert started["zero_stage"] == config["deepspeed_config"]["zero_stage"]
        assert started["offload_param_device"] == config["deepspeed_config"]["offload_param_device"]
    else:
        assert started["launcher"] == ("multi_gpu_launcher" if config["num_processes"] > 1 else "simple_launcher")


def test_a_recipe_plans_for_all_visible_gpus(monkeypatch):
    monkeypatch.setattr(launch, "visible_gpus", lambda: 8)
    plan = launch.plan(recipe(distributed="zero3"))
    assert (plan.processes, plan.sharding) == (8, "zero3")
    assert launch.plan(recipe(distributed="single_gpu")).processes == 1
    with pytest.raises(RmkitError, match="asks for 8 processes, but 1 runs"):
        launch.check_processes(plan, 1)
    launch.check_processes(plan, 8)
    assert launch.plan(recipe()) is None


@pytest.fixture
def launched(monkeypatch):
    """Set the environment that `accelerate launch` gives to a process, by accelerate's own code, and torchrun's."""

    def start(*options, gpus=0):
        started = {}

        def simple_launcher(args):
            started.update(prepare_simple_launcher_cmd_env(args)[1])

        def multi_gpu_launcher(args):
            started.update(prepare_multi_gpu_env(args), WORLD_SIZE=str(args.num_processes), MASTER_ADDR="x")

        def deepspeed_launcher(args):
            started.update(prepare_deepspeed_cmd_env(args)[1], WORLD_SIZE=str(args.num_processes), MASTER_ADDR="x")

        for launcher in (simple_launcher, multi_gpu_launcher, deepspeed_launcher):
            monkeypatch.setattr(accelerate_launch, launcher.__name__, launcher)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
        monkeypatch.setattr(accelerate_launch, "default_config_file", "none")
        parser = accelerate_launch.launch_command_parser()
        accelerate_launch.launch_command(parser.parse_args([*options, "rmkit/train.py", "recipe.yaml"]))
        for name, value in started.items():
            monkeypatch.setenv(name, value)

    return start


def config_path(part):
    """An option of `accelerate launch`; the name of a configuration becomes its path."""
    path = ACCELERATE_CONFIGS / f"{part}.yaml"
    return str(path) if path.exists() else part


@pytest.mark.parametrize(
    ("options", "distributed", "gpus", "expected"),
    [
        # no option: all GPUs, the recipe's sharding
        ([], "zero3", 8, ("zero3", 8, "zero3")),
        ([], None, 8, None),
        # the number of processes given to accelerate overrides the one in the recipe's configuration
        (["--num_processes", "3", "--multi_gpu"], "zero3", 8, ("zero3", 3, "zero3")),
        # so does DeepSpeed that accelerate has set up: its stage, its offloading
        (["--config_file", "zero2", "--num_processes", "3"], "zero3", 8, ("accelerate launch", None, "zero2")),
        (["--config_file", "zero2"], None, 8, ("accelerate launch", None, "zero2")),
        (["--config_file", "zero3", "--num_processes", "3"], "zero3", 8, ("zero3", 3, "zero3")),
        (
            ["--use_deepspeed", "--zero_stage", "1", "--num_processes", "2"],
            "ddp",
            2,
            ("accelerate launch", None, "zero1"),
        ),
        # a configuration without DeepSpeed leaves no trace in the environment: the recipe decides the sharding
        (["--config_file", "ddp"], "zero3", 4, ("zero3", 4, "zero3")),
        (["--config_file", "ddp"], None, 4, None),
        # one process instead of one per GPU
        (["--config_file", "single_gpu"], "ddp", 8, ("ddp", 1, "none")),
        (["--num_processes", "1"], "zero3", 8, ("zero3", 1, "zero3")),
        # one process, as the configuration says
        (["--config_file", "cpu"], None, 0, None),
        (["--config_file", "cpu"], "cpu", 0, ("cpu", 1, "none")),
    ],
)
def test_the_plan_of_a_run_that_accelerate_has_launched(launched, options, distributed, gpus, expected):
    launched(*map(config_path, options), gpus=gpus)
    planned = launch.plan(recipe(distributed=distributed))
    assert (planned and (planned.name, planned.processes, planned.sharding)) == expected
    launch.check_processes(planned, int(os.environ.get("WORLD_SIZE", "1")))
    note = launch.override_note(recipe(distributed=distributed), planned)
    if distributed is not None and expected[0] == "accelerate launch":
        assert note == f"accelerate launch has set up {expected[2]}, which overrides distributed: {distributed}."
    else:
        assert note is None


@pytest.mark.parametrize(
    ("options", "distributed", "gpus", "message"),
    [
        (["--num_processes", "2"], None, 0, r"told to start several processes.*but 1 runs.*--num-processes N"),
        (["--config_file", "cpu", "--num_processes", "2"], "cpu", 0, r"told to start several processes"),
        ([], "cpu_zero3", 0, r"cpu_zero3 asks for 2 processes, but 1 runs.*--config-file cpu_zero3 --num-processes 2"),
        ([], "single_gpu", 8, r"single_gpu asks for 1 process, but 8 run.*--config-file single_gpu --num-processes 1"),
    ],
)
def test_another_number_of_processes_than_planned_is_refused(launched, options, distributed, gpus, message):
    launched(*map(config_path, options), gpus=gpus)
    with pytest.raises(RmkitError, match=message):
        launch.check_processes(launch.plan(recipe(distributed=distributed)), int(os.environ.get("WORLD_SIZE", "1")))


def test_offloading_that_accelerate_has_set_up_is_in_the_plan(launched):
    launched(
        "--use_deepspeed", "--zero_stage", "3", "--offload_optimizer_device", "cpu", "--num_processes", "2", gpus=2
    )
    planned = launch.plan(recipe(distributed="zero3"))
    assert planned.name == "zero3"
    assert planned.config["deepspeed_config"] == {
        "zero_stage": 3,
        "offload_optimizer_device": "cpu",
        "offload_param_device": "none",
    }


@pytest.mark.parametrize(("distributed", "processes"), [("zero3", 4), ("ddp", 2), (None, 2), ("cpu", None)])
def test_torchrun_decides_the_number_of_processes_except_for_a_configuration_of_one(
    monkeypatch, distributed, processes
):
    monkeypatch.setenv("WORLD_SIZE", str(processes or 2))
    planned = launch.plan(recipe(distributed=distributed))
    if processes is None:
        with pytest.raises(RmkitError, match="cpu asks for 1 process, but 2 run"):
            launch.check_processes(planned, 2)
    else:
        launch.check_processes(planned, processes)


@pytest.mark.parametrize("name", [None, "single_gpu", "zero3"])
@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_rmkit_train_and_its_processes_plan_the_same_number(monkeypatch, name, gpus):
    """One process per visible GPU; one for a configuration of one; without GPUs the configuration's number."""
    monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
    count = launch.process_count(name)
    assert count == {None: gpus or 1, "single_gpu": 1, "zero3": gpus or 4}[name]
    options = launch.launch_options(name, count)
    assert options[options.index("--num_processes") + 1] == str(count)
    assert ("--multi_gpu" in options) == (name is None and count > 1)
    for variable, value in launch.launcher_env(name, count).items():
        monkeypatch.setenv(variable, value)
    launch.check_processes(launch.plan(recipe()), count)


@pytest.mark.parametrize(
    "content",
    [
        {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_version": 2}},
        {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": {"zero_stage": 2}},
        {"distributed_type": "NO", "num_processes": 1, "dynamo_config": {"dynamo_backend": "INDUCTOR"}},
    ],
    ids=lambda content: content["distributed_type"],
)
def test_rmkit_train_ignores_the_default_configuration_of_accelerate(monkeypatch, tmp_path, content):

    started = {}
    for name in ("simple_launcher", "multi_gpu_launcher", "deepspeed_launcher"):
        monkeypatch.setattr(accelerate_launch, name, lambda args, name=name: started.update(vars(args), launcher=name))
    default = tmp_path / "default_config.yaml"
    common = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "mixed_precision": "bf16"}
    default.write_text(yaml.safe_dump(common | content))
    monkeypatch.setattr(accelerate_launch, "default_config_file", str(default))
    for count, launcher in ((1, "simple_launcher"), (2, "multi_gpu_launcher")):
        options = launch.launch_options(None, count)
        accelerate_launch.launch_command(
            accelerate_launch.launch_command_parser().parse_args([*options, "rmkit/train.py", "recipe.yaml"])
        )
        assert (started["launcher"], started["num_processes"]) == (launcher, count)
        assert (started["mixed_precision"], started["dynamo_backend"]) == ("no", "no")
        assert not started["use_fsdp"]
        assert not started["use_deepspeed"]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(launch, "visible_gpus", lambda: 2)
    with pytest.raises(RmkitError, match=r"4 processes for 2 visible GPUs. Give --num-processes 2"):
        launch.launch_options(None, 4)
    assert launch.launch_options(None, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(RmkitError, match="4 processes for 2 visible GPUs"):
        launch.check_processes(None, 4)


def test_rmkit_train_refuses_configurations_for_several_machines(monkeypatch):
    with pytest.raises(RmkitError, match=r"on several machines.*zero3_multinode.yaml"):
        launch.launch_options("zero3_multinode", 16)
    with pytest.raises(RmkitError, match=r"but 1 runs. Run `accelerate launch` on each machine"):
        launch.check_processes(launch.plan(recipe(distributed="zero3_multinode")), 1)


UNSUPPORTED = {
    "FSDP": {"fsdp_config": {"fsdp_version": 2}},
    "MEGATRON_LM": {"megatron_lm_config": {"megatron_lm_tp_degree": 2}},
    "XLA": {"downcast_bf16": False},
    "MULTI_XPU": {},
    "SageMaker": {"compute_environment": "AMAZON_SAGEMAKER", "distributed_type": "DATA_PARALLEL"},
    "tensor parallel": {"distributed_type": "MULTI_GPU", "parallelism_config": {"parallelism_config_tp_size": 2}},
    "DeepSpeed's own file": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": "d.json"}},
    "an unknown key": {"distributed_type": "MULTI_GPU", "gpus": 4},
    "an unknown type": {"distributed_type": "GPUS"},
}


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_configurations_are_refused_before_anything_starts(monkeypatch, tmp_path, name, suffix):
    """As an option of `rmkit train`, in its processes, and in a recipe; the configuration of the remedy works."""
    content = {"distributed_type": name, "num_processes": 2} | UNSUPPORTED[name]
    if name == "SageMaker":
        content |= {"ec2_instance_type": "x", "iam_role_name": "y", "mixed_precision": "no", "use_cpu": False}
        content |= {"debug": False}
        del content["num_processes"]
    path = tmp_path / f"own.{suffix}"
    path.write_text(json.dumps(content) if suffix == "json" else yaml.safe_dump(content))
    with pytest.raises(RmkitError, match=r"own\.") as refused:
        launch.launch_options(str(path), 2)
    with pytest.raises(RmkitError, match=r"own\."):
        launch.plan(recipe(distributed=str(path)))
    named = re.search(r"--config-file (\S+)`|(\S+\.yaml)\.$", refused.value.remedy)
    assert named is not None
    assert launch.launch_options(named[1] or named[2], 2)
    monkeypatch.setenv("RMKIT_CONFIG_FILE", str(path))
    with pytest.raises(RmkitError, match=r"own\."):
        launch.plan(recipe())


def test_only_the_recipe_decides_to_compile(launched, monkeypatch, tmp_path):
    """Otherwise a run would be compiled, and its record would not say so."""
    path = tmp_path / "own.yaml"
    content = {"distributed_type": "NO", "num_processes": 1}
    path.write_text(yaml.safe_dump(content | {"dynamo_config": {"dynamo_backend": "INDUCTOR"}}))
    with pytest.raises(RmkitError, match=r"own.yaml: dynamo_backend INDUCTOR"):
        launch.plan(recipe(distributed=str(path)))
    path.write_text(yaml.safe_dump(content | {"dynamo_config": {"dynamo_backend": "NO"}}))
    assert launch.plan(recipe(distributed=str(path)))
    for option, refused in (("--dynamo_backend=eager", True), ("--dynamo-backend=no", False)):
        launched(option)
        with pytest.raises(RmkitError, match="dynamo_backend EAGER") if refused else contextlib.nullcontext():
            launch.check_launcher()
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}  # the remedy
    assert training_arguments(recipe(training=compiled))["torch_compile"]


@pytest.mark.parametrize(
    "content", ["distributed_type: NO", "distributed_type: 'NO'\nfsdp_config: {}\ndeepspeed_config: {}"]
)
def test_configurations_that_accelerate_config_writes_for_one_process_are_accepted(tmp_path, content):
    (tmp_path / "own.yaml").write_text(content)
    plan = launch.plan(recipe(distributed=str(tmp_path / "own.yaml")))
    assert (plan.processes, plan.sharding) == (1, "none")


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM"])
def test_variables_of_unsupported_options_are_refused(monkeypatch, run, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(RmkitError, match=f"{variable} is set.*Unset it.*--config-file zero3"):
        run()
    monkeypatch.delenv(variable)
    launch.check_launcher()
    assert launch.launch_options("zero3", 2)


def test_a_configuration_file_of_deepspeed_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds.json")
    with pytest.raises(RmkitError, match=r"a configuration file of DeepSpeed.*--config-file zero3"):
        launch.check_launcher()


def test_tests_see_no_gpu_and_conftest_loads_no_torch_before_it_hides_them():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    command = [sys.executable, "-c", "import conftest, sys; sys.exit('torch' in sys.modules)"]
    assert subprocess.run(command, cwd=REPOSITORY / "tests", check=False).returncode == 0


def test_one_process_never_spreads_over_several_gpus(monkeypatch, run, capsys):
    """transformers would use DataParallel and multiply the batch size by the number of GPUs. A note is printed once."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    seen = []

    class Seen(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            seen.append((args.n_gpu, args.train_batch_size, type(model).__name__, state.max_steps))

    add = Trainer.add_callback
    monkeypatch.setattr(Trainer, "add_callback", lambda self, callback: [add(self, callback), add(self, Seen())])
    run("generative", training={"per_device_train_batch_size": 2})  # 24 pairs in steps of 8
    assert set(seen) == {(1, 2, "Qwen2ForCausalLM", 3)}
    assert capsys.readouterr().out.count("trains on one of 4 GPUs") == 1


@pytest.mark.parametrize(
    ("own", "gpus", "expected"),
    [(None, 0, 4), ("1", 0, None), ("3", 0, None), (None, 1, None)],
    ids=["all cores", "OMP_NUM_THREADS=1", "OMP_NUM_THREADS=3", "a GPU"],
)
def test_rmkit_train_uses_all_cores_of_a_cpu_unless_the_user_sets_a_number(monkeypatch, own, gpus, expected):
    monkeypatch.setattr(launch.psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if own:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    assert launch.cpu_threads(2) == expected
    options = launch.launch_options("cpu", 1)
    assert ("--num_cpu_threads_per_process" in options) == (expected is not None)
    parsed = accelerate_launch.launch_command_parser().parse_args([*options, "rmkit/train.py"])
    assert parsed.num_cpu_threads_per_process == (8 if expected else None)


def test_one_thread_per_process_is_reported_under_accelerate_launch(launched, monkeypatch):
    monkeypatch.setattr(launch.psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch.threads_note() is None  # no launcher
    launched("--num_processes", "1")
    assert "1 of 8 CPU cores" in launch.threads_note()
    for variable, value in (("OMP_NUM_THREADS", "2"), ("RMKIT_NUM_PROCESSES", "1")):
        with monkeypatch.context() as changed:
            changed.setenv(variable, value)
            assert launch.threads_note() is None
    launched("--num_processes", "1", "--num_cpu_threads_per_process", "8")  # the remedy
    assert launch.threads_note() is None


@pytest.mark.parametrize(("precision", "fix"), [("bf16", {"bf16": True}), ("fp16", None), ("fp8", None)])
def test_another_precision_than_the_recipes_is_an_error(monkeypatch, run, precision, fix):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    with pytest.raises(RmkitError, match=f"mixed_precision {precision}, and the recipe does not say so") as error:
        run()
    assert "mixed_precision: no" in error.value.remedy
    assert ("training.bf16=true" in error.value.remedy) == (fix is not None)
    if fix is None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert run(training=fix).record.exists()


def test_another_sharding_than_planned_is_an_error():
    plan = launch.plan(recipe(distributed="cpu_zero3"))
    running = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2))
    with pytest.raises(RmkitError, match="sharding zero3, but the run has zero2"):
        launch.check_sharding(plan, running)
    with pytest.raises(RmkitError, match="has none"):
        launch.check_sharding(plan, SimpleNamespace(deepspeed_plugin=None))
    launch.check_sharding(plan, SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3)))


@pytest.mark.parametrize(
    ("variable", "value", "fix", "message"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", "auto", "gradient_accumulation_steps is 1 .* 2 by the recipe"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "auto", r"gradient_clipping is 1\.0 .* 0\.0 by the recipe"),
        ("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false", "true", "would not gather"),
    ],
)
def test_deepspeed_options_of_the_launcher_must_agree_with_the_recipe(monkeypatch, variable, value, fix, message):
    """Otherwise the difference shows after training, or at transformers' first step."""
    plugin = SimpleNamespace(zero_stage=3)
    arguments = SimpleNamespace(deepspeed_plugin=plugin, gradient_accumulation_steps=2, max_grad_norm=0.0)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "true")
    monkeypatch.setenv(variable, value)
    with pytest.raises(RmkitError, match=message) as error:
        launch.check_deepspeed(arguments)
    assert fix in error.value.remedy
    monkeypatch.setenv(variable, fix)
    launch.check_deepspeed(arguments)


def test_an_unknown_configuration_names_the_known_ones():
    with pytest.raises(RmkitError, match=r"Accelerate configuration not found: zero4.* cpu, cpu_zero3, ddp"):
        launch.plan(recipe(distributed="zero4"))


@pytest.mark.parametrize(("micro", "processes", "steps"), [(4, 1, 8), (4, 8, 1), (1, 1, 32), (2, 4, 4)])
def test_accumulation_keeps_the_batch(micro, processes, steps):
    assert launch.accumulation_steps(32, micro, processes) == steps


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(RmkitError, match="not a multiple of 3 processes"):
        launch.accumulation_steps(32, 4, 3)


def test_deepspeed_gathers_weights_on_saving():
    config = yaml.safe_load((ACCELERATE_CONFIGS / "zero3.yaml").read_text())
    zero = launch.deepspeed_config(config)["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert "offload_param" not in zero
    config["deepspeed_config"]["offload_param_device"] = "cpu"
    assert launch.deepspeed_config(config)["zero_optimization"]["offload_param"] == {"device": "cpu"}


@pytest.fixture(scope="module")
def tiny_recipe(models, tmp_path_factory):
    folder = tiny.write_pairs(tmp_path_factory.mktemp("sharded"), train=16, test=6, prompt=5, response=9)

    def write(reward_model):
        content = {
            "base": {"name": str(models["gpt_neox"])},  # rows are added to a partitioned vocabulary
            "reward_model": reward_model,
            "data": {
                "root": str(folder),
                "train": {"name": "train", "path": "train.jsonl"},
                "evaluation": [{"name": "test", "path": "test.jsonl"}],
            },
            "training": {
                "num_train_epochs": 1,
                "learning_rate": 1e-3,
                "batch_size": 8,
                "per_device_train_batch_size": 2,
            },
            "output_dir": str(folder / "one"),
        }
        path = folder / f"{reward_model['type']}.yaml"
        path.write_text(json.dumps(content))
        return path

    return write


DIST = pytest.mark.dist

FEW_LOGITS_AT_ONCE = """
import sys
from rmkit.processes import skipping_teardown
from rmkit.models import language_model
from rmkit.config.recipe import load_recipe
from rmkit.train import train
language_model._MAX_LOGITS = 3000  # 7 positions of this vocabulary
with skipping_teardown():
    train(load_recipe(sys.argv[1], sys.argv[2:]))
"""

SEVERAL_RUNS = """
import sys
from rmkit.processes import skipping_teardown
from rmkit.config.recipe import load_recipe
from rmkit.train import train
with skipping_teardown():
    for path in sys.argv[1:]:
        train(load_recipe(path))
"""
ONE_WEIGHT_IS_SAVED_WRONG = """
import sys
from rmkit.config.recipe import load_recipe
from rmkit.errors import exit_on_error
from rmkit.train import train
from rmkit.training import saving
save = saving.save
def wrong(directory, model, weights, *rest):
    name = next(name for name in weights if "layers.1." in name and weights[name].dim() == 2)
    save(directory, model, weights | {name: weights[name] * 1.01}, *rest)
saving.save = wrong
with exit_on_error():
    train(load_recipe(sys.argv[1], sys.argv[2:]))
"""


ABORTS_AT_EXIT = """
import atexit, os, sys
from accelerate import DistributedType, PartialState
atexit.register(os.abort)
from rmkit.processes import skipping_teardown
with skipping_teardown():
    PartialState().distributed_type = DistributedType(sys.argv[1])
    atexit.register(print, "tracker closed")
"""


@pytest.mark.parametrize(("distributed_type", "code"), [("DEEPSPEED", 0), ("NO", -signal.SIGABRT)])
def test_a_finished_distributed_run_does_not_fail_at_its_exit(distributed_type, code):
    """The second case is the control: a single process ends as Python ends it."""
    ran = subprocess.run(
        [sys.executable, "-c", ABORTS_AT_EXIT, distributed_type], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (code, "tracker closed\n")


@pytest.fixture
def run_sharded(tmp_path):
    """Run a script in two processes under accelerate_configs/cpu_zero3.yaml, on a port of its own."""

    def start(code, *arguments):
        (tmp_path / "script.py").write_text(code)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE_CONFIGS / "cpu_zero3.yaml")]
        return subprocess.run(
            [sys.executable, *launcher, "--main_process_port", str(port), str(tmp_path / "script.py"), *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return start


@DIST
@pytest.mark.parametrize(
    ("reward_model", "changes"),
    [
        ({"type": "implicit", "beta": 0.1}, []),
        ({"type": "implicit", "beta": 0.1}, ["lora.target_modules=[query_key_value,embed_out]"]),
        ({"type": "generative", "generation_weight": 0.5}, []),
    ],
    ids=["implicit", "implicit_adapter_on_unembedding", "generative_lambda"],
)
def test_processes_with_different_numbers_of_logit_chunks_do_not_hang(
    tiny_recipe, tmp_path, run_sharded, reward_model, changes
):
    """One call of the unembedding per chunk would hang: under ZeRO-3 all processes must make the same calls."""
    path = tiny_recipe(reward_model)
    one = train(load_recipe(path, [f"output_dir={tmp_path / 'one'}", *changes]))
    ran = run_sharded(FEW_LOGITS_AT_ONCE, str(path), f"output_dir={tmp_path / 'two'}", *changes)
    assert ran.returncode == 0, ran.stderr
    two = type(one)(tmp_path / "two")
    assert two.read()["sharding"] == "zero3"
    for state in ("initial", "final"):
        sharded, whole = (pd.read_parquet(run.rewards("test", state)).to_numpy() for run in (two, one))
        np.testing.assert_allclose(sharded, whole, rtol=0, atol=1e-5 * max(1, np.abs(whole).max()))


@pytest.mark.parametrize(
    "reward_model",
    [
        {"type": "implicit", "beta": 0.1},
        pytest.param({"type": "explicit"}, marks=DIST),
        pytest.param({"type": "generative"}, marks=DIST),
    ],
    ids=lambda settings: settings["type"],
)
def test_zero3_on_two_processes_equals_one_process(tiny_recipe, tmp_path, reward_model):
    path = tiny_recipe(reward_model)
    one = train(load_recipe(path, [f"output_dir={tmp_path / 'one'}"]))
    command = [sys.executable, "-m", "rmkit", "train", str(path)]
    changes = [f"output_dir={tmp_path / 'two'}", "distributed=cpu_zero3"]
    ran = subprocess.run(
        [*command, *changes, "--num-processes", "2"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    record = json.loads((tmp_path / "two" / "run.json").read_text()) if ran.returncode == 0 else pytest.fail(ran.stderr)
    assert (record["num_processes"], record["sharding"], record["gradient_accumulation_steps"]) == (2, "zero3", 2)
    for state in ("initial", "final"):
        sharded, whole = (
            pd.read_parquet(type(one)(tmp_path / name).rewards("test", state)).to_numpy() for name in ("two", "one")
        )
        np.testing.assert_allclose(sharded, whole, rtol=0, atol=1e-5 * max(1, np.abs(whole).max()))


@DIST
@pytest.mark.parametrize(("dtype", "bf16"), [("bfloat16", False), ("float32", True)])
def test_bfloat16_under_zero3_reloads_to_its_rewards(tiny_recipe, tmp_path, run_sharded, dtype, bf16):
    """DeepSpeed holds the whole model in one dtype: bfloat16 where the weights or the training ask for it."""
    recipes = []
    for type_name, adapter in itertools.product(("mean", "no_reference", "generative_lambda"), ("full", "lora")):
        content = json.loads(tiny_recipe(tiny.TYPES[type_name]).read_text())
        content["base"]["dtype"], content["training"]["bf16"] = dtype, bf16
        content["output_dir"] = str(tmp_path / f"{type_name}_{adapter}")
        recipes.append(tmp_path / f"{type_name}_{adapter}.json")
        recipes[-1].write_text(json.dumps(content | ({"lora": {"r": 4}} if adapter == "lora" else {})))
    ran = run_sharded(SEVERAL_RUNS, *map(str, recipes))
    assert ran.returncode == 0, ran.stderr
    data = load_preferences("test.jsonl", root=content["data"]["root"])
    for recipe in recipes:
        run = RunDirectory(recipe.with_suffix(""))
        scorer = load_reward_model(str(run.model))
        assert scorer.checkpoint.record.dtype == "bfloat16"
        assert not scorer.checkpoint.record.autocast
        rewards = pd.read_parquet(run.rewards("test"))[["chosen_reward", "rejected_reward"]].to_numpy()
        again = scorer.score_pairs(data, 16)
        assert np.abs(again - rewards).mean() < 2e-2 * np.abs(rewards).mean(), recipe.stem


@DIST
def test_a_wrongly_saved_weight_fails_a_sharded_run(tiny_recipe, tmp_path, run_sharded):
    path = tiny_recipe({"type": "implicit", "beta": 0.1})
    ran = run_sharded(ONE_WEIGHT_IS_SAVED_WRONG, str(path), f"output_dir={tmp_path / 'run'}")
    assert ran.returncode != 0
    assert "is not the one that was trained" in ran.stderr
    assert not (tmp_path / "run" / "run.json").exists()


@DIST
def test_a_sharded_run_resumes(tiny_recipe, tmp_path):
    """Stopped by SIGTERM to its processes, then started again: the uninterrupted run's rewards within 1e-5."""
    path = tiny_recipe({"type": "explicit"})
    saving = ["training.save_strategy=steps", "training.save_steps=1", "training.num_train_epochs=2", "resume=auto"]

    def train_to(name, *more):
        changes = [f"output_dir={tmp_path / name}", "distributed=cpu_zero3", *saving, *more]
        ran = subprocess.run(
            [sys.executable, "-m", "rmkit", "train", str(path), *changes, "--num-processes", "2"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=400,
        )
        return ran

    assert train_to("whole").returncode == 0
    assert train_to("cut").returncode == 0
    # As a kill between the second checkpoint and the third would have left it.
    for step in (3, 4):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"checkpoint-{step}")
    (tmp_path / "cut" / "run.json").unlink()
    resumed = train_to("cut")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming from" in resumed.stdout
    whole, cut = (pd.read_parquet(tmp_path / name / "rewards" / "test.parquet").to_numpy() for name in ("whole", "cut"))
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-5)


@DIST
@pytest.mark.parametrize(
    ("sharding", "changes"), [("zero3", []), ("zero3", ["lora.r=4"]), ("none", [])], ids=["zero3", "zero3_lora", "ddp"]
)
def test_the_best_model_of_two_processes_is_that_of_one(tiny_recipe, tmp_path, sharding, changes):
    """A set with chosen and rejected swapped gets worse in training, so its first evaluation is the best."""
    path = tiny_recipe({"type": "explicit"})
    swapped = "{name: swapped, path: train.jsonl, split: train, columns: {chosen: rejected, rejected: chosen}}"
    evaluation = "{every_steps: 1, save_best: swapped.margin, early_stopping: 2}"
    changes = [f"data.evaluation=[{swapped}]", f"evaluation={evaluation}", "training.num_train_epochs=2", *changes]
    one = train(load_recipe(path, [f"output_dir={tmp_path / 'one'}", *changes]))
    overrides = [str(path), f"output_dir={tmp_path / 'two'}", *changes]
    launchers = {
        "zero3": ["rmkit", "train", *overrides, "distributed=cpu_zero3", "--num-processes", "2"],
        "none": ["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "rmkit/train.py", *overrides],
    }
    ran = subprocess.run(
        [sys.executable, "-m", *launchers[sharding]],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | ({"ACCELERATE_USE_CPU": "true"} if sharding == "none" else {}),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ran.returncode == 0, ran.stderr
    two = type(one)(tmp_path / "two")
    records = [directory.read() for directory in (one, two)]
    assert [record["kept"]["step"] for record in records] == [1, 1]
    assert [record["training"]["steps"] for record in records] == [3, 3]
    assert (records[1]["num_processes"], records[1]["sharding"]) == (2, sharding)
    for record in records:  # the weights that were kept and put back give the scores that they had
        kept, final = record["history"][1]["sets"]["swapped"], record["metrics"]["swapped"]
        assert final == pytest.approx(kept, abs=1e-6)
    first, second = (pd.read_parquet(directory.rewards("swapped")).to_numpy() for directory in (one, two))
    np.testing.assert_allclose(second, first, rtol=0, atol=1e-5)


@DIST
def test_scoring_on_two_processes_writes_the_file_that_one_writes(tiny_recipe, tmp_path):
    one = train(load_recipe(tiny_recipe({"type": "implicit", "beta": 0.1}), [f"output_dir={tmp_path / 'run'}"]))
    data = json.loads((tiny_recipe({"type": "implicit", "beta": 0.1})).read_text())["data"]["root"]
    command = ["score", str(one.model), f"{data}/test.jsonl", "--batch-size", "2", "--output"]
    launchers = {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"],
    }
    for name, launcher in launchers.items():
        ran = subprocess.run(
            [*launcher, "-m", "rmkit", *command, str(tmp_path / f"{name}.parquet")],
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
    first, second = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in launchers)
    assert first.equals(second)
