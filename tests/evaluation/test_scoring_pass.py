"""One pass over sets: bounded windows, every sequence computed once, rewards in the order of the rows."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from rmkit import load_reward_model
from rmkit.data.preferences import PairRows, load_preferences
from rmkit.encoding.batches import share
from rmkit.encoding.chat import TokenSequence
from rmkit.encoding.pairs import EncodedPair
from rmkit.evaluation import scorer as scorer_module
from rmkit.evaluation import scoring
from rmkit.models.language_model import apply_head

REWORDED = {"bread": "loaf", "water": "fluid", "quick": "fast"}


@pytest.fixture
def windows(monkeypatch):
    """Set how many pairs a window holds, and how many are read and encoded at once."""

    def setting(number):
        for module in (scoring, scorer_module):
            monkeypatch.setattr(module, "WINDOW", number)
        monkeypatch.setattr("rmkit.encoding.pairs._CHUNK", number)
        monkeypatch.setattr("rmkit.data.preferences._CHUNK", number)
        monkeypatch.setattr("rmkit.data.rows._CHUNK", number)

    return setting


@pytest.fixture
def read(monkeypatch):
    """The sequences that went through the model, and the tokens that were computed."""
    counted = {"sequences": 0, "tokens": 0}
    original = scoring.collate

    def counting(sequences, *rest):
        batch = original(sequences, *rest)
        counted["sequences"] += len(sequences)
        counted["tokens"] += batch["input_ids"].numel()
        return batch

    monkeypatch.setattr(scoring, "collate", counting)
    return counted


def _reworded(text):
    return " ".join(REWORDED.get(word, word) for word in text.split()) + " !"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A set, its rewording with the same prompts, and one with two rows of the same chosen response."""
    folder = tiny.write_pairs(tmp_path_factory.mktemp("sets"), train=40, test=10, prompt=20, response=12)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for row in rows:
        row["prompt"] += " " + "the lazy dog " * 4
    repeated = [rows[number // 2] | {"rejected": f"No, {number}."} for number in range(20)]
    for row in rows[:30]:
        row["margin"] = 1.0
    reworded = [row | {side: _reworded(row[side]) for side in ("chosen", "rejected")} for row in rows[:30]]
    written = {"original": rows[:30], "reworded": reworded, "repeated": repeated}
    for name, each in written.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, each)))
    return {name: load_preferences(f"{name}.jsonl", name=name, root=folder) for name in written}


