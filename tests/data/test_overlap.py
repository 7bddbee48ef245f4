"""Default splits, and the overlap of evaluation sets with the training set."""

from __future__ import annotations

import json
import random

import datasets
import pytest
import torch

from rmkit.config.recipe import load_recipe
from rmkit.data.conversations import parse_prompt
from rmkit.data.overlap import find_overlap
from rmkit.data.preferences import PreferencePair
from rmkit.errors import RmkitError
from rmkit.training.preparation import load_data, warnings


def rows(name, number):
    return [{"prompt": f"{name} {each}?", "chosen": f"yes {each}", "rejected": "no"} for each in range(number)]


@pytest.fixture
def recipe(tmp_path):
    """A function from evaluation sets and keys of the training set to a recipe."""

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


def test_default_splits_are_train_for_training_and_test_for_evaluation(recipe, tmp_path):
    saved(tmp_path / "set", train=5, test=2)
    data = load_data(recipe([{"name": "test", "path": "set"}], path="set"))
    assert [(each.split, len(each)) for each in data.values()] == [("train", 5), ("test", 2)]
    assert data["train"].pairs[0].prompt == "train 0?"


def test_a_prepared_source_trains_on_its_split_train(recipe):
    graphs = {"name": "hamiltonian", "vertices": 5, "train": 4, "test": 3}
    data = load_data(recipe([{"name": "test", "source": graphs}], source=graphs))
    assert [len(each) for each in data.values()] == [4, 3]


def test_a_missing_split_train_is_refused(recipe, tmp_path):
    saved(tmp_path / "set", test=2)
    with pytest.raises(RmkitError, match="has no split train; it has test") as caught:
        load_data(recipe(path="set"))
    assert caught.value.remedy == "Use one of these splits."
    assert len(load_data(recipe(path="set", split="test"))["train"]) == 2


def test_an_ignored_split_is_reported(recipe, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows("a", 3))))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows("b", 2))))
    saved(tmp_path / "set", train=2, test=2)

    def lines(evaluation, **train):
        loaded = recipe([evaluation], **train)
        data = load_data(loaded)
        return warnings(loaded, data, {name: each.pairs for name, each in data.items()})

    assert lines({"name": "b", "path": "b.jsonl"}, path="a.jsonl") == []
    assert lines({"name": "b", "path": "set", "split": "test"}, path="set", split="train") == []
    assert lines({"name": "b", "path": "b.jsonl", "split": "test"}, path="a.jsonl", split="train") == [
        "warning: train: a.jsonl has no splits: `split: train` is ignored",
        "warning: b: b.jsonl has no splits: `split: test` is ignored",
    ]


# --- overlap -------------------------------------------------------------------------------------------------------


def pairs(*triples):
    return [PreferencePair(*each) for each in triples]


def shared(training, evaluation):
    """The number of pairs that share a prompt, a chosen response, both in one pair, and the whole pair."""
    found = find_overlap(training, evaluation)
    return [int(mask.sum()) for mask in (found.prompt, found.chosen, found.prompt_and_chosen, found.pair)]


def test_overlap_by_hand():
    training = pairs(("a", "x", "y"), ("a", "x", "z"), ("b", "w", "y"))
    assert shared(training, pairs(("c", "x", "y"))) == [0, 1, 0, 0]
    assert shared(training, pairs(("b", "x", "y"))) == [1, 1, 0, 0]
    assert shared(training, pairs(("a", "y", "x"), ("c", "v", "y"))) == [1, 0, 0, 0]
    assert shared(training, pairs((" a\n", "x", "y"), ("b", "w", "z"))) == [2, 2, 2, 1]
    assert shared(training, training[1:]) == [2, 2, 2, 2]
    assert shared([], training) == [0, 0, 0, 0]
    assert find_overlap(iter(training), iter(pairs(("c", "x", "y"), ("b", "x", "y")))).prompt.tolist() == [False, True]
    assert find_overlap(training, training[1:]).ngram is None


