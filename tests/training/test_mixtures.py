"""A run on several training sets with a validation set: what trains, and the metrics of every set."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from rmkit import load_reward_model
from rmkit.cli import app
from rmkit.config.recipe import Hub, load_recipe
from rmkit.data.sources.use import load_sets
from rmkit.encoding.pairs import mix, training_rows
from rmkit.evaluation.statistics import summary
from rmkit.hub.cards import model_card
from rmkit.hub.publication import build_publication
from rmkit.report import runs as report_runs
from rmkit.reward_models import make_reward_model
from rmkit.reward_models.origins import ModelRef
from rmkit.theory.model_dynamics import _encode_sets
from rmkit.training.preparation import encode, load_encoder

TRAIN = [
    {"name": "short", "path": "train.jsonl", "split": "train[:10]", "weight": 2},
    {"name": "long", "path": "train.jsonl", "split": "train[10:]", "weight": 0.5},
]


@pytest.mark.smoke
def test_a_mixture_with_validation_trains_and_is_reported(run, pairs, tmp_path):
    data = {"root": str(pairs), "train": TRAIN, "validation": 4}
    data |= {"evaluation": [{"name": "test", "path": "test.jsonl"}]}
    directory = run("implicit", data=data, training={"batch_size": 4})
    record = directory.read()
    recipe = load_recipe(directory.path / "recipe.yaml")
    sets = load_sets(recipe.data)
    sizes = {name: len(each) for name, each in sets.items()}
    assert list(sizes) == list(record["data"]) == ["short", "long", "validation", "test"]
    assert sizes["validation"] + sizes["short"] + 2 * sizes["long"] == pytest.approx(24, abs=1)
    epoch = 2 * sizes["short"] + sizes["long"]
    assert record["training"]["steps"] == -(-epoch // 4)
    assert record["data"]["validation"]["shared_prompts"] == 0
    assert list(record["metrics"]) == ["validation", "test"]
    assert set(record["accuracy_by_category"]) == {"in-distribution"}
    assert [record["data"][name]["training"] for name in sizes] == [True, True, False, False]

    # The metrics of every set are those of the set scored alone; train_fit counts pairs as an epoch does.
    model, final = load_reward_model(str(directory.model)), record["history"][-1]["sets"]
    alone = {name: model.score_pairs(sets[name], batch_size=16) for name in sizes}
    for name, rewards in alone.items():
        table = pd.read_parquet(directory.rewards(name))
        np.testing.assert_allclose(table[["chosen_reward", "rejected_reward"]].to_numpy(), rewards, atol=1e-6)
        assert table["index"].tolist() == [pair.index for pair in sets[name]]
        assert final[name]["accuracy"] == summary(rewards)["accuracy"]
    whole = summary(np.concatenate([alone["short"], alone["short"], alone["long"]]))
    assert record["train_fit"] == pytest.approx(whole, abs=1e-6)
    assert record["train_fit"]["pairs"] == epoch

    hub = Hub(push="end", repo_id="owner/name", base="upload")
    card = model_card(build_publication(directory.model, record, hub), record, hub.repo_id)
    assert "| `short` | `train.jsonl`, weight 2.0 | `train[:10]` |" in card
    assert f"| `validation` | prompts held out of the training data | | {sizes['validation']} |" in card

    found = report_runs.load([directory.path])
    assert not found.problems
    assert found.settings == ["Short + Long"]
    assert found.train_fit["pairs"].tolist() == [epoch]
    assert found.mixed_fit["set"].tolist() == ["short", "long"]
    assert found.mixed_fit["accuracy"].tolist() == [final[name]["accuracy"] for name in ("short", "long")]
    result = CliRunner().invoke(app, ["report", str(directory.path), "--output", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    assert "every set of the mixture" in (tmp_path / "report" / "index.html").read_text()


def test_the_dynamics_of_a_run_read_the_same_sets(pairs, models, tmp_path):
    data = {"root": str(pairs), "train": TRAIN, "validation": 4, "evaluation": [{"name": "test", "path": "test.jsonl"}]}
    recipe, reward_model = _load(tmp_path, models, data)
    sets = load_sets(recipe.data)
    training, unseen = _encode_sets(recipe, reward_model, 100)
    assert list(training.pairs) == [*sets["short"], *sets["long"]]
    assert {name: list(each.pairs) for name, each in unseen.items()} == {
        name: list(sets[name]) for name in ("validation", "test")
    }


def _load(folder, models, data):
    """A recipe, and its reward model."""
    content = {
        "base": {"name": str(models["qwen2"])},
        "reward_model": {"type": "generative"},
        "data": data,
        "output_dir": str(folder / "run"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    recipe = load_recipe(folder / "recipe.yaml")
    encoder, _ = load_encoder(recipe, ModelRef(name=content["base"]["name"]))
    return recipe, make_reward_model(recipe.reward_model, encoder)


def test_the_pairs_of_an_epoch_by_hand(pairs, models, tmp_path):
    recipe, reward_model = _load(tmp_path, models, {"root": str(pairs), "train": TRAIN})
    encoded = encode(recipe, load_sets(recipe.data), reward_model)
    rows = training_rows(recipe.data, encoded)
    mixed = mix(encoded, rows)
    wanted = [*encoded["short"].pairs, *encoded["short"].pairs, *encoded["long"].pairs]
    assert [len(each) for each in (encoded["short"], encoded["long"], mixed)] == [10, 7, 27]
    assert list(mixed.pairs) == wanted
    assert list(mixed.chosen[10:20]) == encoded["short"].chosen[:]
    assert list(mixed.rejected[20:]) == encoded["long"].rejected[:]
    assert list(mixed.chosen_responses[:10]) == encoded["short"].chosen_responses[:]
    assert mixed.columns()["tokens"] == [*encoded["short"].tokens * 2, *encoded["long"].tokens]
    single = mix(encoded, {"long": rows["long"]})
    assert single is encoded["long"]
