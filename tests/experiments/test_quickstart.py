"""The quickstart on a smaller base and fewer pairs: its files, its reuse of runs, runs that leave each other alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from rmkit.commands.quickstart import quickstart as command
from rmkit.config.recipe import load_recipe
from rmkit.data.corpus import persona_pairs
from rmkit.data.preferences import load_preferences
from rmkit.experiments import quickstart
from rmkit.report.quickstart import RESULT_COLUMNS, results
from rmkit.report.quickstart_text import CAVEATS
from rmkit.runs import environment
from rmkit.runs.directory import RunDirectory

SETS = list(persona_pairs(seed=0))
SMALL = [
    "base.build.hidden_size=32",
    "base.build.layers=1",
    "base.build.steps=10",
    "training.num_train_epochs=1",
    *(f"data.evaluation.{number}.limit=12" for number in range(len(SETS))),
]


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """What rmkit says of itself: committed, without changes since. Its own cache of bases, too."""
    said = environment.describe() | {"git": {"commit": "0" * 40, "dirty": False}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(environment, "describe", lambda: dict(said))
        yield said


@pytest.fixture(scope="module")
def made(code, tmp_path_factory):
    return quickstart.quickstart(tmp_path_factory.mktemp("quickstart"), seeds=1, overrides=SMALL)


def run_of(made, name):
    return next(run for run in made.runs if run.path.name == name)


def rewards(run, state="final"):
    return {name: pd.read_parquet(run.rewards(name, state)) for name in SETS}


# --- recipes and pairs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quickstart.RECIPE_NAMES)
def test_a_recipe_begins_with_its_launch_command(name):
    first = (quickstart.RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# accelerate launch rmkit/train.py recipes/quickstart/{name}.yaml"


def test_recipes_differ_in_the_reward_model_and_the_output_only():
    loaded = [load_recipe(quickstart.RECIPES / f"{name}.yaml") for name in quickstart.RECIPE_NAMES]
    assert [recipe.reward_model.type for recipe in loaded] == ["explicit", "implicit", "generative"]
    assert [recipe.output_dir for recipe in loaded] == [
        Path("runs/quickstart") / name for name in quickstart.RECIPE_NAMES
    ]
    rest = [recipe.model_dump(exclude={"reward_model", "output_dir"}) for recipe in loaded]
    assert rest[0] == rest[1] == rest[2]
    assert [each["name"] for each in rest[0]["data"]["evaluation"]] == SETS


def test_the_recipes_find_the_pairs_that_are_written(tmp_path):
    root = quickstart.prepare(tmp_path)
    data = load_recipe(quickstart.RECIPES / "exrm.yaml").data
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


def test_results_take_nothing_but_the_records(made):
    record = json.loads(made.runs[0].record.read_text())
    record["history"][0]["sets"]["swapped_test"]["accuracy"] = 0.125
    frame = results([record])
    assert frame[(frame["epoch"] == 0) & (frame["dataset"] == "swapped_test")]["accuracy"].item() == 0.125


def test_the_page_stands_alone_and_says_what_must_be_said(made):
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
    """The recipes that would be trained from here on; the runs stay as they are."""
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
def test_a_run_among_others_is_bit_for_bit_the_run_of_a_process_of_its_own(made, tmp_path):
    """The generative model is trained last, when anything left behind would show."""
    assert made.runs[-1].path.name == "exgrm_seed0"
    root = made.page.parents[1] / "data"
    script, alone = Path(quickstart.__file__).parents[1] / "train.py", RunDirectory(tmp_path / "alone")
    options = [*SMALL, f"data.root={root}", f"output_dir={alone.path}"]
    subprocess.run(
        [sys.executable, str(script), str(quickstart.RECIPES / "exgrm.yaml"), *options],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for state in ("initial", "final"):
        among_others = rewards(made.runs[-1], state)
        assert all(among_others[name].equals(each) for name, each in rewards(alone, state).items())


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
