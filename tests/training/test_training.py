"""Training from a recipe: the files of a run, reproducibility, reloading, and the arithmetic of an optimizer step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import TYPES
from torch.utils.data import BatchSampler, RandomSampler

from rmkit import RmkitError, load_reward_model
from rmkit.data.preferences import load_preferences
from rmkit.training.pair_trainer import PairTrainerMixin

pytestmark = pytest.mark.smoke


def rewards(directory, state="final", name="test"):
    return pd.read_parquet(directory.rewards(name, state))


@pytest.mark.parametrize("type_name", TYPES)
def test_a_run_is_complete_and_reloads_to_the_same_bits(run, pairs, type_name):
    directory = run(type_name, evaluation={"every_epoch": True}, training={"num_train_epochs": 2})
    record = directory.read()
    assert record["reward_model"]["reward_model"]["type"] == TYPES[type_name]["type"]
    assert record["num_processes"] == 1
    assert record["training"]["steps"] == 6  # 24 pairs in batches of 8, twice
    assert [entry["state"] for entry in record["history"]] == ["initial", "epoch_1", "epoch_2", "final"]
    assert record["metrics"]["test"]["pairs"] == 10
    assert record["train_fit"]["pairs"] == 24
    assert record["data"]["test"]["longer_wins"] + record["data"]["test"]["shorter_wins"] == pytest.approx(1)
    assert (directory.path / "recipe.yaml").exists()
    examples = pd.read_parquet(directory.examples("test"))
    assert list(examples) == ["index", "prompt", "chosen", "rejected", "chosen_tokens", "rejected_tokens"]

    final, initial = rewards(directory), rewards(directory, "initial")
    assert list(final)[:3] == ["index", "chosen_reward", "rejected_reward"]
    assert final["chosen_reward"].dtype == np.float64
    assert not final.equals(initial)
    assert final.equals(rewards(directory, "epoch_2"))
    test_pairs = load_preferences("test.jsonl", root=pairs)
    again = load_reward_model(str(directory.model)).score_pairs(test_pairs, batch_size=16)
    assert (again == final[["chosen_reward", "rejected_reward"]].to_numpy()).all()


def test_the_same_recipe_twice_gives_the_same_bits(run):
    first, second = run("explicit", "first"), run("explicit", "second")
    assert rewards(first).equals(rewards(second))
    other = run("explicit", "other", training={"seed": 4})
    assert not rewards(first).equals(rewards(other))


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt_neox"])
def test_an_untrained_implicit_model_rewards_everything_0(run, architecture):
    """gpt_neox has no template and no pad token: rows are added to its vocabulary, the same for the reference."""
    directory = run("implicit", architecture=architecture)
    assert (rewards(directory, "initial")[["chosen_reward", "rejected_reward"]].to_numpy() == 0).all()
    assert (rewards(directory)[["chosen_reward", "rejected_reward"]].to_numpy() != 0).all()


LORA = {
    "dora": {"use_dora": True},
    "saved": {"modules_to_save": ["lm_head", "norm"]},
    "patterns": {"rank_pattern": {"q_proj": 2, "o_proj": 6}, "alpha_pattern": {"q_proj": 1}},
}


@pytest.mark.parametrize("option", LORA)
@pytest.mark.parametrize(
    "type_name",
    ["implicit", pytest.param("explicit", marks=pytest.mark.slow), pytest.param("generative", marks=pytest.mark.slow)],
)
def test_settings_of_peft_train_reload_and_rescore(run, pairs, type_name, option):
    """The run itself compares the reloaded model with the one in memory; with adapters off it is the base."""
    lora = {"r": 4} | LORA[option]
    if type_name == "explicit" and option == "saved":
        lora["modules_to_save"] = ["norm"]
    directory = run(type_name, lora=lora, training={"learning_rate": 1e-2})
    weights = load_file(directory.model / "adapter_model.safetensors")
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    match option:
        case "dora":
            assert any("lora_magnitude_vector" in name for name in found)
        case "saved":
            assert {
                module for module in lora["modules_to_save"] if any(f"{module}.weight" in name for name in found)
            } == {*lora["modules_to_save"]}
        case _:
            ranks = {part: {s[0] for name, s in found.items() if f"{part}_proj.lora_A" in name} for part in "qkvo"}
            assert ranks == {"q": {2}, "k": {4}, "v": {4}, "o": {6}}
            assert json.loads((directory.model / "adapter_config.json").read_text())["alpha_pattern"] == {"q_proj": 1}
    if type_name == "implicit":
        assert (rewards(directory, "initial")[["chosen_reward", "rejected_reward"]].to_numpy() == 0).all()
    again = load_reward_model(str(directory.model)).score_pairs(load_preferences("test.jsonl", root=pairs), 16)
    np.testing.assert_array_equal(again, rewards(directory)[["chosen_reward", "rejected_reward"]].to_numpy())


@pytest.mark.parametrize("type_name", ["explicit", "implicit", "generative"])
def test_adapters_reload_and_rescore_with_rows_added(run, pairs, type_name):
    """The base is the reference with adapters off; the head is saved with the adapter."""
    lora = {"r": 4, "alpha": 8}
    directory = run(type_name, architecture="gpt_neox", lora=lora, training={"learning_rate": 1e-2})
    files = {path.name for path in directory.model.iterdir()}
    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    assert ("score" in str(load_file(directory.model / "adapter_model.safetensors").keys())) == (
        type_name == "explicit"
    )
    if type_name == "implicit":
        assert (rewards(directory, "initial")[["chosen_reward", "rejected_reward"]].to_numpy() == 0).all()
    scorer = load_reward_model(str(directory.model))
    assert scorer.checkpoint.reference is None
    again = scorer.score_pairs(load_preferences("test.jsonl", root=pairs), batch_size=16)
    assert (again == rewards(directory)[["chosen_reward", "rejected_reward"]].to_numpy()).all()
    assert not rewards(directory).equals(rewards(directory, "initial"))


def test_another_reference_is_used_and_recorded(run, models, pairs, tmp_path, monkeypatch):
    import tiny

    other = tiny.save_language_model(tmp_path / "other", "qwen2", seed=9)
    monkeypatch.setitem(TYPES, "other", {"type": "implicit", "beta": 0.1, "reference": str(other)})
    directory = run("other")
    initial = rewards(directory, "initial")[["chosen_reward", "rejected_reward"]].to_numpy()
    scorer = load_reward_model(str(models["qwen2"]), "implicit", reference=str(other), beta=0.1)
    np.testing.assert_array_equal(scorer.score_pairs(load_preferences("test.jsonl", root=pairs), 16), initial)
    again = load_reward_model(str(directory.model)).score_pairs(load_preferences("test.jsonl", root=pairs), 16)
    assert (again == rewards(directory)[["chosen_reward", "rejected_reward"]].to_numpy()).all()


def weights(directory):
    return load_file(directory.model / "model.safetensors")


@pytest.mark.parametrize("type_name", ["explicit", "implicit", "generative_lambda"])
def test_an_optimizer_step_is_the_mean_over_its_pairs_for_any_micro_batches(run, type_name):
    """24 pairs in batches of 10 (10, 10, 4) as micro-batches of 10, 5 and 2; 5 leaves a last micro-batch of 4."""
    plain = {"optim": "sgd", "learning_rate": 0.1, "batch_size": 10}
    whole, *cut = (
        weights(run(type_name, f"micro_{size}", training=plain | {"per_device_train_batch_size": size}))
        for size in (10, 5, 2)
    )
    start = weights(run(type_name, "still", training=plain | {"per_device_train_batch_size": 10, "learning_rate": 0.0}))
    for name, tensor in whole.items():
        moved = (tensor - start[name]).abs().max()
        for other in cut:
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-3 * float(moved) + 1e-7)


def test_the_step_follows_the_gradient_of_the_mean_loss(run, pairs):
    """One step of plain gradient descent on the reward head, against the gradient of Eq. 3 for r = <u, h>."""
    step = {"optim": "sgd", "batch_size": 24, "learning_rate": 0.5, "per_device_train_batch_size": 8}
    before, after = (
        weights(run("explicit", f"rate_{rate}", training=step | {"learning_rate": rate}))["score.weight"][0]
        for rate in (0.0, 0.5)
    )
    scorer = load_reward_model(str(Path(run("explicit", "again", training=step | {"learning_rate": 0.0}).model)))
    model, gradient = scorer.checkpoint.model, torch.zeros_like(before)
    data = load_preferences("train.jsonl", root=pairs)
    for pair in data:
        hidden = []
        for sequence in scorer.reward_model.encode([pair.prompt] * 2, [pair.chosen, pair.rejected]):
            with torch.no_grad():
                hidden.append(model.base_model(torch.tensor([sequence.ids])).last_hidden_state[0, -1])
        difference = hidden[0] - hidden[1]
        gradient -= torch.sigmoid(-(before @ difference)) * difference / len(data)
    torch.testing.assert_close(after, before - 0.5 * gradient, rtol=1e-4, atol=1e-5)


def test_every_step_sees_the_same_pairs_for_every_type_and_in_both_layouts(run, monkeypatch):
    """Those of transformers' own sampler; a step's micro-batches may group them in any way."""
    seen: list[list[set[int]]] = []
    original = PairTrainerMixin.compute_loss

    def noting(self, model, inputs, *rest, **options):
        seen[-1][self.state.global_step] |= set(inputs["index"].tolist())
        return original(self, model, inputs, *rest, **options)

    monkeypatch.setattr(PairTrainerMixin, "compute_loss", noting)
    for layout in ("shared", "padded"):
        for type_name in ("explicit", "implicit", "generative"):
            seen.append([set() for _ in range(6)])
            run(type_name, f"{type_name}_{layout}", layout=layout, training={"num_train_epochs": 2})
    samplers = [RandomSampler(range(24), generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]
    expected = [set(pairs) for sampler in samplers for pairs in BatchSampler(sampler, 8, drop_last=False)]
    assert all(steps == expected for steps in seen)


def test_logs_have_the_names_of_dpo_trainers_too(run):
    """Accuracy and margin of an untrained model on the training pairs, from its final rewards."""
    still = run("explicit", training={"batch_size": 24, "learning_rate": 0.0, "logging_steps": 1})
    (entry,) = still.read()["training"]["log"]
    chosen, rejected = (rewards(still, name="train")[f"{side}_reward"] for side in ("chosen", "rejected"))
    assert entry["rewards/accuracies"] == entry["accuracy"] == pytest.approx((chosen > rejected).mean(), rel=1e-6)
    assert entry["rewards/margins"] == entry["margin"] == pytest.approx((chosen - rejected).mean(), rel=1e-5)


def test_the_term_of_footnote_7_is_added_with_its_weight(run):
    """Before a step, the logged loss with weight 0.5 exceeds Eq. 7's by 0.5 * mean of -ln pi(y+|x)."""
    step = {"batch_size": 24, "learning_rate": 0.0, "logging_steps": 1}
    without, with_term = (
        run(type_name, type_name, training=step).read()["training"]["log"][0]["pair_loss"]
        for type_name in ("generative", "generative_lambda")
    )
    log_probs = run("no_reference", "plain", training=step)
    expected = -0.5 * rewards(log_probs, name="train")["chosen_reward"].mean()
    assert with_term - without == pytest.approx(expected, rel=1e-5)


