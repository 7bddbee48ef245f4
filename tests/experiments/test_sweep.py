"""Sweeps: grids, what is kept, replaced and refused, kills at any point, launchers, and the shipped grids."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
import typer
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from rmkit import RmkitError
from rmkit.commands.sweep import sweep as command
from rmkit.config.recipe import load_recipe
from rmkit.config.resources import SUITES, SWEEPS
from rmkit.experiments import launchers
from rmkit.experiments.launchers import ClusterLauncher, LocalLauncher, Task, job_file, split_gpus
from rmkit.experiments.sweep import expand, last_lines, load_sweep, run_sweep, state

STAND_IN = Path(__file__).parents[1] / "stand_in.py"
BASE = {
    "base": {"name": "a/model"},
    "reward_model": {"type": "explicit"},
    "data": {"train": {"name": "train", "path": "train.jsonl"}},
    "output_dir": "unused",
}
GRID = {
    "base": "base.yaml",
    "axes": {
        "reward_model": [
            {"name": "exrm", "reward_model": {"type": "explicit"}},
            {"name": "imrm", "reward_model": {"type": "implicit", "beta": 0.05}, "base.dtype": "bfloat16"},
        ],
        "training.seed": [0, 1],
    },
}
POINTS = ["exrm_seed0", "exrm_seed1", "imrm_seed0", "imrm_seed1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a grid; tests/stand_in.py runs its points."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STAND_IN_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # subprocesses import this rmkit
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(Task, "command", property(lambda self: [sys.executable, str(STAND_IN), str(self.recipe)]))
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    write_grid()
    return tmp_path


def write_grid(**changes):
    Path("grid.yaml").write_text(yaml.safe_dump(GRID | changes, sort_keys=False))


def swept(launcher=None, output="out", **options):
    """Outcomes by point."""
    points = expand("grid.yaml", output=Path(output), **options)
    return {each.point.name: each for each in run_sweep(points, Path(output), launcher or LocalLauncher())}


def states_of(outcomes):
    return {name: outcome.state for name, outcome in outcomes.items()}


def calls():
    return [line.split() for line in Path("calls").read_text().splitlines()] if Path("calls").exists() else []


def results(output="out"):
    """Every file of the run directories and its content."""
    return {
        str(file.relative_to(output)): file.read_text().replace(output, "out")
        for name in POINTS
        for file in sorted(Path(output, name).rglob("*"))
        if file.is_file()
    }


# --- grids ---------------------------------------------------------------------------------------------------------


def test_every_point_is_a_recipe_and_the_first_axis_varies_slowest(folder):
    points = expand("grid.yaml", ["training.learning_rate=5e-7"], Path("out"))
    assert [point.name for point in points] == POINTS
    last = points[-1].recipe
    assert (last.reward_model.beta, last.base.dtype, last.training) == (
        0.05,
        "bfloat16",
        {"seed": 1, "learning_rate": 5e-7},
    )
    assert last.base.name == "a/model"
    assert last.output_dir == Path("out/imrm_seed1")
    assert points[0].recipe.base.dtype == "float32"


def test_changes_only_and_exclude(folder):
    write_grid(
        changes={"data.max_length": 7},
        only=[{"reward_model": "imrm"}, {"training.seed": 0}],
        exclude=[{"reward_model": "imrm", "training.seed": [1, 0]}],
    )
    (point,) = expand("grid.yaml")
    assert (point.name, point.recipe.data.max_length) == ("exrm_seed0", 7)
    assert point.recipe.output_dir == Path("runs/grid/exrm_seed0")
    write_grid()
    assert [each.name for each in expand("grid.yaml", only={"training.seed": 1})] == ["exrm_seed1", "imrm_seed1"]


def test_names_of_values(folder):
    write_grid(
        axes={"training.learning_rate": [5e-7, 0.1], "base.name": ["org/model", "x y"], "data.max_length": [None, 3]}
    )
    names = [point.name for point in expand("grid.yaml")]
    assert names[0] == "learning_rate5e-07_nameorg_model_max_lengthnull"
    assert names[-1] == "learning_rate0.1_namex_y_max_length3"


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"axis": {}}, [], "axis is not a known key. Did you mean axes"),
        ({"axes": {}}, [], "axes"),
        ({"axes": {"training.seed": []}}, [], "axes.training.seed"),
        ({"axes": {"training.seed": [1, 1]}}, [], "the axis training.seed has two points named seed1"),
        ({"axes": {"model": [{"base.name": "x"}]}}, [], "name is missing"),
        ({"axes": {"training.sede": [1]}}, [], "training.sede is not a field of TrainingArguments. Did you mean seed"),
        ({"axes": {"base.dtype": ["float16"]}}, [], "point dtypefloat16: .*base.dtype"),
        ({"axes": {"base.name": ["a/b", "a_b"]}}, [], "the axis base.name has two points named namea_b"),
        ({"axes": {"x": [{"name": "logs", "training.seed": 1}]}}, [], "logs is a reserved name"),
        ({"exclude": [{"seed": 0}]}, [], "unknown axis seed; the axes are reward_model, training.seed"),
        ({"only": [{"training.seed": 5}]}, [], "5 is not on the axis training.seed: 0, 1"),
        ({"exclude": [{"training.seed": [0, 1]}]}, [], "no points are left"),
        ({"base": "nowhere.yaml"}, [], "Recipe not found: nowhere.yaml"),
        ({}, ["training.seed=3"], "exrm_seed0 and exrm_seed1 are the same run"),
        ({}, ["hub.push=end", "hub.repo_id=us/one"], "exrm_seed0 and exrm_seed1 would both be pushed to us/one"),
        ({}, ["output_dir=x"], "Set their folder with --output"),
    ],
)
def test_errors_name_the_mistake(folder, changes, overrides, message):
    write_grid(**changes)
    with pytest.raises(RmkitError, match=message):
        expand("grid.yaml", overrides)


def test_an_unknown_sweep_names_the_shipped_ones():
    with pytest.raises(RmkitError, match="general_chat, hamiltonian, hyperparameters, math, persona, tiny_quickstart"):
        load_sweep("general_chad")


# --- running -------------------------------------------------------------------------------------------------------


def test_a_failed_point_does_not_stop_the_others_and_is_retried_alone(folder, monkeypatch):
    monkeypatch.setenv("STAND_IN", json.dumps({"exrm_seed1": "fail"}))
    outcomes = swept()
    assert states_of(outcomes) == dict.fromkeys(POINTS, "finished") | {"exrm_seed1": "failed"}
    assert last_lines(outcomes["exrm_seed1"].log) == ["error: the point [b]fails[/b]", "  fix: mend it"]
    monkeypatch.setenv("STAND_IN", "{}")
    assert states_of(swept()) == dict.fromkeys(POINTS, "kept") | {"exrm_seed1": "finished"}
    assert Counter(name for name, *_ in calls()) == Counter([*POINTS, "exrm_seed1"])


def test_the_recipe_that_runs_is_that_of_the_point(folder):
    swept()
    for point in expand("grid.yaml", output=Path("out")):
        assert load_recipe(Path("out/recipes", f"{point.name}.yaml")) == point.recipe
        assert state(point) == "finished"


def test_foreign_directories_are_refused(folder):
    swept()
    before = results()
    with pytest.raises(RmkitError, match=r"another recipe: training.learning_rate is None there, 1e-07 in this sweep"):
        swept(overrides=["training.learning_rate=1e-7"])
    Path("out/exrm_seed0/run.json").unlink()  # unfinished, and still of another recipe
    with pytest.raises(RmkitError, match="out/exrm_seed0 holds a run of another recipe"):
        swept(overrides=["data.max_length=5"])
    Path("out/exrm_seed1/run.json").write_text('{"format": 99}')
    with pytest.raises(RmkitError, match="format 99"):
        swept()
    Path("out/exrm_seed1/run.json").write_text(before["exrm_seed1/run.json"])
    for file in Path("out/imrm_seed0").iterdir():
        if file.is_file():
            file.rename(file.with_name(f"my_{file.name}"))
    with pytest.raises(RmkitError, match=r"holds .* but no recipe.yaml"):
        swept()
    Path("elsewhere").mkdir()
    Path("elsewhere/exrm_seed0").write_text("a file")
    with pytest.raises(RmkitError, match="is a file"):
        swept(output="elsewhere")
    assert len(calls()) == len(POINTS)


def test_a_moved_sweep_is_still_finished(folder):
    swept()
    Path("out").rename("moved")
    assert set(states_of(swept(output=str(folder / "moved"))).values()) == {"kept"}


def test_resume_auto_resumes_instead_of_starting_over(folder, monkeypatch):
    monkeypatch.setenv("STAND_IN", json.dumps({"exrm_seed0": "fail"}))
    seeds = {"reward_model": "exrm", "training.seed": 0}
    swept(only=seeds, overrides=["resume=auto"])
    checkpoint = Path("out/exrm_seed0/checkpoints")
    checkpoint.mkdir()
    swept(only=seeds, overrides=["resume=auto"])
    assert checkpoint.exists()
    swept(only=seeds)  # without it the same run starts again
    assert not checkpoint.exists()


def fork(target, *arguments):
    """Run `target` in a forked process, which has everything imported already.

    A shell makes background processes ignore SIGINT; this one handles it anyway.
    """

    def answering():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        target(*arguments)

    process = multiprocessing.get_context("fork").Process(target=answering)
    process.start()
    return process


def sweep_to_be_killed(output):
    os.environ["STAND_IN_SWEEP"] = str(os.getpid())
    swept(output=output)


@pytest.mark.parametrize("stage", ["start", "directory", "recipe", "rewards"])
def test_a_killed_sweep_finishes_with_the_same_results(folder, monkeypatch, stage):
    monkeypatch.setenv("STAND_IN", json.dumps({"imrm_seed0": f"kill:{stage}"}))
    process = fork(sweep_to_be_killed, "killed")
    process.join()
    assert process.exitcode == -signal.SIGKILL
    begun = {name: int(pid) for name, pid, *_ in calls()}
    assert list(begun) == POINTS[:3]
    left_over = psutil.Process(begun["imrm_seed0"])  # still running, and would write to the same directory
    Path("killed/.discarded-x/imrm_seed0").mkdir(parents=True)  # as if killed while replacing a run

    monkeypatch.setenv("STAND_IN", "{}")
    assert states_of(swept(output="killed")) == dict.fromkeys(POINTS, "finished") | {
        "exrm_seed0": "kept",
        "exrm_seed1": "kept",
    }
    assert not left_over.is_running() or left_over.status() == psutil.STATUS_ZOMBIE
    assert not list(Path("killed").glob(".discarded-*"))
    swept(output="whole")
    assert results("killed") == results("whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_sweep_ends_its_processes(folder, monkeypatch, number):
    os.mkfifo("started")
    monkeypatch.setenv("STAND_IN_STARTED", "started")
    monkeypatch.setenv("STAND_IN", json.dumps({"exrm_seed0": "stop"}))
    process = fork(invoke, ["grid.yaml", "--output", "out"])
    assert Path("started").read_text() == "started"  # waits for it
    with pytest.raises(RmkitError, match="Another sweep is running in out"):
        swept()
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 130
    ((name, pid, *_),) = calls()
    assert name == "exrm_seed0"
    assert not psutil.pid_exists(int(pid))


# --- launchers -----------------------------------------------------------------------------------------------------


def test_gpus_are_split_between_points(folder, monkeypatch):
    write_grid(
        axes={
            "x": [
                {"name": "one", "distributed": "single_gpu", "training.seed": 0},
                {"name": "sharded", "distributed": "zero2", "training.seed": 1},
                {"name": "any", "training.seed": 2},
            ]
        }
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5, 6,7")
    swept()
    assert {name: gpus for name, _, gpus in calls()} == {"one": "4", "sharded": "4,5,6,7", "any": "4,5,6,7"}
    Path("calls").unlink()
    swept(LocalLauncher(max_parallel=2), output="again")
    given = {name: gpus for name, _, gpus in calls()}
    assert given["one"] in ("4", "6")
    assert {given["sharded"], given["any"]} <= {"4,5", "6,7"}
    with pytest.raises(RmkitError, match="--max-parallel 5 is more than the 4 GPUs"):
        swept(LocalLauncher(max_parallel=5), output="more")
    assert split_gpus(["0", "1", "2"], 2) == [["0"], ["1", "2"]]
    assert split_gpus([], 3) == [[], [], []]


def test_points_run_in_parallel(folder, monkeypatch):
    """Two points that wait for each other to start: run one after the other they would wait forever."""
    os.mkfifo("started")
    monkeypatch.setenv("STAND_IN_STARTED", "started")
    monkeypatch.setenv("STAND_IN", json.dumps({"exrm_seed0": "stop"}))
    process = fork(swept, LocalLauncher(max_parallel=2))
    assert Path("started").read_text() == "started"
    finished = [Path("out", name, "run.json") for name in POINTS[1:]]
    while process.is_alive() and not all(file.exists() for file in finished):
        process.join(0.05)
    (pid,) = [int(pid) for name, pid, *_ in calls() if name == "exrm_seed0"]
    os.kill(pid, signal.SIGTERM)  # a terminated point has failed; the sweep continues
    process.join()
    assert process.exitcode == 0
    assert not Path("out/exrm_seed0/run.json").exists()


def test_jobs_of_submitit(folder, monkeypatch):
    write_grid(only=[{"training.seed": 0}])
    monkeypatch.setenv("STAND_IN", json.dumps({"imrm_seed0": "fail"}))
    started = []
    launcher = ClusterLauncher(
        {"gpus_per_node": 0, "timeout_min": 2}, "local", lambda task, where: started.append((task.name, where)), 0.05
    )
    outcomes = swept(launcher)
    assert states_of(outcomes) == {"exrm_seed0": "finished", "imrm_seed0": "failed"}
    assert last_lines(outcomes["imrm_seed0"].log)[0] == "error: the point [b]fails[/b]"
    assert [name for name, _ in started] == ["exrm_seed0", "imrm_seed0"]
    assert all(where.startswith("job ") for _, where in started)
    assert not list(Path("out/logs").glob("*.job"))
    with pytest.raises(RmkitError, match="imrm_seed0 could not be submitted to local"):
        swept(ClusterLauncher({"no_such_thing": 1}, "local"))


def test_a_running_job_is_waited_for(folder, monkeypatch):
    points = expand("grid.yaml", output=Path("out"), only={"reward_model": "imrm", "training.seed": 0})

    class Job:
        def __init__(self, folder, job_id):
            self.job_id, self.asked = job_id, 0

        def done(self):
            self.asked += 1
            return self.asked > 1  # not when the sweep starts, but soon

        def result(self):
            directory = Path("out/imrm_seed0")
            (directory / "run.json").write_text(
                json.dumps({"format": 1, "recipe": points[0].recipe.model_dump(mode="json")})
            )
            raise RuntimeError("lost sight of the job")  # run.json decides

    import submitit

    monkeypatch.setattr(submitit, "SlurmJob", Job)
    directory = Path("out/imrm_seed0")
    directory.mkdir(parents=True)
    (directory / "recipe.yaml").write_text(points[0].recipe.to_yaml())
    Path("out/logs").mkdir()
    Path("out/logs/imrm_seed0.job").write_text("123\n")
    with pytest.raises(RmkitError, match="was submitted to a cluster as job 123"):
        list(run_sweep(points, Path("out"), LocalLauncher()))
    (outcome,) = run_sweep(points, Path("out"), ClusterLauncher(poll_seconds=0.01))
    assert outcome.state == "finished"
    assert "lost sight of the job" in outcome.log.read_text()
    assert not Path("out/logs/imrm_seed0.job").exists()
    assert not calls()


def test_the_resources_of_a_job_follow_the_recipe(tmp_path):
    def task(distributed):
        return Task("x", tmp_path / "x.yaml", tmp_path / "x.log", distributed, lambda: None)

    assert [task(each).processes for each in (None, "single_gpu", "zero3")] == [None, 1, 4]
    assert task("zero3").command[1:] == ["-m", "rmkit", "train", str(tmp_path / "x.yaml")]
    assert job_file(task(None)) == tmp_path / "x.job"


# --- the command ---------------------------------------------------------------------------------------------------


def invoke(arguments):
    app = typer.Typer()
    app.command()(command)
    app(arguments)


def said(arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, arguments)


def test_the_command(folder, models, monkeypatch):
    monkeypatch.setenv("STAND_IN", json.dumps({"exrm_seed1": "fail"}))
    dry = said(["grid.yaml", "--dry-run", "--output", "out"])
    assert dry.exit_code == 0, dry.output
    assert all(name in dry.output for name in POINTS)
    assert "unknown (base not cached)" in dry.output
    assert not Path("out").exists()
    known = said(["grid.yaml", "--dry-run", f"base.name={models['qwen2']}", "base.dtype=float32"])
    parameters = sum(each.numel() for each in AutoModelForCausalLM.from_pretrained(models["qwen2"]).parameters())
    assert f"{16 * parameters / 2**30:.3g} GiB" in known.output  # weights, gradients and two moments of four bytes
    broken = Path("broken.jinja")
    broken.write_text("{{ raise_exception('never') }}")
    refused = said(["grid.yaml", "--dry-run", f"base.name={models['qwen2']}", f"base.chat_template={broken}"])
    assert "unknown: The chat" in refused.output  # template fails: better known now than later
    failed = said(["grid.yaml", "--output", "out"])
    assert failed.exit_code == 1
    assert "3 of 4 points are finished in out" in failed.output
    assert "exrm_seed1 failed: out/logs/exrm_seed1.log" in failed.output
    assert "error: the point [b]fails[/b]" in failed.output
    monkeypatch.setenv("STAND_IN", "{}")
    again = said(["grid.yaml", "--output", "out", "--only", "training.seed=1", "--only", "reward_model=[exrm, imrm]"])
    assert again.exit_code == 0
    assert "2 of 2 points" in again.output
    wrong = said(["grid.yaml", "--only", "training.seed=7"])
    assert wrong.exit_code == 2
    assert "7 is not on the axis training.seed" in wrong.output


@pytest.mark.slow
@pytest.mark.smoke
def test_one_command_trains_a_model(models, tmp_path, monkeypatch):
    """Through `rmkit train` and accelerate, as a user would, on two pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    pair = {"prompt": "why?", "chosen": "Mix flour, water.", "rejected": "The lazy dog."}
    Path("train.jsonl").write_text("\n".join([json.dumps(pair)] * 2))
    Path("base.yaml").write_text(yaml.safe_dump(BASE | {"base": {"name": str(models["qwen2"])}}))
    write_grid(
        axes={"reward_model": [GRID["axes"]["reward_model"][0]]},
        changes={"training": {"num_train_epochs": 1, "batch_size": 2, "per_device_train_batch_size": 2}},
    )
    outcome = said(["grid.yaml", "--output", "out"])
    assert outcome.exit_code == 0, outcome.output + Path("out/logs/exrm.log").read_text()
    assert json.loads(Path("out/exrm/run.json").read_text())["training"]["steps"] == 1
    assert Path("out/exrm/model/reward_model.json").exists()


