"""Several training sets in shares, and the validation set that is cut off them by prompt."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from rmkit.config.recipe import Data, load_recipe
from rmkit.data.conversations import Message
from rmkit.data.mixture import cut_validation, draw
from rmkit.data.overlap import find_overlap
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.data.sources.use import load_sets
from rmkit.errors import RmkitError
from rmkit.training.preparation import load_data, warnings


def row(prompt, number=0, **more):
    return {"prompt": prompt, "chosen": f"yes {number}", "rejected": f"no {number}"} | more


def write(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))


@pytest.fixture
def data(tmp_path):
    """Two sets, chat of 40 pairs of 20 prompts and code of 30 pairs of 30 prompts; keywords are keys of `data`."""
    write(tmp_path / "chat.jsonl", [row(f"chat {number % 20}", number) for number in range(40)])
    write(tmp_path / "code.jsonl", [row([{"role": "user", "content": f"code {number}"}]) for number in range(30)])

    def settings(*train, **keys):
        train = [{"name": name, "path": f"{name}.jsonl"} | more for name, more in train]
        return Data.model_validate_json(
            json.dumps({"root": str(tmp_path), "train": train if len(train) > 1 else train[0]} | keys)
        )

    return settings


CHAT, CODE = ("chat", {}), ("code", {})


def prompts(pairs):
    return {str(pair.prompt) for pair in pairs}


def refused(settings):
    with pytest.raises(RmkitError) as error:
        load_sets(settings)
    assert "\n" not in error.value.cause + error.value.remedy
    return error.value


# --- validation ----------------------------------------------------------------------------------------------------


def test_no_prompt_is_on_both_sides(data):
    sets = load_sets(data(CHAT, validation=0.25))
    assert list(sets) == ["chat", "validation"]
    assert (len(sets["validation"]), len(prompts(sets["validation"]))) == (10, 5)  # of 20 prompts, two pairs each
    assert (len(sets["chat"]), len(prompts(sets["chat"]))) == (30, 15)
    assert not prompts(sets["chat"]) & prompts(sets["validation"])
    assert sorted(pair.index for name in sets for pair in sets[name]) == list(range(40))
    assert not find_overlap(sets["chat"], sets["validation"], ngrams=True).prompt.any()


def test_a_cut_by_row_would_share_prompts(data):
    pairs = list(load_sets(data(CHAT))["chat"])
    cut = set(np.random.default_rng(0).permutation(len(pairs))[:10].tolist())
    rest = [pair for number, pair in enumerate(pairs) if number not in cut]
    assert prompts(rest) & prompts(pairs[number] for number in cut)


def test_a_number_of_prompts_is_cut(data):
    sets = load_sets(data(CHAT, CODE, validation=7))
    assert len(prompts(sets["validation"])) == 7
    assert len(sets["chat"]) + len(sets["code"]) + len(sets["validation"]) == 70
    assert [pair.index for pair in sets["validation"]] == list(range(len(sets["validation"])))


def test_conversations_are_kept_together_and_apart_from_their_last_turn():
    def conversation(number):
        turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", f"Why {number}?"))
        return [PreferencePair(turns, f"a{at}", "b", 3 * number + at) for at in range(3)]

    pairs = [pair for number in range(8) for pair in conversation(number)]
    (rest,), held = cut_validation([PreferenceData("talk", pairs)], 0.25, 0)
    assert (len(rest), len(held)) == (18, 6)
    assert not {pair.prompt for pair in rest} & {pair.prompt for pair in held}


def test_a_prompt_of_two_sets_is_cut_off_both():
    first = PreferenceData("a", [PreferencePair(f" {number}", "x", "y", number) for number in range(10)])
    second = PreferenceData("b", [PreferencePair(f"{number}\n", "x", "y", number) for number in range(10)])
    rest, held = cut_validation([first, second], 3, 0)
    assert [len(each) for each in (*rest, held)] == [7, 7, 6]
    assert len({pair.prompt.strip() for pair in held}) == 3


def test_the_cut_depends_on_prompts_and_seed_alone(data):
    cut = prompts(load_sets(data(CHAT, validation=0.25))["validation"])
    pairs = list(load_sets(data(CHAT))["chat"])
    random.Random(1).shuffle(pairs)
    assert prompts(cut_validation([PreferenceData("other", pairs)], 0.25, 0)[1]) == cut
    weighted = data(("chat", {"weight": 0.5}), validation=0.25, max_length=5, evaluation=[])
    assert prompts(load_sets(weighted)["validation"]) == cut
    assert prompts(load_sets(data(CHAT, validation=0.25, seed=1))["validation"]) != cut


def test_another_process_cuts_the_same(data):
    settings = data(CHAT, validation=0.25)
    code = (
        "import sys; from rmkit.config.recipe import Data; from rmkit.data.sources.use import load_sets;"
        "print(load_sets(Data.model_validate_json(sys.argv[1]))['validation'].fingerprint)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, settings.model_dump_json()], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == load_sets(settings)["validation"].fingerprint


@pytest.mark.parametrize("share", [20, 0.99, 0.01])
def test_nothing_left_on_a_side_is_refused(data, share):
    error = refused(data(CHAT, validation=share))
    assert error.cause.startswith(f"data.validation: {share} takes")
    assert "of the 20 prompts of chat" in error.cause
    assert error.remedy == "Give a number or fraction that leaves prompts on both sides."
    for enough in (1, 19, 0.05, 0.95):
        assert all(len(each) for each in load_sets(data(CHAT, validation=enough)).values())


def test_a_set_without_pairs_left_is_named(data, tmp_path):
    write(tmp_path / "small.jsonl", [row("chat 1")])
    error = refused(data(CHAT, ("small", {}), validation=19))
    assert error.cause == "data.validation: 19 leaves no pair of small."
    assert error.remedy == "Lower it, or change data.seed."
    for lower in ({"validation": 1}, {"validation": 19, "seed": _seed_that_keeps("chat 1", 20)}):
        assert len(load_sets(data(CHAT, ("small", {}), **lower))["small"]) == 1


def test_errors_in_the_validation_set_name_set_and_row(data, tmp_path):
    rows = [{"prompt": f"r {number}", "answers": ["a", "b", "c"], "scores": [1, 2, 3]} for number in range(8)]
    write(tmp_path / "rated.jsonl", rows)
    rated = ("rated", {"pairing": "all", "split": "train[2:]"})
    held = load_sets(data(rated, CHAT, validation=0.5))["validation"]
    assert [pair.index for pair in held] == list(range(len(held)))
    found = {held.place(pair) for pair in held if pair.prompt.startswith("r ")}
    assert found == {f"validation (rated: row {pair.prompt[2:]})" for pair in held if pair.prompt.startswith("r ")}
    assert found
    single = load_sets(data(rated, validation=0.5))["validation"]
    assert {single.place(pair) for pair in single} == {f"validation: row {pair.prompt[2:]}" for pair in single}


def _seed_that_keeps(prompt, prompts):
    """A seed whose cut of all but one of `prompts` prompts of chat leaves `prompt`."""
    sets = [PreferenceData("chat", [PreferencePair(f"chat {number}", "a", "b") for number in range(prompts)])]
    kept = (cut_validation(sets, prompts - 1, seed)[0][0].pairs[0].prompt for seed in range(1000))
    return next(seed for seed, left in enumerate(kept) if left == prompt)


# --- shares --------------------------------------------------------------------------------------------------------


def test_shares_by_hand():
    assert draw(4, 1, 0).tolist() == [0, 1, 2, 3]
    assert draw(3, 2, 0).tolist() == [0, 1, 2, 0, 1, 2]
    assert sorted(Counter(draw(10, 2.3, 0).tolist()).values()) == [2] * 7 + [3] * 3
    half = draw(10, 0.5, 0)
    assert len(half) == 5
    assert len(set(half.tolist())) == 5
    assert half.tolist() == sorted(half.tolist()) == draw(10, 0.5, 0).tolist()
    assert half.tolist() != draw(10, 0.5, 1).tolist()


def test_a_weight_below_1_draws_pairs_of_the_set(data):
    sets = load_sets(data(CHAT, ("code", {"weight": 0.5, "limit": 20})))
    assert [len(each) for each in sets.values()] == [40, 10]
    assert {pair.index for pair in sets["code"]} < set(range(20))
    again = load_sets(data(CHAT, ("code", {"weight": 0.5, "limit": 20})))
    assert again["code"].fingerprint == sets["code"].fingerprint


def test_a_weight_that_leaves_nothing_is_refused(data):
    error = refused(data(CHAT, ("code", {"weight": 0.01})))
    assert error.cause == "code: weight 0.01 leaves none of its 30 pairs."
    assert error.remedy == "Raise the weight of the set."
    assert len(load_sets(data(CHAT, ("code", {"weight": 0.03})))["code"]) == 1


def test_margins_in_one_set_only_are_refused(data, tmp_path):
    write(tmp_path / "margins.jsonl", [row("a", margin=1.0)])
    error = refused(data(("margins", {}), CHAT))
    assert error.cause == "The training set margins has margins, and chat has none."
    write(tmp_path / "margins.jsonl", [row("a")])
    assert len(load_sets(data(("margins", {}), CHAT))) == 2


def test_a_set_without_usable_pairs_is_named(data, tmp_path):
    write(tmp_path / "same.jsonl", [row("a", chosen="x", rejected="x")])
    assert refused(data(CHAT, ("same", {}))).cause.startswith("same has no usable pair")


# --- recipes -------------------------------------------------------------------------------------------------------

TRAIN = [{"name": "chat", "path": "chat.jsonl"}, {"name": "code", "path": "code.jsonl", "weight": 2}]


@pytest.fixture
def recipe(tmp_path):
    def load(*overrides, **keys):
        content = {"base": {"name": "x"}, "reward_model": {"type": "explicit"}, "output_dir": "runs/x"}
        content["data"] = {"root": str(tmp_path), "train": TRAIN} | keys
        (tmp_path / "recipe.yaml").write_text(json.dumps(content))
        return load_recipe(tmp_path / "recipe.yaml", overrides)

    return load


def test_evaluations_after_epochs_that_have_no_set_are_a_warning(data, recipe):
    for cut in (None, 5):
        loaded = recipe("evaluation.every_epoch=true", validation=cut)
        sets = load_data(loaded)
        lines = warnings(loaded, sets, {name: each.pairs for name, each in sets.items()})
        assert ("warning: evaluation.every_epoch has no set to score" in lines) == (cut is None)


def test_what_is_mixed_and_cut_is_said(data, recipe, tmp_path):
    write(tmp_path / "code.jsonl", [row("chat 3"), *(row(f"code {number}") for number in range(29))])
    loaded = recipe(validation=5)
    sets = load_data(loaded)
    lines = warnings(loaded, sets, {name: each.pairs for name, each in sets.items()})
    cut, shared = len(sets["validation"]), "chat 3" in prompts(sets["chat"])
    assert lines == [
        f"An epoch has {len(sets['chat'])} pairs of chat and {2 * len(sets['code'])} pairs of code.",
        f"validation: {cut} pairs of 5 prompts, cut from chat and code",
        *([f"warning: code: 1 of {len(sets['code'])} pairs have their prompt in chat"] if shared else []),
    ]
    assert shared
    leaked = {name: each.pairs for name, each in sets.items()} | {"chat": list(sets["validation"])}
    assert any(line.startswith(f"WARNING: validation: ALL {cut} PAIRS") for line in warnings(loaded, sets, leaked))


def test_overrides_reach_a_set_of_the_list(recipe):
    loaded = recipe("data.train.1.limit=3", "data.train.0.weight=0.5")
    assert [(each.limit, each.weight) for each in loaded.data.training_sets] == [(None, 0.5), (3, 2)]
    with pytest.raises(RmkitError, match="matches no key") as error:
        recipe("data.train.limit=3")
    assert "number list entries from 0" in error.value.remedy


def test_a_recipe_with_a_list_is_read_back_from_its_own_yaml(recipe, tmp_path):
    loaded = recipe(validation=0.1)
    (tmp_path / "again.yaml").write_text(loaded.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == loaded


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ({"train": []}, "data.train is []: it must be longer"),
        ({"train": [TRAIN[0], {"name": "b", "pth": "c"}]}, "data.train.1.pth is not a known key"),
        ({"train": {"name": "b", "pth": "c"}}, "data.train.pth is not a known key"),
        ({"train": {"name": "b", "path": 1}}, "data.train.path is 1"),
        ({"train": 3}, "data.train is 3: it must be a mapping of keys to values"),
        ({"train": [TRAIN[0], TRAIN[0]]}, "two sets are named chat"),
        ({"train": [{"name": "b", "path": "c", "weight": 0}]}, "data.train.0.weight is 0: it must be above 0"),
        ({"validation": 1.5}, "data.validation: it must be a fraction of the prompts"),
        ({"validation": True}, "data.validation: it must be a fraction of the prompts"),
        ({"validation": 0}, "data.validation: it must be a fraction of the prompts"),
        ({"validation": 3, "evaluation": [{"name": "validation", "path": "x"}]}, "two sets are named validation"),
    ],
)
def test_mistakes_name_the_key(recipe, keys, cause):
    with pytest.raises(RmkitError) as error:
        recipe(**keys)
    assert cause in error.value.cause
    assert "[" not in error.value.cause.replace("data.train is []", "")
