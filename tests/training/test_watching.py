"""Scores during training: when they are made and logged, the best model, early stopping, and all of it after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rmkit import load_reward_model
from rmkit.data.preferences import load_preferences
from rmkit.files import link_folder
from rmkit.training.best_model import find_best
from rmkit.training.resume import PREEMPTED_EXIT_CODE

pytestmark = pytest.mark.smoke

SIX_STEPS = {"num_train_epochs": 2, "logging_steps": 1}  # of 24 pairs in batches of 8


@pytest.fixture
def swapped(pairs):
    """The data section with one more set: the training pairs with chosen and rejected swapped."""
    columns = {"chosen": "rejected", "rejected": "chosen"}
    return {
        "root": str(pairs),
        "train": {"name": "train", "path": "train.jsonl"},
        "evaluation": [
            {"name": "test", "path": "test.jsonl"},
            {"name": "swapped", "path": "train.jsonl", "split": "train", "columns": columns},
        ],
    }


def interrupt():
    raise KeyboardInterrupt


def final_rewards(directory):
    return {file.stem: pd.read_parquet(file) for file in sorted((directory.path / "rewards").glob("*.parquet"))}


def same_rewards(first, second):
    first, second = final_rewards(first), final_rewards(second)
    return first.keys() == second.keys() and all(first[name].equals(second[name]) for name in first)


def states(directory):
    return [(entry["state"], entry["step"]) for entry in directory.read()["history"]]


def result(directory):
    """What must not depend on whether a run was interrupted."""
    record = directory.read()
    return {key: record[key] for key in ("history", "kept", "metrics", "train_fit")} | {
        "steps": record["training"]["steps"],
        "weights": {file.name: file.read_bytes() for file in directory.model.glob("*.safetensors")},
    }


# --- scores --------------------------------------------------------------------------------------------------------


def test_scores_come_after_steps_and_epochs_but_once_a_step(run):
    """Only those after epochs leave rewards files."""
    training = SIX_STEPS | {"num_train_epochs": 3}  # 3 steps each
    directory = run("explicit", training=training, evaluation={"every_steps": 2, "every_epochs": 2})
    assert states(directory) == [
        ("initial", 0),
        ("step_2", 2),
        ("step_4", 4),
        ("epoch_2", 6),
        ("step_8", 8),
        ("epoch_3", 9),
        ("final", 9),
    ]
    folders = sorted(path.name for path in (directory.path / "rewards").iterdir() if path.is_dir())
    assert folders == ["epoch_2", "epoch_3", "initial"]
    assert directory.read()["kept"] is None


@pytest.mark.parametrize(
    ("end", "evaluation", "scored"),
    [
        ({"max_steps": 4}, {"every_epoch": True}, ["epoch_1", "step_4"]),
        ({"max_steps": 5}, {"every_epoch": True, "every_steps": 2}, ["step_2", "epoch_1", "step_4", "step_5"]),
        ({"num_train_epochs": 1.3}, {"every_epochs": 2}, ["step_4"]),
        ({"max_steps": 3}, {"every_epochs": 2}, ["epoch_1"]),
        ({"max_steps": 4}, {}, []),
    ],
)
def test_a_run_that_ends_inside_an_epoch_is_scored_after_its_last_step(run, end, evaluation, scored):
    """An epoch has 3 steps. A state is named after an epoch only at the end of that epoch."""
    directory = run("explicit", training=SIX_STEPS | end, evaluation=evaluation)
    assert [state for state, _ in states(directory)] == ["initial", *scored, "final"]


@pytest.mark.parametrize(
    "type_name",
    ["generative", pytest.param("explicit", marks=pytest.mark.slow), pytest.param("implicit", marks=pytest.mark.slow)],
)
def test_the_loss_of_a_set_is_that_of_training_on_it(run, pairs, tmp_path, type_name):
    """Before the first step, the loss on the training pairs is that of the first step, if that takes all of them."""
    rows = [json.loads(line) | {"margin": 0.5} for line in (pairs / "train.jsonl").read_text().splitlines()]
    (tmp_path / "margins.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {
        "root": str(tmp_path),
        "train": {"name": "train", "path": "margins.jsonl"},
        "evaluation": [{"name": "again", "path": "margins.jsonl", "split": "train"}],
    }
    directory = run(type_name, data=data, training={"batch_size": 24, "logging_steps": 1})
    record = directory.read()
    initial, rewards = record["history"][0]["sets"]["again"], pd.read_parquet(directory.rewards("again", "initial"))
    assert initial["training_loss"] == pytest.approx(record["training"]["log"][0]["pair_loss"], rel=1e-5)
    assert (initial["training_loss"] == initial["loss"]) is False  # `loss` knows neither margins nor Eq. 7
    difference = (rewards["chosen_reward"] - rewards["rejected_reward"]).to_numpy()
    assert initial["margin"] == pytest.approx(difference.mean(), abs=1e-12)
    if type_name == "explicit":
        assert initial["training_loss"] == pytest.approx(np.logaddexp(0, 0.5 - difference).mean())


def test_tensorboard_gets_the_scores_by_set_and_training_goes_on_as_without(run):
    """Control: the same recipe without evaluations trains to the same bits, and logs training at the same steps."""
    training = SIX_STEPS | {"report_to": "tensorboard", "logging_steps": 2}
    watched = run("explicit", "watched", training=training, evaluation={"every_steps": 4})
    plain = run("explicit", "plain", training=training)
    assert states(watched) == [("initial", 0), ("step_4", 4), ("step_6", 6), ("final", 6)]
    assert same_rewards(plain, watched)

    def scalars(directory):
        (file,) = directory.path.rglob("events.out.tfevents.*")
        events = EventAccumulator(str(file))
        events.Reload()
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    logged, control = scalars(watched), scalars(plain)
    assert {tag for tag in logged if tag.startswith("eval/")} == {
        f"eval/test/{metric}" for metric in ("accuracy", "margin", "normalized_margin", "loss")
    }
    history = watched.read()["history"][:-1]
    for tag, key in (("accuracy", "accuracy"), ("margin", "margin"), ("loss", "training_loss")):
        values = [(entry["step"], entry["sets"]["test"][key]) for entry in history]
        assert [step for step, _ in logged[f"eval/test/{tag}"]] == [0, 4, 6]
        assert logged[f"eval/test/{tag}"] == [(step, pytest.approx(value, rel=1e-6)) for step, value in values]
    for tag in ("train/pair_loss", "train/accuracy", "train/loss"):
        assert logged[tag] == control[tag]
        assert [step for step, _ in control[tag]] == [2, 4, 6]


# --- the best model ------------------------------------------------------------------------------------------------


def test_the_best_evaluation_is_the_first_of_equal_ones_after_the_start():
    def history(*accuracies):
        return [
            {"state": f"step_{step}", "epoch": step / 4, "step": step, "sets": {"a.b": {"accuracy": value}}}
            for step, value in enumerate(accuracies)
        ]

    assert find_best(history(0.9), "a.b.accuracy") == (None, 0)  # before training
    assert find_best(history(0.9, 0.5), None) == (None, 0)
    best = {"state": "step_2", "epoch": 0.5, "step": 2, "metric": "a.b.accuracy", "value": 0.75}
    assert find_best(history(0.9, 0.5, 0.75, 0.5, 0.75), "a.b.accuracy") == (best, 2)
    losses = [
        {"state": "epoch_1", "epoch": 1.0, "step": step, "sets": {"x": {"training_loss": value, "margin": value}}}
        for step, value in [(3, 0.7), (6, 0.6), (9, 0.8)]
    ]
    assert find_best(losses, "x.loss") == (
        {"state": "epoch_1", "epoch": 1.0, "step": 6, "metric": "x.loss", "value": 0.6},
        1,
    )
    best, later = find_best(losses, "x.margin")
    assert best["step"], later == (9, 0)


@pytest.mark.parametrize(
    ("type_name", "lora"),
    [
        ("explicit", None),
        pytest.param("implicit", {"r": 4}, marks=pytest.mark.slow),
        pytest.param("explicit", {"r": 4}, marks=pytest.mark.slow),
        pytest.param("implicit", None, marks=pytest.mark.slow),
        pytest.param("generative", None, marks=pytest.mark.slow),
        pytest.param("generative", {"r": 4}, marks=pytest.mark.slow),
    ],
)
def test_the_best_model_is_the_final_one(run, swapped, pairs, type_name, lora):
    """Training makes the swapped set worse, so its best evaluation is the first."""
    evaluation = {"every_steps": 2, "save_best": "swapped.margin"}
    directory = run(type_name, evaluation=evaluation, data=swapped, training=SIX_STEPS, lora=lora)
    record = directory.read()
    _, first, *later, final = record["history"]
    margins = [entry["sets"]["swapped"]["margin"] for entry in (first, *later)]
    assert margins[0] == max(margins) > margins[-1]
    assert record["kept"] == {
        "state": "step_2",
        "epoch": first["epoch"],
        "step": 2,
        "metric": "swapped.margin",
        "value": margins[0],
    }
    assert (final["step"], final["epoch"]) == (2, first["epoch"])
    assert (record["training"]["steps"], record["training"]["stopped_early"]) == (6, False)
    for name in ("test", "swapped"):
        assert record["metrics"][name] == first["sets"][name]
    assert record["train_fit"]["accuracy"] == pytest.approx(1 - record["metrics"]["swapped"]["accuracy"])
    again = load_reward_model(str(directory.model)).score_pairs(load_preferences("test.jsonl", root=pairs), 16)
    np.testing.assert_array_equal(again, final_rewards(directory)["test"][["chosen_reward", "rejected_reward"]])
    assert not list((directory.path / "checkpoints").iterdir())


@pytest.mark.slow
def test_the_best_model_can_be_the_last(run, swapped):
    options = {"data": swapped, "training": SIX_STEPS}
    best = run("explicit", "best", evaluation={"every_epoch": True, "save_best": "swapped.margin"}, **options)
    assert best.read()["kept"]["state"] == "epoch_1"
    best = run("explicit", "last", evaluation={"every_epoch": True, "save_best": "test.loss"}, **options)
    plain = run("explicit", "plain", **options)
    assert best.read()["kept"]["state"] == "epoch_2"
    assert same_rewards(best, plain)


def test_training_stops_when_it_finds_nothing_better(run, swapped, capsys):
    evaluation = {"every_steps": 1, "save_best": "swapped.loss", "early_stopping": 2}
    directory = run("explicit", data=swapped, training=SIX_STEPS, evaluation=evaluation)
    record = directory.read()
    assert states(directory) == [("initial", 0), ("step_1", 1), ("step_2", 2), ("step_3", 3), ("final", 1)]
    assert (record["training"]["steps"], record["training"]["stopped_early"]) == (3, True)
    printed = capsys.readouterr().out
    assert "The final model is that of step 1, the best swapped.loss" in printed
    assert "The run stopped early after 3 steps." in printed


# --- interruptions -------------------------------------------------------------------------------------------------

SAVING = SIX_STEPS | {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize(
    ("save_best", "patience", "lora"),
    [
        ("swapped.loss", 6, None),
        pytest.param("swapped.loss", 6, {"r": 4}, marks=pytest.mark.slow),
        pytest.param("test.loss", 2, None, marks=pytest.mark.slow),  # it is best after the checkpoint again
    ],
)
def test_an_interrupted_run_keeps_the_same_best_model(run, swapped, at_step, save_best, patience, lora):
    """The best model of the checkpoint is kept with it: a later one, or none, in checkpoints/best does not matter."""
    options = {
        "data": swapped,
        "lora": lora,
        "resume": "auto",
        "training": SAVING | {"save_total_limit": 1},
        "evaluation": {"every_steps": 1, "save_best": save_best, "early_stopping": patience},
    }
    whole = run("explicit", "whole", **options)
    at_step(5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("explicit", "cut", **options)
    checkpoints = whole.path.parent / "cut" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best", "checkpoint-4"]
    shutil.rmtree(checkpoints / "best")
    resumed = run("explicit", "cut", **options)
    assert result(resumed) == result(whole)
    assert same_rewards(whole, resumed)
    if save_best == "swapped.loss":
        assert whole.read()["kept"]["step"] == 1
        assert whole.read()["training"]["steps"] == 7


@pytest.mark.slow
@pytest.mark.parametrize(("micro_batch", "steps"), [(8, 5), (4, 4)])
def test_a_run_preempted_in_the_step_in_which_it_stops_keeps_the_same_model(run, swapped, at_step, micro_batch, steps):
    """It may take one more step, which is neither scored nor kept."""
    options = {
        "data": swapped,
        "resume": "auto",
        "training": SAVING | {"save_steps": 100, "per_device_train_batch_size": micro_batch},
        "evaluation": {"every_steps": 1, "save_best": "swapped.loss", "early_stopping": 3},
    }
    whole = run("explicit", "whole", **options)
    at_step(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        run("explicit", "cut", **options)
    assert stopped.value.code == PREEMPTED_EXIT_CODE
    resumed = run("explicit", "cut", **options)
    assert result(resumed) == result(whole) | {"steps": steps}
    assert resumed.read()["training"]["stopped_early"]


def test_a_folder_is_linked_or_copied_where_links_are_impossible(tmp_path, monkeypatch):
    (tmp_path / "best" / "model").mkdir(parents=True)
    (tmp_path / "best" / "model" / "weights").write_text("x")
    link_folder(tmp_path / "best", tmp_path / "linked")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    for _ in range(2):  # a folder that is there is replaced
        link_folder(tmp_path / "best", tmp_path / "copied")
    links = {name: (tmp_path / name / "model" / "weights").stat().st_nlink for name in ("linked", "copied")}
    assert links == {"linked": 2, "copied": 1}
    assert (tmp_path / "copied" / "model" / "weights").read_text() == "x"