# --- the shipped grids ---------------------------------------------------------------------------------------------

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"


def shipped(name):
    return expand(name)


@pytest.mark.parametrize("name", sorted(file.stem for file in SWEEPS.glob("*.yaml")))
def test_shipped_grids_are_valid_and_the_paper_s_optimisation(name):
    points = shipped(name)
    assert len({point.name for point in points}) == len(points)
    for point in points:
        training = point.recipe.training
        assert training["batch_size"] == 32
        if name != "tiny_quickstart":
            assert training["lr_scheduler_type"] == "constant"
            processes = point.recipe.distributed and Task("", Path(), Path(), point.recipe.distributed, print).processes
            # accelerate resolved "auto" to 1.0 in the released runs on four GPUs; there was no clipping on one
            assert training["max_grad_norm"] == {1: 0, 4: 1}[processes]
            assert 32 % (training["per_device_train_batch_size"] * processes) == 0
            epochs = {"persona": 50, "hamiltonian": 15}.get(name, 5)
            assert training["num_train_epochs"] == epochs


@pytest.mark.parametrize("name", ["general_chat", "math"])
def test_section_5_2(name):
    points = shipped(name)
    assert len(points) == 6 * 3 * 3
    assert Counter(point.recipe.base.name for point in points) == dict.fromkeys(
        [
            "google/gemma-2-2b-it",
            "Qwen/Qwen2.5-1.5B-Instruct",
            "Qwen/Qwen2.5-3B-Instruct",
            "meta-llama/Llama-3.2-1B-Instruct",
            "meta-llama/Llama-3.2-3B-Instruct",
            LLAMA_8B,
        ],
        9,
    )
    for point in points:
        recipe = point.recipe
        large = recipe.base.name == LLAMA_8B
        assert recipe.base.dtype == ("bfloat16" if large else "float32")
        assert recipe.training["bf16"] == large
        assert recipe.training["learning_rate"] == 1e-6
        assert getattr(recipe.reward_model, "beta", 0.01) == 0.01
        assert ("llama" in recipe.base.name) == (recipe.base.date_string is not None)
        assert recipe.data.train.path == {"general_chat": "ultrafeedback", "math": "rewardmath"}[name]
        assert (recipe.data.train.limit, recipe.data.train.limit_seed) == {
            "general_chat": (None, None),
            "math": (1000, 517),
        }[name]
        suite = yaml.safe_load((SUITES / f"{name}.yaml").read_text())["sets"]
        assert {each.name: (each.path, each.category) for each in recipe.data.evaluation} == {
            each["name"]: (each["path"], each["category"]) for each in suite
        }


