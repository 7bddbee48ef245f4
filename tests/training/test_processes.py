"""Several processes: an error is printed once, no process hangs, and every printed remedy works."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import tiny
from conftest import REPOSITORY
from torch.distributed import TCPStore

from rmkit import RmkitError
from rmkit.commands.train import _exit_code

FAULTS = {
    # code of the faulty processes, code of the others, exit code, message
    "on all": ("raise RmkitError('No such set.', 'Bring it.')", "", 2, "error: No such set.\n  fix: Bring it.\n"),
    "a bug on one, the other hangs": ("1 / 0", "hang()", 1, None),
    "a collective is cut after the error": (
        "raise RmkitError('A full disk.', 'Make room.')",
        "raise RuntimeError('Connection closed by peer [::1]')",
        2,
        "error: A full disk.\n  fix: Make room.\n",
    ),
}
PROCESS = """
import os, threading
from rmkit.errors import RmkitError, exit_on_error
def hang():
    threading.Event().wait()
with exit_on_error():
    if os.environ["RANK"] in os.environ["FAULTY"]:
        {fault}
    {other}
"""


@pytest.mark.parametrize("name", FAULTS)
def test_processes_of_a_launch_report_an_error_once_and_end_together(name):
    """A launcher's store and two processes, without a process group. The timeout only ends a failing test."""
    fault, other, code, message = FAULTS[name]
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launched = {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "FAULTY": "01" if other == "" else "1"}
    script = PROCESS.format(fault=fault, other=other)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | launched | address | {"RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [code, code]
    assert sum(bool(error) for error in errors) == 1, errors
    if message is not None:
        assert "".join(errors).lstrip() == message
    assert "".join(errors).count("Traceback") == (name == "a bug on one, the other hangs")


def test_a_single_process_raises_bugs_unchanged():
    script = PROCESS.format(fault="1 / 0", other="")
    ran = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"RANK": "0", "FAULTY": "0"}, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert ran.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_rmkit_train_passes_on_the_exit_code_of_its_processes():
    assert _exit_code([2, 2]) == 2
    assert _exit_code([-signal.SIGTERM, 75]) == 75
    assert _exit_code([-signal.SIGINT, -signal.SIGTERM]) == 130
    with pytest.raises(RmkitError, match="SIGKILL ended a process"):
        _exit_code([-signal.SIGTERM, -signal.SIGKILL])
    with pytest.raises(RmkitError, match="SIGTERM ended a process"):
        _exit_code([-signal.SIGTERM])


# --- real launches -------------------------------------------------------------------------------------------------

ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
RMKIT = [sys.executable, "-m", "rmkit"]
SCRIPT = str(REPOSITORY / "rmkit" / "train.py")
CPU, ZERO3 = (str(REPOSITORY / "accelerate_configs" / name) for name in ("cpu.yaml", "cpu_zero3.yaml"))
PLAIN = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
NOISE = re.compile(r"real_accelerator|find_unused_parameters|^\s*$|\d+%\||^\[transformers\]")
DIST = pytest.mark.dist


@pytest.fixture(scope="module")
def recipe(models, tmp_path_factory):
    """A recipe for a tiny model."""
    folder = tiny.write_pairs(tmp_path_factory.mktemp("processes"), train=16, test=6, prompt=5, response=9)
    content = {
        "base": {"name": str(models["qwen2"])},
        "reward_model": {"type": "explicit"},
        "data": {"root": str(folder), "train": {"name": "train", "path": "train.jsonl"}},
        "training": {"num_train_epochs": 1, "batch_size": 8, "per_device_train_batch_size": 2},
        "output_dir": str(folder / "run"),
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content))
    return path


def environment(tmp_path, rank=None, fault=""):
    """The environment of a launch, with code for one process that runs when its interpreter starts."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"if os.environ.get('RANK', '0') == '{rank}' and any(part.endswith('train.py') for part in sys.orig_argv):\n"
        f"    exec({fault!r})\n"
    )
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(tmp_path)])}


def launch(env, *command):
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=400)


def errors_of(ran):
    """The lines on stderr other than progress bars and notes of libraries."""
    return [line for line in re.split(r"[\r\n]+", ran.stderr) if not NOISE.search(line)]


PATCH = """
import os, signal
import rmkit.training.preparation, rmkit.training.pair_trainer
from rmkit.errors import RmkitError
def fail(*_, **__):
    {body}
{where} = fail
"""
WAITING = """
import os, signal
from rmkit.training.pair_trainer import PairTrainerMixin
compute_loss = PairTrainerMixin.compute_loss
def wait_once(*arguments, **options):
    PairTrainerMixin.compute_loss = compute_loss
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    print("in training", flush=True)
    os.read(reading, 1)
    return compute_loss(*arguments, **options)
