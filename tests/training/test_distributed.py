"""What is asked of the launcher against what runs; ZeRO-3 on two CPU processes."""

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
from conftest import REPOSITORY
from transformers import Trainer, TrainerCallback

from rmkit import RmkitError, load_reward_model
from rmkit.config.recipe import Recipe, load_recipe, training_arguments
from rmkit.data.preferences import load_preferences
from rmkit.runs.directory import RunDirectory
from rmkit.train import train
from rmkit.training import launch

CONFIGS = sorted(launch.CONFIGS.glob("*.yaml"))


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
    for name in ("RMKIT_CONFIG_FILE", "RMKIT_NUM_PROCESSES", "ACCELERATE_USE_DEEPSPEED", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launch, "launcher_command", lambda: [])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_configuration_has_its_launch_line_and_accelerate_reads_it(path):
    from accelerate.commands.config.config_args import load_config_from_file

    text = path.read_text()
    line = next(line for line in text.splitlines() if "accelerate launch" in line)
    assert f"--config_file accelerate_configs/{path.name} " in line
    assert "rmkit/train.py recipes/" in line
    assert (REPOSITORY / line.split()[-1]).exists()
    assert load_config_from_file(str(path)).num_processes == yaml.safe_load(text)["num_processes"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_configuration_launches_what_it_says(path, monkeypatch):
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


def test_a_recipe_alone_wants_all_visible_gpus(monkeypatch):
    monkeypatch.setattr(launch, "visible_gpus", lambda: 8)
    plan = launch.plan(recipe(distributed="zero3"))
    assert (plan.processes, plan.sharding) == (8, "zero3")
    assert launch.plan(recipe(distributed="single_gpu")).processes == 1
    with pytest.raises(RmkitError, match="asks for 8 processes, but 1 runs"):
        launch.check_processes(plan, 1)
    launch.check_processes(plan, 8)
    assert launch.plan(recipe()) is None


def test_a_config_file_of_the_launcher_goes_before_the_recipe(monkeypatch):
    path = str(launch.CONFIGS / "zero2.yaml")
    command = ["python", "accelerate", "launch", "--config_file", path, "--num_processes=3", "rmkit/train.py"]
    monkeypatch.setattr(launch, "launcher_command", lambda: command)
    plan = launch.plan(recipe(distributed="zero3"))
    assert (plan.name, plan.processes, plan.sharding) == (path, 3, "zero2")


@pytest.mark.parametrize("spelling", [["--num_processes", "3"], ["--num-processes", "3"], ["--num-processes=3"]])
def test_processes_without_a_configuration_are_counted_too(monkeypatch, spelling):
    monkeypatch.setattr(launch, "launcher_command", lambda: ["accelerate", "launch", *spelling, "rmkit/train.py"])
    plan = launch.plan(recipe())
    assert (plan.processes, plan.sharding) == (3, None)
    with pytest.raises(RmkitError, match=r"asks for 3 processes, but 1 runs.*rmkit train RECIPE --num-processes 3"):
        launch.check_processes(plan, 1)


@pytest.mark.parametrize("name", [None, "single_gpu", "zero3"])
@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_rmkit_train_and_its_processes_count_alike(monkeypatch, name, gpus):
    """One process a visible GPU; one for a configuration of one; without GPUs what the configuration says."""
    monkeypatch.setattr(launch, "visible_gpus", lambda: gpus)
    count = launch.process_count(name)
    assert count == {None: gpus or 1, "single_gpu": 1, "zero3": gpus or 4}[name]
    options = launch.launch_options(name, count)
    assert options[options.index("--num_processes") + 1] == str(count)
    assert ("--multi_gpu" in options) == (name is None and count > 1)
    monkeypatch.setattr(launch.os, "environ", launch.launcher_env(name, count))
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
def test_rmkit_train_alone_ignores_what_accelerate_config_left(monkeypatch, tmp_path, content):

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


def test_several_machines_are_launched_by_hand(monkeypatch):
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
    "a file of DeepSpeed's": {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": "d.json"}},
    "an unknown key": {"distributed_type": "MULTI_GPU", "gpus": 4},
    "an unknown type": {"distributed_type": "GPUS"},
}


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_rmkit_does_not_do_is_refused_before_anything_starts(monkeypatch, tmp_path, name, suffix):
    """By `rmkit train`, by `accelerate launch` and in a recipe; what the remedy names is taken."""
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
    monkeypatch.setattr(launch, "launcher_command", lambda: ["accelerate", "launch", "--config-file", str(path)])
    with pytest.raises(RmkitError, match=r"own\."):
        launch.plan(recipe())


def test_compiling_is_the_recipes_to_say(monkeypatch, tmp_path):
    """Else a run would be compiled, and its record would not say so."""
    path = tmp_path / "own.yaml"
    content = {"distributed_type": "NO", "num_processes": 1}
    path.write_text(yaml.safe_dump(content | {"dynamo_config": {"dynamo_backend": "INDUCTOR"}}))
    with pytest.raises(RmkitError, match=r"own.yaml: dynamo_backend INDUCTOR"):
        launch.plan(recipe(distributed=str(path)))
    path.write_text(yaml.safe_dump(content | {"dynamo_config": {"dynamo_backend": "NO"}}))
    assert launch.plan(recipe(distributed=str(path)))
    for option, refused in (("--dynamo_backend=eager", True), ("--dynamo-backend=no", False)):
        monkeypatch.setattr(launch, "launcher_command", lambda option=option: ["accelerate", "launch", option])
        with pytest.raises(RmkitError, match="dynamo_backend eager") if refused else contextlib.nullcontext():
            launch.plan(recipe())
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}  # the remedy
    assert training_arguments(recipe(training=compiled))["torch_compile"]