def changed(points):
    """(type, learning rate, beta) of the points, each with its number of seeds."""
    return Counter(
        (
            each.recipe.reward_model.type,
            each.recipe.training["learning_rate"],
            getattr(each.recipe.reward_model, "beta", 0),
        )
        for each in points
    )


ONE_AT_A_TIME = [
    *(("explicit", rate, 0) for rate in (5e-7, 1e-6, 5e-6)),
    *(("implicit", rate, 0.01) for rate in (5e-7, 1e-6, 5e-6)),
    *(("implicit", 1e-6, beta) for beta in (0.005, 0.05, 0.1)),
]


def test_figures_6_and_7():
    points = shipped("hyperparameters")
    assert changed(points) == dict.fromkeys(ONE_AT_A_TIME, 3)
    alternatives = shipped("alternatives")
    assert {each.recipe.base.name for each in [*points, *alternatives]} == {LLAMA_8B}
    variants = Counter(
        (
            each.recipe.reward_model.type,
            getattr(each.recipe.reward_model, "pooling", None) or each.recipe.reward_model.reference,
        )
        for each in alternatives
    )
    assert variants == dict.fromkeys(
        [("explicit", "last"), ("explicit", "mean"), ("implicit", "base"), ("implicit", "none")], 3
    )


RELEASED, OWN = "released", None
"""Chat templates: the released code's for base models, and the model's own (or rmkit's default, the paper's text)."""