def test_bfloat16_weights_keep_a_float32_head(run, pairs):
    directory = run("explicit", base={"dtype": "bfloat16"}, architecture="qwen2")
    saved = weights(directory)
    assert saved["score.weight"].dtype == torch.float32
    assert saved["model.embed_tokens.weight"].dtype == torch.bfloat16
    again = load_reward_model(str(directory.model)).score_pairs(load_preferences("test.jsonl", root=pairs), 16)
    assert (again == rewards(directory)[["chosen_reward", "rejected_reward"]].to_numpy()).all()
    assert len(set(again.ravel().tolist())) == again.size  # no ties from a coarse grid


def test_divergence_stops_the_run_and_leaves_no_result(run, tmp_path):
    with pytest.raises(RmkitError, match="not finite"):
        run("explicit", training={"learning_rate": 1e30, "num_train_epochs": 3, "logging_steps": 1})
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "model").exists()


def test_a_model_that_reloads_differently_fails_the_run(run, tmp_path, monkeypatch):
    from rmkit.training import saving as module

    def forgetful(directory, model, state_dict, *rest):
        state_dict = state_dict | {"score.weight": state_dict["score.weight"] * 2}
        return original(directory, model, state_dict, *rest)

    original = module.save
    monkeypatch.setattr(module, "save", forgetful)
    with pytest.raises(RmkitError, match=r"score.weight in .* is not the one that was trained"):
        run("explicit")
    assert not (tmp_path / "run" / "run.json").exists()