PairTrainerMixin.compute_loss = wait_once
"""
LOADING, TRAINING = "rmkit.training.preparation.load_data", "rmkit.training.pair_trainer.PairTrainerMixin.compute_loss"
LACKS = "raise RmkitError('This disk lacks the set.', 'Bring it.')"


@DIST
@pytest.mark.parametrize(
    ("overrides", "rank", "where", "body", "code", "expected"),
    [
        (["data.train.path=missing.jsonl"], None, LOADING, "", 2, ["error: .*missing.jsonl does not exist", "  fix: "]),
        (["base.name=/no/model"], None, LOADING, "", 2, ["error: ", "  fix: "]),
        ([], 0, LOADING, LACKS, 2, ["error: This disk lacks the set", "  fix: Bring it"]),
        ([], 1, LOADING, LACKS, 2, ["error: This disk lacks the set", "  fix: Bring it"]),
        ([], 1, TRAINING, LACKS, 2, ["error: This disk lacks the set", "  fix: Bring it"]),
        ([], 0, TRAINING, "1 / 0", 1, ["Traceback", "ZeroDivisionError"]),
        ([], 1, TRAINING, "os.kill(os.getpid(), signal.SIGKILL)", 2, ["error: SIGKILL ended a process", "  fix: "]),
    ],
    ids=["set", "base", "set on main", "set on the other", "in training", "bug", "killed"],
)
def test_rmkit_train_prints_an_error_once(recipe, tmp_path, overrides, rank, where, body, code, expected):
    env = environment(tmp_path, rank, PATCH.format(where=where, body=body))
    ran = launch(
        env, *RMKIT, "train", str(recipe), *overrides, f"output_dir={tmp_path / 'run'}", "--num-processes", "2"
    )
    lines = errors_of(ran)
    assert ran.returncode == code, ran.stderr
    if code == 1:
        assert lines[0].startswith(expected[0])
        assert lines[-1].startswith(expected[-1])
        assert ran.stderr.count("Traceback") == 1
    else:
        assert len(lines) == 2, ran.stderr
        assert all(re.match(pattern, line) for pattern, line in zip(expected, lines, strict=True)), ran.stderr


@DIST
@pytest.mark.parametrize("options", [["--config_file", ZERO3], ["--multi_gpu", "--num_processes", "2", *PLAIN]])
def test_accelerate_adds_no_more_than_its_own_summary(recipe, tmp_path, options):
    port = ["--main_process_port", "0"]
    command = [*ACCELERATE, *options, *port, SCRIPT, str(recipe), "data.train.path=missing.jsonl"]
    ran = launch(environment(tmp_path), *command, f"output_dir={tmp_path / 'run'}")
    assert ran.returncode == 1
    lines = errors_of(ran)
    assert lines[0].endswith("missing.jsonl does not exist.")
    assert len([line for line in lines if "missing.jsonl does not exist" in line]) == 1
    assert ran.stderr.count("Traceback") == 1  # the launcher's
    assert len(lines) < 45


@DIST
@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_reach_the_processes_once(recipe, tmp_path, number, code, processes):
    """SIGTERM leaves a checkpoint; Ctrl-C prints one line."""
    env = environment(tmp_path, 0, WAITING)
    saving = ["training.save_strategy=steps", "training.save_steps=100", f"output_dir={tmp_path / 'run'}"]
    command = [*RMKIT, "train", str(recipe), *saving, "--num-processes", processes]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            assert any("in training" in line for line in process.stdout)
            process.send_signal(number)
            process.communicate(timeout=120)
        finally:
            process.kill()  # its processes end when they miss it
    assert process.returncode == code
    lines = (tmp_path / "log").read_text().splitlines()
    assert len([line for line in lines if line.startswith("interrupted")]) == (number == signal.SIGINT)
    assert not any("Traceback" in line for line in lines)
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-1" / "complete.json").exists() == (number == signal.SIGTERM)


@DIST
@pytest.mark.parametrize(
    ("command", "distributed", "processes"),
    [
        ([*ACCELERATE, "--config_file", CPU, "--num_processes", "2"], None, 2),
        ([*ACCELERATE, "--num-processes=2", *PLAIN], None, 2),
        ([sys.executable], "cpu_zero3", 2),
        ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], "cpu", 1),
    ],
    ids=["a config of one process", "no config", "plain python", "too many"],
)
def test_the_remedy_for_another_number_of_processes_works(recipe, tmp_path, command, distributed, processes):
    overrides = [str(recipe), f"output_dir={tmp_path / 'run'}"]
    overrides += [] if distributed is None else [f"distributed={distributed}"]
    ran = launch(environment(tmp_path), *command, SCRIPT, *overrides)
    remedy = re.match(r"  fix: Use `rmkit (train RECIPE.*?)`", errors_of(ran)[1])
    assert remedy is not None, ran.stderr
    words = {"RECIPE": overrides, "N": [str(processes)]}
    arguments = [part for word in shlex.split(remedy[1]) for part in words.get(word, [word])]
    ran = launch(environment(tmp_path), *RMKIT, *arguments)
    assert ran.returncode == 0, ran.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_processes"] == processes


@DIST
@pytest.mark.parametrize("options", [[], ["--config-file", "cpu"], ["--config-file", "single_gpu"]])
def test_rmkit_train_starts_the_number_of_processes_of_its_option(recipe, tmp_path, options):
    command = [*RMKIT, "train", str(recipe), f"output_dir={tmp_path / 'run'}", *options, "--num-processes", "2"]
    ran = launch(environment(tmp_path), *command)
    assert ran.returncode == 0, ran.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["num_processes"] == 2
