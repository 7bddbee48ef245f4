"""Accuracy on prompts outside the training set: the helper against hand arithmetic, and a run's metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny

from rmkit.config.recipe import load_recipe
from rmkit.evaluation.statistics import unseen_prompt_accuracy


def test_the_accuracy_matches_hand_arithmetic():
    mask = np.array([False, True, True, False, True])
    rewards = [[0.0, 1.0], [2.0, 1.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]]
    assert unseen_prompt_accuracy(mask, rewards) == {"accuracy_unseen_prompts": 0.5, "pairs_unseen_prompts": 3}
    saturated, ranking = [[1.0, 1.0]] * 5, [[-1.0, -2.0]] * 5
    assert unseen_prompt_accuracy(mask, saturated)["accuracy_unseen_prompts"] == 0.5
    assert unseen_prompt_accuracy(mask, ranking)["accuracy_unseen_prompts"] == 1.0


def test_no_metric_is_added_if_no_prompt_is_shared():
    assert unseen_prompt_accuracy(np.array([True, True]), [[0.0, 1.0]] * 2) == {}
    assert unseen_prompt_accuracy(np.array([False, False]), [[0.0, 1.0]] * 2) == {"pairs_unseen_prompts": 0}


@pytest.mark.smoke
def test_a_run_records_it_and_prepares_its_sources(tmp_path, monkeypatch):
    """One command from a bare recipe: the source is prepared on first use, its tokens are added, a model is trained."""
    from rmkit import load_reward_model
    from rmkit.train import train

    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    tiny.save_language_model(tmp_path / "base")
    shared = tmp_path / "shared.jsonl"
    graphs = {"name": "hamiltonian", "vertices": 5, "train": 16, "test": 8}
    recipe = {
        "base": {"name": str(tmp_path / "base"), "date_string": "26 Jul 2024", "added_tokens": ["[sep]", "[edge_sep]"]},
        "reward_model": {"type": "implicit"},
        "data": {
            "train": {"name": "train", "source": graphs, "split": "train"},
            "evaluation": [{"name": "test", "source": graphs}, {"name": "mixed", "path": str(shared)}],
        },
        "training": {"num_train_epochs": 1, "batch_size": 8},
        "output_dir": str(tmp_path / "run"),
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    from rmkit.data.sources.use import load_set

    loaded = load_recipe(file)
    seen = load_set(loaded.data.train, root=None).pairs[0].prompt
    rows = [{"prompt": prompt, "chosen": "1[sep]2", "rejected": "2[sep]1"} for prompt in (seen, "new", "newer")]
    shared.write_text("".join(json.dumps(row) + "\n" for row in rows))

    run = train(loaded).read()
    assert "pairs_unseen_prompts" not in run["metrics"]["test"]
    assert run["metrics"]["mixed"]["pairs_unseen_prompts"] == 2
    assert 0 <= run["metrics"]["mixed"]["accuracy_unseen_prompts"] <= 1
    scorer = load_reward_model(str(tmp_path / "run" / "model"))
    tokenizer = scorer.reward_model.encoder.tokenizer
    assert tokenizer.tokenize("1[sep]2[edge_sep]3") == ["1", "[sep]", "2", "[edge_sep]", "3"]
    assert len(scorer.score([seen], ["1[sep]2"])) == 1