def test_persona():
    points = shipped("persona")
    templates = {"EleutherAI/pythia-1b": RELEASED, "meta-llama/Llama-3.2-1B": RELEASED}
    templates |= dict.fromkeys(["Qwen/Qwen2.5-1.5B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"], OWN)
    generative = [("generative", rate, 0) for rate in (5e-7, 1e-6, 5e-6)]
    for name, template in templates.items():
        mine = [each for each in points if each.recipe.base.name == name]
        usual = [each for each in mine if template_of(each) == template]
        assert changed(usual) == dict.fromkeys([*ONE_AT_A_TIME, *generative], 3)
        others = [each for each in mine if each not in usual]
        assert changed(others) == ({key: 3 for key in TYPES} if template == RELEASED else {})
        for each in mine:
            assert each.recipe.base.added_tokens == (TOKENS if template_of(each) == RELEASED else [])
    assert len(points) == 4 * 12 * 3 + 2 * 2 * 3
    assert {
        each.source.name for point in points for each in [point.recipe.data.train, *point.recipe.data.evaluation]
    } == {"persona"}


TOKENS = ["<|user|>", "<|assistant|>"]
TYPES = [("explicit", 1e-6, 0), ("implicit", 1e-6, 0.01)]


def template_of(point):
    template = point.recipe.base.chat_template
    return None if template is None else str(template)


