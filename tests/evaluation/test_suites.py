"""Suites: the strict schema, the shipped ones, RewardBench's section scores, best of four."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from rmkit.config.resources import SUITES
from rmkit.data.sources import find
from rmkit.errors import RmkitError
from rmkit.evaluation.suites import best_of_accuracy, load_set, load_suite, section_scores

SHIPPED = sorted(each.stem for each in SUITES.glob("*.yaml"))
ULTRAFEEDBACK = ["ultrafeedback", "ultrafeedback_paraphrased", "ultrafeedback_french", "ultrafeedback_spanish"]


def suite_file(tmp_path, content):
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_suites_load_by_name_and_by_path(name):
    suite = load_suite(name)
    assert suite == load_suite(SUITES / f"{name}.yaml")
    for each in suite.sets:
        if each.source is not None:
            assert find(each.source.name).options.model_validate(each.source.options)


@pytest.mark.parametrize(
    ("name", "categories"),
    [
        (
            "general_chat",
            {
                "in-distribution": ULTRAFEEDBACK[:1],
                "token-level shift": ULTRAFEEDBACK[1:],
                "domain shift": ["rewardbench_math", "rewardbench_code", "rewardmath"],
            },
        ),
        (
            "math",
            {
                "in-distribution": ["rewardmath"],
                "token-level shift": ["rewardbench_math"],
                "domain shift": [*ULTRAFEEDBACK, "rewardbench_code"],
            },
        ),
    ],
)
def test_the_categories_of_the_paper(name, categories):
    assert load_suite(name).categories == {each: category for category, sets in categories.items() for each in sets}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sets": [{"name": "a", "path": "x"}], "set": []}, "set is not a known key. Did you mean sets"),
        ({"sets": []}, "at least one set"),
        ({}, "sets is missing"),
        ({"sets": [{"name": "a", "pth": "x"}]}, r"sets\.0\.pth is not a known key. Did you mean path"),
        ({"sets": [{"name": "a"}]}, "give a path or a source"),
        ({"sets": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "two sets are named a"),
        ({"sets": [{"name": "../a", "path": "x"}]}, r"sets\.0\.name"),
        ({"sets": [{"name": "a", "path": "x", "category": "far away"}]}, "category"),
        ({"sets": [{"name": "a", "path": "x", "weight": 0}]}, "weight"),
        ({"sets": [{"name": "a", "path": "x", "score": "best"}]}, "score"),
    ],
)
def test_mistakes_are_named(tmp_path, content, message):
    file = suite_file(tmp_path, content)
    with pytest.raises(RmkitError, match=message) as caught:
        load_suite(file)
    assert str(file) in str(caught.value)


def test_an_unknown_suite_lists_the_shipped_ones():
    with pytest.raises(RmkitError, match="general_chat, math, rewardbench, rewardbench2"):
        load_suite("chat")


def test_the_root_argument_overrides_the_suite(tmp_path):
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    write(tmp_path / "one" / "set.jsonl", [pair])
    write(tmp_path / "two" / "set.jsonl", [pair, pair])
    file = suite_file(tmp_path, {"root": str(tmp_path / "one"), "sets": [{"name": "a", "path": "set.jsonl"}]})
    for root, number in ((None, 1), (tmp_path / "two", 2)):
        suite = load_suite(file, root)
        assert len(load_set(suite.sets[0], suite.root)) == number


def test_rewardbench_from_a_local_copy(tmp_path):
    rows = [
        {
            "prompt": f"p{each}",
            "chosen": f"c{each}",
            "rejected": f"r{each}",
            "subset": ["hep-go", "donotanswer"][each % 2],
        }
        for each in range(6)
    ]
    write(tmp_path / "allenai" / "reward-bench" / "data" / "filtered.jsonl", rows)
    suite = load_suite("rewardbench", tmp_path)
    sets = {each.name: each for each in suite.sets}
    assert [pair.prompt for pair in load_set(sets["donotanswer"], suite.root)] == ["p1", "p3", "p5"]
    with pytest.raises(RmkitError, match='has no row with subset "math-prm"; it has "hep-go", "donotanswer"'):
        load_set(sets["math-prm"], suite.root)


def test_rewardbench_section_scores():
    """Two of the sections by hand, with the weights of RewardBench's own code."""
    suite = load_suite("rewardbench")
    assert len(suite.sets) == 23
    accuracies = {each.name: 0.5 for each in suite.sets} | {"math-prm": 1.0, "hep-go": 0.0, "mt-bench-easy": 1.0}
    scores = section_scores(suite, accuracies)
    chat = (0.5 * (100 + 95 + 95 + 40) + 28) / (100 + 95 + 95 + 40 + 28)
    reasoning = (984 + 0.5 * 5 * 164) / (984 + 6 * 164)
    assert scores == pytest.approx(
        {"Chat": chat, "Chat Hard": 0.5, "Safety": 0.5, "Reasoning": reasoning, "overall": (chat + 1 + reasoning) / 4}
    )
    assert section_scores(load_suite("math"), {"rewardmath": 1.0}) == {}