def test_overlap_against_pairwise_comparison():
    """Random pairs of few texts, counted by comparing every pair with every training pair."""
    draw = random.Random(0)
    training, evaluation = (pairs(*[draw.choices("abcde", k=3) for _ in range(number)]) for number in (30, 200))
    expected = [
        [pair.prompt in {other.prompt for other in training} for pair in evaluation],
        [pair.chosen in {other.chosen for other in training} for pair in evaluation],
        [any((o.prompt, o.chosen) == (p.prompt, p.chosen) for o in training) for p in evaluation],
        [pair in training for pair in evaluation],
    ]
    found = find_overlap(training, evaluation)
    masks = (found.prompt, found.chosen, found.prompt_and_chosen, found.pair)
    assert [mask.tolist() for mask in masks] == expected
    assert 0 < found.pair.sum() < found.prompt_and_chosen.sum() < found.prompt.sum()


LONG = "Tell me in detail how a small reward model learns to prefer one response over another one."


def test_ngrams_of_prompts():
    training = pairs(*[(prompt, "x", "y") for prompt in (LONG, "Short one?", LONG)])

    def found(*prompts):
        overlap = find_overlap(training, pairs(*[(prompt, "a", "b") for prompt in prompts]), ngrams=True)
        return int(overlap.prompt.sum()), int(overlap.ngram.sum())

    assert found(f" {LONG}\n") == (1, 1)
    assert found("Tell: " + LONG.lower()) == (0, 1)
    words = LONG.split()
    assert found(" ".join(words[:13]) + " else") == (0, 1)
    assert found(" ".join(words[:12]) + " else altogether") == (0, 0)
    assert found("short ONE", "Short one, or long?") == (0, 1)
    assert found("???") == (0, 0)


def test_ngrams_are_not_those_of_tools():
    tools = [{"type": "function", "function": {"name": "search", "description": LONG}}]
    first, second, other = (parse_prompt(text, "x", tools) for text in ("Where is it?", "Who was she?", LONG))
    training = [PreferencePair(first, "x", "y"), PreferencePair(LONG, "x", "y")]
    assert not find_overlap(training, [PreferencePair(second, "x", "y")], ngrams=True).ngram.any()
    assert find_overlap(training, [PreferencePair(other, "x", "y")], ngrams=True).ngram.all()


def test_the_warning_on_overlap():
    training = pairs(("a", "x", "y"), ("b", "x", "y"))

    def warning(*triples):
        return find_overlap(training, pairs(*triples)).warning("x")

    assert warning(("c", "x", "y")) is None
    assert warning(("c", "x", "y"), ("a", "1", "2")) == (
        "warning: x: 1 of 2 pairs have their prompt in the training set"
    )
    assert warning(("a", "x", "y"), ("a", "1", "2")).endswith("in the training set, 1 with both responses")
    assert warning(("a", "x", "y")).startswith("WARNING: x: ALL 1 PAIRS ARE TRAINING PAIRS.")


@pytest.mark.released
def test_the_released_math_split_overlaps(released):
    """198 of the 200 test pairs have their prompt and chosen response in the training set."""
    from rmkit.data.preferences import load_preferences

    train, test = (load_preferences("rewardmath", root=released, split=split) for split in ("train", "test"))
    overlap = find_overlap(train, test, ngrams=True)
    assert overlap.counts() == {"pairs": 200, "prompt": 198, "chosen": 198, "prompt_and_chosen": 198}
    papers = load_preferences("rewardmath", root=released, split="train", limit=1000, limit_seed=517)
    drawn = torch.randperm(2000, generator=torch.Generator().manual_seed(517))[:1000].tolist()
    assert [pair.index for pair in papers] == sorted(drawn)
    shared = find_overlap(papers, test)
    assert (shared.prompt.sum(), shared.prompt_and_chosen.sum()) == (179, 179)


@pytest.mark.smoke
def test_training_reports_and_records_overlap(run, pairs_folder, capsys):
    record = run(data=pairs_folder).read()
    printed = capsys.readouterr().out.splitlines()
    assert "warning: mixed: 3 of 5 pairs have their prompt in the training set, 1 with both responses" in printed
    assert next(line for line in printed if "ALL 8 PAIRS ARE TRAINING PAIRS" in line).startswith("WARNING: same: ")
    assert not [line for line in printed if line.startswith("warning: other")]
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