@pytest.mark.parametrize(
    "content", ["distributed_type: NO", "distributed_type: 'NO'\nfsdp_config: {}\ndeepspeed_config: {}"]
)
def test_what_accelerate_config_writes_for_one_process_is_taken(tmp_path, content):
    (tmp_path / "own.yaml").write_text(content)
    plan = launch.plan(recipe(distributed=str(tmp_path / "own.yaml")))
    assert (plan.processes, plan.sharding) == (1, "none")


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM"])
def test_variables_of_what_rmkit_does_not_do_are_refused(monkeypatch, run, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(RmkitError, match=f"{variable} is set.*Unset it.*--config-file zero3"):
        run()
    monkeypatch.delenv(variable)
    launch.check_launcher()
    assert launch.launch_options("zero3", 2)


def test_deepspeed_by_options_of_the_launcher_is_known(monkeypatch):
    """`accelerate launch --use_deepspeed --zero_stage 3`, or its default configuration: the recipe names nothing."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    for command, processes in (["accelerate", "launch"], None), (["accelerate", "launch", "--num_processes=2"], 2):
        monkeypatch.setattr(launch, "launcher_command", lambda command=command: command)
        plan = launch.plan(recipe())
        assert plan.uses_deepspeed
        assert (plan.processes, plan.sharding) == (processes, "zero3")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "ds.json")
    with pytest.raises(RmkitError, match=r"a file of DeepSpeed's own.*--config-file zero3"):
        launch.check_launcher()


def test_tests_see_no_gpu_and_conftest_loads_no_torch_before_it_hides_them():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    command = [sys.executable, "-c", "import conftest, sys; sys.exit('torch' in sys.modules)"]
    assert subprocess.run(command, cwd=REPOSITORY / "tests", check=False).returncode == 0


def test_one_process_never_spreads_over_several_gpus(monkeypatch, run, capsys):
    """transformers would wrap the model in DataParallel, and multiply the batch by the GPUs. Said once."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    seen = []

    class Seen(TrainerCallback):
        def on_step_end(self, args, state, control, model, **_):
            seen.append((args.n_gpu, args.train_batch_size, type(model).__name__, state.max_steps))

    add = Trainer.add_callback
    monkeypatch.setattr(Trainer, "add_callback", lambda self, each: [add(self, each), add(self, Seen())])
    run("generative", training={"per_device_train_batch_size": 2})  # 24 pairs in steps of 8
    assert set(seen) == {(1, 2, "Qwen2ForCausalLM", 3)}
    assert capsys.readouterr().out.count("trains on one of 4 GPUs") == 1


ACCELERATE = ["python", "/usr/bin/accelerate", "launch", "rmkit/train.py", "a.yaml"]


@pytest.mark.parametrize(
    ("command", "launchers", "mine", "expected"),
    [
        (ACCELERATE, {}, "1", 4),  # what accelerate gives where nobody has said anything
        (["python", "/usr/bin/rmkit", "train", "a.yaml"], {}, "1", 4),
        (["python", "-m", "rmkit", "train", "a.yaml"], {}, "1", 4),
        (ACCELERATE, {"OMP_NUM_THREADS": "1"}, "1", None),  # the user has said so
        ([*ACCELERATE[:3], "--num_cpu_threads_per_process", "1", *ACCELERATE[3:]], {}, "1", None),
        (ACCELERATE, {}, "3", None),
        (["python", "-m", "pytest"], {}, "1", None),  # another program's wish
        (["bash"], {}, None, None),  # torch takes all cores by itself
    ],
)
def test_a_cpu_is_used_whole_unless_somebody_says_otherwise(monkeypatch, command, launchers, mine, expected):
    parent = SimpleNamespace(cmdline=lambda: command, environ=lambda: launchers)
    monkeypatch.setattr(launch.psutil, "Process", lambda *_: parent)
    monkeypatch.setattr(launch.psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setattr(launch, "visible_gpus", lambda: 0)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if mine:
        monkeypatch.setenv("OMP_NUM_THREADS", mine)
    assert launch.threads(2) == expected
    monkeypatch.setattr(launch, "visible_gpus", lambda: 1)
    assert launch.threads(2) is None


@pytest.mark.parametrize(("asked", "mended"), [("bf16", {"bf16": True}), ("fp16", None), ("fp8", None)])
def test_another_precision_than_the_recipes_is_an_error(monkeypatch, run, asked, mended):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    with pytest.raises(RmkitError, match=f"mixed_precision {asked}, and the recipe does not say so") as error:
        run()
    assert "mixed_precision: no" in error.value.remedy
    assert ("training.bf16=true" in error.value.remedy) == (mended is not None)
    if mended is None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert run(training=mended).record.exists()


def test_another_sharding_than_asked_for_is_an_error():
    plan = launch.plan(recipe(distributed="cpu_zero3"))
    running = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=2))
    with pytest.raises(RmkitError, match="sharding zero3, but the run has zero2"):
        launch.check_sharding(plan, running)
    with pytest.raises(RmkitError, match="has none"):
        launch.check_sharding(plan, SimpleNamespace(deepspeed_plugin=None))
    launch.check_sharding(plan, SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3)))