def test_hamiltonian():
    points = shipped("hamiltonian")
    other = [point for point in points if template_of(point) != RELEASED]
    graphs = {}
    for point in points:
        sets = [point.recipe.data.train, *point.recipe.data.evaluation]
        options = {json.dumps(each.source.options, sort_keys=True) for each in sets}
        assert len(options) == 1
        graphs.setdefault(options.pop(), []).append(point)
        tokens = [] if point in other else TOKENS
        assert point.recipe.base.added_tokens == [*tokens, "[sep]", "[edge_sep]"]
    by_graph = {
        (each["vertices"], each["edge_probability"]): points
        for text, points in graphs.items()
        for each in [json.loads(text)]
    }
    assert set(by_graph) == {(n, p) for n in (8, 10, 12) for p in (0.1, 0.2, 0.3)}
    papers = by_graph.pop((10, 0.2))
    assert changed([point for point in papers if point not in other]) == dict.fromkeys(ONE_AT_A_TIME, 3)
    assert changed(other) == changed(point for point in papers if point in other) == {key: 3 for key in TYPES}
    for others in by_graph.values():
        assert changed(others) == {key: 3 for key in TYPES}


def test_the_tiny_grid_needs_nothing_but_itself():
    points = shipped("tiny_quickstart")
    assert changed(points) == {("explicit", 1e-4, 0): 3, ("implicit", 1e-4, 0.01): 3, ("generative", 1e-4, 0): 3}
    for point in points:
        assert point.recipe.base.build.corpus == "quickstart"
        assert {each.source.name for each in [point.recipe.data.train, *point.recipe.data.evaluation]} == {"quickstart"}


def test_processes_of_other_sweeps_are_left_alone(folder, monkeypatch):
    monkeypatch.setenv(launchers.SWEEP_VARIABLE, str(folder / "other"))
    process = psutil.Popen(["cat"], stdin=-1)
    launchers.end_processes(folder / "out")
    assert process.is_running()
    launchers.end_processes(folder / "other")
    assert not process.is_running()
