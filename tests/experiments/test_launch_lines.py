"""The commands quoted in README and recipes: they parse, their recipes load, and their data is found or fetched."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import REPOSITORY
from fresh_clone import write_fresh_clone
from released_clone import FOLDERS, write_clone
from typer.testing import CliRunner

from rmkit.cli import app
from rmkit.config.recipe import load_recipe
from rmkit.data.sources import released
from rmkit.errors import RmkitError
from rmkit.evaluation import suites
from rmkit.experiments.sweep import expand
from rmkit.training.preparation import load_data

FILES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "recipes").rglob("*.yaml"))]
RECIPES = [file for file in FILES if file.suffix == ".yaml" and not {"suites", "sweeps"} & set(file.parts)]


def quoted(file):
    """The commands in the code blocks of a page or the header of a YAML file, split into words."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        text = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    else:
        text = "\n".join(line.removeprefix("#") for line in text.splitlines() if line.startswith("#"))
    lines = [line.strip() for line in text.splitlines() if re.match(r" *(accelerate launch|rmkit [a-z]+) ", line)]
    return [shlex.split(command.replace("[", "").replace("]", "")) for line in lines for command in line.split("&&")]


COMMANDS = {f"{file.relative_to(REPOSITORY)}: {shlex.join(each)}": each for file in FILES for each in quoted(file)}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty working directory and cache, offline."""
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def write_persona(folder):
    """A small copy of the hub's Persona data set."""
    rows = [
        {"question": f"Would you say {each}?", "answer_matching_behavior": " Yes" if each % 2 else " No"}
        for each in range(300)
    ]
    (folder / "persona").mkdir(parents=True)
    (folder / "persona" / "agreeableness.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The data to copy to an offline machine, by its placeholder in messages."""
    folder = tmp_path_factory.mktemp("copies")
    return {"CLONE": write_clone(folder / "clone"), "COPY": write_persona(folder / "copy")}


def carry_out(remedy, copies):
    """Run the command that a remedy quotes."""
    command = re.search(r"`rmkit (.*?)`", remedy)[1]
    words = [str(copies.get(word, word)) for word in shlex.split(command)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.output


def missing(recipe):
    """The error if a recipe's data is missing; None if it exists or can be generated."""
    try:
        load_data(recipe)
    except RmkitError as error:
        return error
    return None


def load_following_messages(recipe, copies):
    """The sets of a recipe after following the error messages, and the commands that they quoted."""
    commands = []
    while (error := missing(recipe)) is not None:
        assert "\n" not in error.cause + error.remedy
        commands.append(re.search(r"`(.*?)`", error.remedy)[1])
        assert len(commands) < 9, error
        carry_out(error.remedy, copies)
    return load_data(recipe), commands


# --- every command -------------------------------------------------------------------------------------------------


def test_there_are_commands():
    assert len(COMMANDS) > 25
    assert len(quoted(REPOSITORY / "README.md")) >= 3


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_quoted_command_parses(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    if command[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        arguments = launch_command_parser().parse_args(command[2:])
        assert arguments.training_script == "rmkit/train.py"
        recipe, *overrides = arguments.training_script_args
        assert load_recipe(recipe, overrides).data.train.source is not None
        return
    group = typer.main.get_command(app)
    name, subcommand, rest = group.resolve_command(group.make_context("rmkit", [], resilient_parsing=True), command[1:])
    given = subcommand.make_context(name, list(rest)).params
    if name == "sweep":
        assert expand(given["sweep"])
    if name == "evaluate":
        assert suites.load_suite(given["suite"]).sets


# --- data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(REPOSITORY / "recipes")))
def test_a_recipe_without_its_data_quotes_the_command_that_fetches_it(file, offline):
    """In an empty folder, offline; generated sets need nothing."""
    error, text = missing(load_recipe(file)), file.read_text(encoding="utf-8")
    if "released/" in text:
        assert "`rmkit prepare released --source CLONE --output data`" in error.remedy
    elif "persona" in text:
        assert f"`rmkit prepare persona --source COPY --output {offline / 'data' / 'persona'}`" in error.remedy
    else:
        assert error is None


def test_two_commands_fetch_the_data_of_all_recipes_and_suites(offline, copies):
    """Sweeps too: these two have their own sets, the others those of their base or generated ones."""
    points = [expand(name)[0].recipe for name in ("math", "tiny_quickstart")]
    different = {each.data.model_dump_json(): each for each in [*map(load_recipe, RECIPES), *points]}
    commands = []
    for recipe in different.values():
        data, fetched = load_following_messages(recipe, copies)
        commands += fetched
        assert all(len(each) for each in data.values())
        assert next(iter(data.values())).split in ("train", "original_train")
    assert commands == [
        "rmkit prepare released --source CLONE --output data",
        f"rmkit prepare persona --source COPY --output {offline / 'data' / 'persona'}",
    ]
    for name in ("general_chat", "math"):
        suite = suites.load_suite(name)
        assert all(len(suites.load_set(each, suite.root)) for each in suite.sets)


def test_a_suite_without_its_data_quotes_the_command(offline):
    suite = suites.load_suite("math")
    with pytest.raises(RmkitError) as caught:
        suites.load_set(suite.sets[0], suite.root)
    assert "`rmkit prepare released --source CLONE --output data`" in caught.value.remedy


def test_a_missing_set_is_named_and_added_to_the_others(offline, copies):
    """Also if an existing folder was not written by rmkit and has no card."""
    recipe = load_recipe(REPOSITORY / "recipes" / "llama8b_exrm.yaml")
    load_following_messages(recipe, copies)
    for name in ("rewardbench_math", "ultrafeedback_french"):
        shutil.rmtree(offline / "data" / name)
    (offline / "data" / "ultrafeedback" / "card.json").unlink()
    (offline / "data" / "ultrafeedback" / "mine.txt").touch()
    with pytest.raises(RmkitError) as caught:
        load_data(recipe)
    missing = offline / "data" / "ultrafeedback_french"
    assert caught.value.cause.startswith(f"ultrafeedback_french: {missing} does not exist, and https://github.com/")
    output = carry_out(caught.value.remedy, copies)
    assert output.count("(was there)") == 5
    assert len(load_data(recipe)) == 8
    assert (offline / "data" / "ultrafeedback" / "mine.txt").exists()


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        (["data.root=some where"], "rmkit prepare released --source CLONE --output 'some where'"),
        (["data.root="], "rmkit prepare released/ultrafeedback --source CLONE --output {here}/ultrafeedback"),
        (
            ["data.train.path=x/uf"],
            "rmkit prepare released/ultrafeedback --source CLONE --output {here}/data/x/uf",
        ),
        (
            ["data.train.source={name: released/ultrafeedback, revision: " + "a" * 40 + "}"],
            f"""rmkit prepare released/ultrafeedback 'revision="{"a" * 40}"' --source CLONE """
            "--output {here}/data/ultrafeedback",
        ),
    ],
)
def test_the_command_fits_the_recipe(offline, copies, overrides, command):
    recipe = load_recipe(REPOSITORY / "recipes" / "llama8b_exrm.yaml", ["data.evaluation=[]", *overrides])
    data, commands = load_following_messages(recipe, copies)
    assert commands == [command.format(here=offline)]
    assert len(data["train"]) == 8


def test_a_source_without_a_path_is_fetched_with_its_options(offline, copies):
    """Its folder is named after the options, so a folder with other options does not count."""
    source = '{name: persona, train: 10, matching: "No"}'
    recipe = load_recipe(
        REPOSITORY / "recipes" / "pythia1b_persona.yaml",
        ["data.evaluation=[]", f"data.train={{name: train, source: {source}}}"],
    )
    data, commands = load_following_messages(recipe, copies)
    assert len(commands) == 1
    assert commands[0].startswith("""rmkit prepare persona train=10 'matching="No"' --source COPY --output """)
    assert len(data["train"]) == 10


@pytest.mark.parametrize("fault", ["HF_HUB_OFFLINE=1", "HF_HUB_OFFLINE=true", "no route", "a dead proxy"])
def test_every_way_of_being_offline_quotes_the_command(offline, monkeypatch, fault):
    if fault.startswith("HF_HUB_OFFLINE"):
        monkeypatch.setenv(*fault.split("="))
    else:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(released, "URL", "http://127.0.0.1:9/{commit}")  # the discard port: nobody listens
    if fault == "a dead proxy":
        monkeypatch.setattr(released, "URL", "http://example.invalid/{commit}")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(RmkitError) as caught:
        load_data(load_recipe(REPOSITORY / "recipes" / "llama8b_exrm.yaml"))
    assert "`rmkit prepare released --source CLONE --output data`" in caught.value.remedy
    assert f"{offline / 'data' / 'ultrafeedback'} does not exist" in caught.value.cause
    assert not (offline / "data" / "ultrafeedback").exists()


def test_the_remedy_of_rmkit_prepare_works(offline, copies):
    result = CliRunner().invoke(app, ["prepare", "released"])
    assert result.exit_code == 2
    assert "give the clone with --source CLONE" in result.output
    for _ in range(2):  # a second call keeps the sets, and needs no source
        assert CliRunner().invoke(app, ["prepare", "released", "--source", str(copies["CLONE"])]).exit_code == 0
    assert CliRunner().invoke(app, ["prepare", "released"]).exit_code == 0
    other = CliRunner().invoke(app, ["prepare", "released", "--revision", "a" * 40])
    assert (other.exit_code, "holds a prepared set" in other.output) == (2, True)


@pytest.mark.released
def test_the_released_sets_are_fetched_the_same_way(offline, tmp_path, released):
    """The real ones, without the two of RewardBench: recipes that use those name the first missing one."""
    here = [name for name in FOLDERS if (released / name).is_dir()]
    for name in here:
        shutil.copytree(released / name, tmp_path / "clone" / "data_files" / FOLDERS[name])
    data, commands = load_following_messages(
        load_recipe(REPOSITORY / "recipes" / "tiny_rewardmath_exrm.yaml"), {"CLONE": tmp_path / "clone"}
    )
    assert commands == ["rmkit prepare released --source CLONE --output data"]
    assert (len(data["train"]), len(data["ultrafeedback"])) == (1000, 200)
    if "rewardbench_math" not in here:
        with pytest.raises(RmkitError, match=r"^rewardbench_math: "):
            load_data(load_recipe(REPOSITORY / "recipes" / "llama8b_exrm.yaml"))


def test_an_unavailable_base_is_an_error_of_two_lines(offline, copies):
    """The next error after the data on an offline machine."""
    from rmkit.reward_models.origins import ModelRef
    from rmkit.training.preparation import load_encoder

    recipe = load_recipe(REPOSITORY / "recipes" / "llama8b_exrm.yaml")
    with pytest.raises(RmkitError) as caught:
        load_encoder(recipe, ModelRef(name=str(recipe.base.name)))
    assert "meta-llama/Llama-3.1-8B-Instruct" in caught.value.cause
    assert "\n" not in caught.value.cause + caught.value.remedy


def test_the_message_gives_the_absolute_path(offline):
    """data.root is relative to the working directory."""
    recipe = load_recipe(REPOSITORY / "recipes" / "tiny_rewardmath_exrm.yaml", ["data.train={name: t, path: uf}"])
    with pytest.raises(RmkitError, match=re.escape(f"{Path.cwd() / 'data' / 'uf'} does not exist")):
        load_data(recipe)


# --- in a fresh clone ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A function that runs a command in a fresh clone with an empty rmkit cache."""
    folder = write_fresh_clone(tmp_path_factory.mktemp("fresh") / "rmkit")

    def ran(*command):
        own = {"PYTHONPATH": str(folder), "RMKIT_CACHE": str(folder.parent / "cache"), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *command[1:]]
        words = words if command[0] == "accelerate" else [sys.executable, "-m", *command]
        done = subprocess.run(words, cwd=folder, env=os.environ | own, capture_output=True, text=True, timeout=900)
        return done, folder

    return ran


@pytest.mark.dist
def test_two_processes_prepare_a_set_once(fresh):
    """The main process prepares it, the other waits."""
    base = ["base.build.steps=4", "base.build.hidden_size=32", "base.build.layers=1"]
    training = ["training.num_train_epochs=1", "training.per_device_train_batch_size=16"]
    launch = ["distributed=cpu_zero3", "output_dir=runs/two", "--num-processes", "2"]
    done, folder = fresh("rmkit", "train", "recipes/quickstart/imrm.yaml", *base, *training, *launch)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "runs" / "two" / "run.json").read_text())
    assert record["num_processes"] == 2
    assert record["data"]["original_test"]["pairs"] == 40
    assert (folder / "data" / "quickstart" / "card.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exrm", "imrm", "exgrm"])
