"""Which split is trained on, and what is said when evaluation sets share prompts or pairs with the training set."""

from __future__ import annotations

import json

import datasets
import pytest

from rmkit.config.recipe import load_recipe
from rmkit.data.overlap import TrainingOverlap, training_overlap
from rmkit.data.preferences import PreferencePair
from rmkit.errors import RmkitError
from rmkit.training.preparation import load_data, warnings


def rows(name, number):
    return [{"prompt": f"{name} {each}?", "chosen": f"yes {each}", "rejected": "no"} for each in range(number)]


@pytest.fixture
def recipe(tmp_path):
    """A recipe of these sets; further keywords are the training set's."""

    def loaded(evaluation=(), **train):
        content = {
            "base": {"name": "x"},
            "reward_model": {"type": "explicit"},
            "data": {"root": str(tmp_path), "train": {"name": "train"} | train, "evaluation": list(evaluation)},
            "output_dir": "runs/x",
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(content))
        return load_recipe(tmp_path / "recipe.yaml")

    return loaded


def saved(folder, **splits):
    made = {split: datasets.Dataset.from_list(rows(split, number)) for split, number in splits.items()}
    datasets.DatasetDict(made).save_to_disk(str(folder))


# --- the split -----------------------------------------------------------------------------------------------------


def test_training_takes_the_split_train_and_evaluation_the_split_test(recipe, tmp_path):
    saved(tmp_path / "set", train=5, test=2)
    data = load_data(recipe([{"name": "test", "path": "set"}], path="set"))
    assert [(each.split, len(each)) for each in data.values()] == [("train", 5), ("test", 2)]
    assert data["train"].pairs[0].prompt == "train 0?"


def test_a_prepared_source_is_trained_on_by_its_split_train(recipe):
    graphs = {"name": "hamiltonian", "vertices": 5, "train": 4, "test": 3}
    data = load_data(recipe([{"name": "test", "source": graphs}], source=graphs))
    assert [len(each) for each in data.values()] == [4, 3]


def test_a_set_without_the_split_train_is_not_trained_on_unasked(recipe, tmp_path):
    saved(tmp_path / "set", test=2)
    with pytest.raises(RmkitError, match="has no split train; it has test") as caught:
        load_data(recipe(path="set"))
    assert caught.value.remedy == "Name one of these as the split."
    assert len(load_data(recipe(path="set", split="test"))["train"]) == 2


def test_a_split_of_a_file_without_splits_is_said_to_be_ignored(recipe, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows("a", 3))))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows("b", 2))))
    saved(tmp_path / "set", train=2, test=2)

    def said(evaluation, **train):
        loaded = recipe([evaluation], **train)
        data = load_data(loaded)
        return warnings(loaded, data, {name: each.pairs for name, each in data.items()})

    assert said({"name": "b", "path": "b.jsonl"}, path="a.jsonl") == []
    assert said({"name": "b", "path": "set", "split": "test"}, path="set", split="train") == []
    assert said({"name": "b", "path": "b.jsonl", "split": "test"}, path="a.jsonl", split="train") == [
        "warning: train: a.jsonl has no splits: `split: train` is ignored",
        "warning: b: b.jsonl has no splits: `split: test` is ignored",
    ]


# --- overlap -------------------------------------------------------------------------------------------------------


def pairs(*triples):
    return [PreferencePair(*each) for each in triples]


def test_overlap_by_hand():
    training = pairs(("a", "x", "y"), ("a", "x", "z"), ("b", "x", "y"))
    assert training_overlap(training, pairs(("c", "x", "y"))) == TrainingOverlap(1, 0, 0)
    assert training_overlap(training, pairs(("a", "y", "x"), ("c", "x", "y"))) == TrainingOverlap(2, 1, 0)
    assert training_overlap(training, pairs((" a\n", "x", "y"), ("b", "x", "z"))) == TrainingOverlap(2, 2, 1)
    assert training_overlap(training, training[1:]) == TrainingOverlap(2, 2, 2)
    assert training_overlap([], training) == TrainingOverlap(3, 0, 0)


def test_what_overlap_says():
    assert TrainingOverlap(3, 0, 0).warning("x") is None
    assert TrainingOverlap(3, 2, 0).warning("x") == "warning: x: 2 of 3 pairs have their prompt in the training set"
    assert TrainingOverlap(3, 3, 2).warning("x").endswith("in the training set, 2 with both responses")
    assert TrainingOverlap(3, 3, 3).warning("x").startswith("WARNING: x: ALL 3 PAIRS ARE TRAINING PAIRS.")


@pytest.mark.released
def test_the_released_math_split_overlaps(released):
    from rmkit.data.preferences import load_preferences

    sets = {split: load_preferences("rewardmath", root=released, split=split).pairs for split in ("train", "test")}
    assert training_overlap(sets["train"], sets["test"]).prompts == 198


@pytest.mark.smoke
def test_training_says_and_keeps_what_is_shared(run, pairs_folder, capsys):
    record = run(data=pairs_folder).read()
    said = capsys.readouterr().out.splitlines()
    assert "warning: mixed: 3 of 5 pairs have their prompt in the training set, 1 with both responses" in said
    assert next(line for line in said if "ALL 8 PAIRS ARE TRAINING PAIRS" in line).startswith("WARNING: same: ")
    assert not [line for line in said if line.startswith("warning: other")]
    kept = {name: (each.get("shared_prompts"), each.get("shared_pairs")) for name, each in record["data"].items()}
    assert kept == {"train": (None, None), "same": (8, 8), "mixed": (3, 1), "other": (0, 0)}
    assert record["data"]["same"]["split"] == "train"
    assert record["metrics"]["mixed"]["pairs_unseen_prompts"] == 2


@pytest.fixture
def pairs_folder(tmp_path):
    """A data section: training on 8 pairs, evaluation on the same, on some of their prompts, and on others."""
    training, other = rows("train", 8), rows("other", 3)
    saved(tmp_path / "set", train=8, test=2)
    mixed = [training[0], training[1] | {"chosen": "well"}, training[2] | {"rejected": "never"}, *other[:2]]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, mixed)))
    return {
        "root": str(tmp_path),
        "train": {"name": "train", "path": "set"},
        "evaluation": [
            {"name": "same", "path": "set", "split": "train"},
            {"name": "mixed", "path": "mixed.jsonl"},
            {"name": "other", "path": "set"},
        ],
    }