def rewardbench2(tmp_path, rows):
    write(tmp_path / "allenai" / "reward-bench-2" / "test.jsonl", rows)
    suite = load_suite("rewardbench2", tmp_path)
    return {each.name: each for each in suite.sets}, suite.root


def test_rewardbench2_rows_become_three_pairs(tmp_path):
    rows = [
        {"id": str(each), "prompt": f"p{each}", "chosen": [f"c{each}"], "rejected": [f"r{each}{n}" for n in "xyz"],
         "num_correct": 1, "num_rejected": 3, "subset": ["Math", "Focus", "Ties"][each % 3]}
        for each in range(6)
    ]  # fmt: skip
    sets, root = rewardbench2(tmp_path, rows)
    pairs = load_set(sets["focus"], root)
    assert [(pair.index, pair.chosen, pair.rejected) for pair in pairs] == [
        (1, "c1", "r1x"), (1, "c1", "r1y"), (1, "c1", "r1z"), (4, "c4", "r4x"), (4, "c4", "r4y"), (4, "c4", "r4z"),
    ]  # fmt: skip


@pytest.mark.parametrize("row", [{"chosen": ["a", "b"], "rejected": ["c"]}, {"chosen": ["a"], "rejected": "b"}])
def test_rows_with_another_layout_are_an_error(tmp_path, row):
    sets, root = rewardbench2(tmp_path, [{"prompt": "p", "subset": "Math"} | row])
    with pytest.raises(RmkitError, match="row 0 does not have one chosen"):
        load_set(sets["math"], root)


def test_best_of_accuracy_by_hand():
    rewards = {
        7: (2.0, [1.0, 0.0, -1.0]),  # right
        2: (2.0, [1.0, 3.0, -1.0]),  # wrong: one is better
        5: (2.0, [2.0, 1.0, 2.0]),  # three share the first place
        9: (2.0, [0.0, 0.0]),  # one pair was lost on the way
    }
    index = np.concatenate([[row] * len(rejected) for row, (_, rejected) in rewards.items()])
    chosen = np.concatenate([[good] * len(rejected) for good, rejected in rewards.values()])
    rejected = np.concatenate([rejected for _, rejected in rewards.values()])
    expected = {"best_of_accuracy": (1 + 0 + 1 / 3) / 3, "rows": 3, "incomplete_rows": 1}
    assert best_of_accuracy(index, chosen, rejected) == pytest.approx(expected)
    order = np.random.default_rng(0).permutation(len(index))
    assert best_of_accuracy(index[order], chosen[order], rejected[order]) == pytest.approx(expected)


def test_shipped_suites_document_their_use():
    for name in SHIPPED:
        assert f"--suite {name}" in Path(SUITES / f"{name}.yaml").read_text()