@pytest.fixture(scope="module", params=["explicit", "implicit", "generative"])
def scorer(request, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    tiny.save_language_model(folder / "policy", "qwen2", seed=1)
    options = {"type": request.param}
    if request.param == "implicit":
        options |= {"reference": str(models["qwen2"]), "beta": 0.1}
    if request.param == "explicit":
        from transformers import AutoModelForSequenceClassification

        torch.manual_seed(2)
        model = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
        model.save_pretrained(folder / "policy")
    return load_reward_model(str(folder / "policy"), **options)


def close(found, expected):
    np.testing.assert_allclose(found.rewards.rewards, expected.rewards.rewards, rtol=0, atol=1e-5 * scale(expected))
    assert (found.rewards.index == expected.rewards.index).all()
    assert (found.response_lengths == expected.response_lengths).all()


def scale(scored):
    return np.abs(scored.rewards.rewards).max()


def test_windows_change_no_reward_and_no_order(scorer, sets, windows):
    whole = scorer.score_sets(sets, batch_size=5)
    texts = {name: scorer.score_pairs(data, batch_size=4) for name, data in sets.items()}
    for number in (1, 4, 7, 100):
        windows(number)
        found = scorer.score_sets(sets, batch_size=5)
        for name, expected in whole.items():
            close(found[name], expected)
            np.testing.assert_allclose(found[name].rewards.rewards, texts[name], rtol=0, atol=1e-5 * scale(expected))
    assert whole["original"].summary().keys() >= {"accuracy", "normalized_margin", "longer_wins"}


def test_sets_share_common_prompts(scorer, sets, read):
    together = scorer.score_sets(sets, batch_size=6)
    in_one_pass = dict(read)
    read.update(sequences=0, tokens=0)
    apart = {name: scorer.score_sets({name: data}, batch_size=6)[name] for name, data in sets.items()}
    for name, expected in apart.items():
        close(together[name], expected)
    assert in_one_pass["tokens"] < 0.85 * read["tokens"]


def test_repeated_responses_are_computed_once(scorer, sets, read):
    scorer.score_sets({"repeated": sets["repeated"]}, batch_size=4)
    assert read["sequences"] == 30 * scorer.models  # 20 rejected ones, and 10 chosen ones of two rows each
    read.update(sequences=0)
    scorer.score_sets({"original": sets["original"]}, batch_size=4)
    assert read["sequences"] == 60 * scorer.models


def test_skipping_positions_that_no_head_reads_changes_nothing(scorer):
    """Branches of which all, some or no positions are read: they differ in the last token, the first, or in between."""
    model, kind = scorer.checkpoint.model, scorer.reward_model
    ids = list(range(10, 50))
    texts = [
        ids,
        [*ids[:-1], 60],
        [*ids[:-3], 61, 62, 63],
        [70, *ids[1:]],
        [*ids, 64, 65],
        [*ids, 64, 67],
        [*ids[:20], 66],
    ]
    sequences = [TokenSequence(each, 18) for each in texts]
    shared = scoring.sequence_outputs(model, kind, sequences, batch_size=7, layout="shared").numpy()
    alone = np.concatenate(
        [scoring.sequence_outputs(model, kind, [each], batch_size=1, layout="padded").numpy() for each in sequences]
    )
    np.testing.assert_allclose(shared, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
    with torch.no_grad():  # the whole of the last layer, as in training
        whole = apply_head(model, kind.outputs, share(sequences)).double().numpy()
    np.testing.assert_allclose(shared, whole, rtol=0, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_the_order_of_sequences_changes_no_bit(scorer, sets, layout):
    """Nor do the two ways to score pairs differ."""
    model, kind = scorer.checkpoint.model, scorer.reward_model
    pairs = list(sets["original"])
    sequences = kind.encode(
        [pair.prompt for pair in pairs] * 2, [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    )
    order = np.random.default_rng(0).permutation(len(sequences))
    whole, shuffled = (
        scoring.sequence_outputs(model, kind, some, batch_size=4, layout=layout).numpy()
        for some in (sequences, [sequences[number] for number in order])
    )
    assert (whole[order] == shuffled).all()


def test_windows_stay_full_where_small_sets_end(scorer, sets, windows, monkeypatch):
    windows(12)
    sizes = []
    original = scoring.sequence_outputs

    def counting(model, kind, sequences, **options):
        sizes.append(len(sequences) // 2)
        return original(model, kind, sequences, **options)

    monkeypatch.setattr(scoring, "sequence_outputs", counting)
    scorer.score_sets({"original": sets["original"], "repeated": sets["repeated"]})
    assert sizes[:: scorer.models] == [12, 12, 12, 8, 6]  # 18 and 18, then 6 and 2, then 6


def test_pairs_over_the_length_limit_are_counted(scorer, sets, windows):
    windows(3)
    whole = scorer.score_sets({"original": sets["original"]})["original"]
    encoder, data = scorer.reward_model.encoder, list(sets["original"])
    longest = [
        max(map(len, encoder.verification_sequences([pair.prompt] * 2, [pair.chosen, pair.rejected]))) for pair in data
    ]
    limit = sorted(longest)[15]
    found = scorer.score_sets({"original": sets["original"]}, max_length=limit)["original"]
    assert found.dropped == {f"longer than {limit} tokens": 30 - len(found.rewards)}
    assert 0 < len(found.rewards) < 30
    np.testing.assert_allclose(
        found.rewards.rewards, whole.rewards.rewards[found.rewards.index], rtol=0, atol=1e-5 * scale(whole)
    )


def test_memory_does_not_grow_with_the_rows(models, tmp_path, windows, monkeypatch):
    """Encoded pairs alive at a time, for 20 and for 200 rows; in the control arm one window holds them all."""
    made, alive = [], []

    class Noted(EncodedPair):
        def __init__(self, *fields):
            super().__init__(*fields)
            made.append(weakref.ref(self))

    def counting(sequences, *rest):
        alive.append(sum(each() is not None for each in made))
        return original(sequences, *rest)

    original = scoring.collate
    monkeypatch.setattr("rmkit.encoding.pairs.EncodedPair", Noted)
    monkeypatch.setattr(scoring, "collate", counting)
    scorer = load_reward_model(str(models["qwen2"]), "generative")
    tiny.write_pairs(tmp_path, train=200, test=20, prompt=6, response=6)
    most = {}
    for window in (4, 1000):
        windows(window)
        for name in ("train", "test"):
            alive.clear()
            data = load_preferences(f"{name}.jsonl", root=tmp_path)
            assert isinstance(data.pairs, PairRows)
            scorer.score_sets({name: data}, batch_size=50)
            most[window, name] = max(alive)
    assert 4 <= most[4, "train"] == most[4, "test"] <= 8
    assert (most[1000, "train"], most[1000, "test"]) == (200, 20)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["explicit", "implicit", "generative"])
def test_a_run_and_a_later_pass_give_equal_bits(run, pairs, kind, windows):
    windows(3)
    directory = run(kind)
    found = load_reward_model(str(directory.model)).score_sets(
        {"test": load_preferences("test.jsonl", root=pairs)}, batch_size=16
    )["test"]
    kept = pd.read_parquet(directory.rewards("test"))
    assert (found.rewards.rewards == kept[["chosen_reward", "rejected_reward"]].to_numpy()).all()
    if kind == "implicit":
        initial = pd.read_parquet(directory.rewards("test", "initial"))
        assert not initial[["chosen_reward", "rejected_reward"]].to_numpy().any()


def test_pairs_on_disk_behave_like_a_list(sets):
    rows = sets["original"].pairs
    made = list(rows)
    assert [rows[3], rows[-1]] == [made[3], made[-1]]
    assert rows[2:9:3] == made[2:9:3]
    assert rows[:0] == []
    assert len(rows) == len(made) == 30
    with pytest.raises(IndexError):
        rows[30]