def test_the_quickstarts_recipes_run_as_quoted(fresh, name):
    (command,) = quoted(REPOSITORY / "recipes" / "quickstart" / f"{name}.yaml")[:1]
    done, folder = fresh(*command)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "runs" / "quickstart" / name / "run.json").read_text())
    assert record["metrics"]["original_test"]["accuracy"] == 1.0
    assert "original_train: ALL 80 PAIRS ARE TRAINING PAIRS" in done.stdout


@pytest.mark.slow
@pytest.mark.released
def test_a_released_recipe_runs_after_following_its_message(fresh, released, tmp_path):
    """The launch line as quoted, with fewer steps."""
    for name in filter(lambda name: (released / name).is_dir(), FOLDERS):
        shutil.copytree(released / name, tmp_path / "clone" / "data_files" / FOLDERS[name])
    short = ["training.max_steps=2", "base.build.steps=4", "evaluation.train_fit=false"]
    command = [*quoted(REPOSITORY / "recipes" / "tiny_rewardmath_exrm.yaml")[0], *short]
    done, folder = fresh(*command)
    assert done.returncode != 0
    remedy = next(line for line in done.stderr.splitlines() if line.strip().startswith("fix: "))
    words = shlex.split(re.search(r"`(.*?)`", remedy)[1])
    done, _ = fresh(*(str(tmp_path / "clone") if word == "CLONE" else word for word in words))
    assert done.returncode == 0, done.stderr
    done, folder = fresh(*command)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "runs" / "tiny_rewardmath_exrm" / "run.json").read_text())
    assert record["data"]["rewardmath"]["shared_prompts"] == 179
    assert "warning: rewardmath: 179 of 200 pairs have their prompt in the training set" in done.stdout