@pytest.mark.parametrize(
    ("variable", "value", "mended", "said"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", "auto", "gradient_accumulation_steps is 1 .* 2 by the recipe"),
        ("ACCELERATE_GRADIENT_CLIPPING", "1.0", "auto", r"gradient_clipping is 1\.0 .* 0\.0 by the recipe"),
        ("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false", "true", "not told to gather"),
    ],
)
def test_what_the_launcher_tells_deepspeed_is_what_the_recipe_says(monkeypatch, variable, value, mended, said):
    """Found after training, or by transformers at its first step, otherwise."""
    plugin = SimpleNamespace(zero_stage=3)
    arguments = SimpleNamespace(deepspeed_plugin=plugin, gradient_accumulation_steps=2, max_grad_norm=0.0)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "true")
    monkeypatch.setenv(variable, value)
    with pytest.raises(RmkitError, match=said) as error:
        launch.check_deepspeed(arguments)
    assert mended in error.value.remedy
    monkeypatch.setenv(variable, mended)
    launch.check_deepspeed(arguments)


def test_an_unknown_configuration_names_the_known_ones():
    with pytest.raises(RmkitError, match="neither a file nor one of cpu, cpu_zero3, ddp"):
        launch.plan(recipe(distributed="zero4"))


@pytest.mark.parametrize(("micro", "processes", "steps"), [(4, 1, 8), (4, 8, 1), (1, 1, 32), (2, 4, 4)])
def test_accumulation_keeps_the_batch(micro, processes, steps):
    assert launch.accumulation_steps(32, micro, processes) == steps


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(RmkitError, match="not a multiple of 3 processes"):
        launch.accumulation_steps(32, 4, 3)


def test_deepspeed_gathers_weights_on_saving():
    config = yaml.safe_load((launch.CONFIGS / "zero3.yaml").read_text())
    made = launch.deepspeed_config(config)
    assert made["zero_optimization"]["stage"] == 3
    assert made["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert "offload_param" not in made["zero_optimization"]
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
language_model._LOGITS_AT_ONCE = 3000  # 7 positions of this vocabulary
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
import rmkit.train as train
from rmkit.errors import reported
from rmkit.config.recipe import load_recipe
save = train.save
def wrong(directory, model, weights, *rest):
    name = next(name for name in weights if "layers.1." in name and weights[name].dim() == 2)
    save(directory, model, weights | {name: weights[name] * 1.01}, *rest)
train.save = wrong
with reported():
    train.train(load_recipe(sys.argv[1], sys.argv[2:]))
"""


ABORTS_AT_ITS_END = """
import atexit, os, sys
from accelerate import DistributedType, PartialState
atexit.register(os.abort)
from rmkit.processes import skipping_teardown
with skipping_teardown():
    PartialState().distributed_type = DistributedType(sys.argv[1])
    atexit.register(print, "tracker closed")
"""


@pytest.mark.parametrize(("kind", "code"), [("DEEPSPEED", 0), ("NO", -signal.SIGABRT)])
def test_a_distributed_run_that_is_done_does_not_fail_at_its_exit(kind, code):
    """The second case is the control: a process alone ends as Python ends it."""
    ran = subprocess.run([sys.executable, "-c", ABORTS_AT_ITS_END, kind], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (code, "tracker closed\n")


@pytest.fixture
def launched(tmp_path):
    """Run a script in two processes under accelerate_configs/cpu_zero3.yaml, on a port of its own."""

    def start(code, *arguments):
        (tmp_path / "script.py").write_text(code)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(launch.CONFIGS / "cpu_zero3.yaml")]
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
def test_processes_whose_tokens_take_different_numbers_of_chunks_go_through(
    tiny_recipe, tmp_path, launched, reward_model, changes
):
    """A call of the unembedding a chunk would hang here: under ZeRO-3 all processes must make the same calls."""
    path = tiny_recipe(reward_model)
    one = train(load_recipe(path, [f"output_dir={tmp_path / 'one'}", *changes]))
    ran = launched(FEW_LOGITS_AT_ONCE, str(path), f"output_dir={tmp_path / 'two'}", *changes)
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
def test_bfloat16_under_zero3_reloads_to_its_rewards(tiny_recipe, tmp_path, launched, dtype, bf16):
    """DeepSpeed holds the whole model in one dtype: bfloat16 where the weights or the training ask for it."""
    recipes = []
    for kind, adapter in itertools.product(("mean", "no_reference", "generative_lambda"), ("full", "lora")):
        content = json.loads(tiny_recipe(tiny.TYPES[kind]).read_text())
        content["base"]["dtype"], content["training"]["bf16"] = dtype, bf16
        content["output_dir"] = str(tmp_path / f"{kind}_{adapter}")
        recipes.append(tmp_path / f"{kind}_{adapter}.json")
        recipes[-1].write_text(json.dumps(content | ({"lora": {"r": 4}} if adapter == "lora" else {})))
    ran = launched(SEVERAL_RUNS, *map(str, recipes))
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
def test_a_weight_that_is_saved_wrong_fails_a_sharded_run(tiny_recipe, tmp_path, launched):
    path = tiny_recipe({"type": "implicit", "beta": 0.1})
    ran = launched(ONE_WEIGHT_IS_SAVED_WRONG, str(path), f"output_dir={tmp_path / 'run'}")
    assert ran.returncode != 0
    assert "is not the one that was trained" in ran.stderr
    assert not (tmp_path / "run" / "run.json").exists()


@DIST
def test_a_sharded_run_resumes(tiny_recipe, tmp_path):
    """Stopped by SIGTERM to its processes, then started again: the uninterrupted run's rewards within 1e-5."""
    path = tiny_recipe({"type": "explicit"})
    saving = ["training.save_strategy=steps", "training.save_steps=1", "training.num_train_epochs=2", "resume=auto"]

    def launched(name, *more):
        changes = [f"output_dir={tmp_path / name}", "distributed=cpu_zero3", *saving, *more]
        ran = subprocess.run(
            [sys.executable, "-m", "rmkit", "train", str(path), *changes, "--num-processes", "2"],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=400,
        )
        return ran

    assert launched("whole").returncode == 0
    assert launched("cut").returncode == 0
    # As a kill between the second checkpoint and the third would have left it.
    for step in (3, 4):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"checkpoint-{step}")
    (tmp_path / "cut" / "run.json").unlink()
    resumed = launched("cut")
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on from" in resumed.stdout
    whole, cut = (pd.read_parquet(tmp_path / name / "rewards" / "test.parquet").to_numpy() for name in ("whole", "cut"))
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-5)


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
