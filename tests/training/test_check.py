"""`rmkit check`: its counts, estimates and examples against arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

from rmkit.commands.check import check
from rmkit.config.recipe import Recipe, load_recipe
from rmkit.data.preferences import PreferencePair
from rmkit.reward_models import make_reward_model
from rmkit.reward_models.origins import ModelRef
from rmkit.training import launch
from rmkit.training.checking import examples, memory, token_counts, work
from rmkit.training.preparation import encode, load_config, load_data, load_encoder, lora_config

LONG = "Could you please explain to me in your own words how bread is baked at home?"  # 16 words


def prompts(*texts: str) -> list[PreferencePair]:
    return [PreferencePair(text, "yes", "no") for text in texts]


@pytest.fixture
def recipe_file(models: dict[str, Path], tmp_path: Path) -> Path:
    """Seven training pairs; three test pairs, of which one prompt is a training prompt and one shares 13 words."""
    training = [(f"{LONG} ({number})", f"Mix it {number} times.", "No, wait.") for number in range(5)]
    training += [("Why?", "same", "same"), ("Why me?", "xyz " * 50, "Bake it.")]
    test = [(f"{LONG} (2)", "Yes, mix flour.", "No."), (f"Now: {LONG.upper()}", "No.", "Yes!"), ("Who?", "a", "b")]
    for name, rows in (("train", training), ("test", test)):
        lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    recipe = {
        "base": {"name": str(models["llama"]), "date_string": "26 Jul 2024"},
        "reward_model": {"type": "explicit"},
        "data": {
            "root": str(tmp_path),
            "max_length": 150,
            "train": {"name": "train", "path": "train.jsonl", "split": "train"},
            "evaluation": [{"name": "test", "path": "test.jsonl"}],
        },
        "training": {"num_train_epochs": 3, "batch_size": 4, "per_device_train_batch_size": 2},
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def run(path: Path, *overrides: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(check)
    result = CliRunner().invoke(app, [str(path), *overrides], env={"COLUMNS": "140"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def parts(path: Path, *overrides: str) -> tuple[Recipe, Any, Any]:
    recipe = load_recipe(path, overrides)
    encoder, _ = load_encoder(recipe, ModelRef(name=str(recipe.base.name)))
    return recipe, encoder, make_reward_model(recipe.reward_model, encoder)


# --- example texts -------------------------------------------------------------------------------------------------


def test_examples_show_where_each_type_reads(recipe_file: Path) -> None:
    recipe, encoder, _ = parts(recipe_file)
    pair = PreferencePair("Why?", "Mix it.", "No.")
    shown = {example.type: example for example in examples(recipe, encoder, pair)}
    head = "<bos><|start|>system<|sep|>Today Date: 26 Jul 2024<|eot|><|start|>user<|sep|>"
    for name in ("explicit", "implicit"):
        assert shown[name].prompt == f"{head}Why?<|eot|><|start|>assistant<|sep|>"
        assert shown[name].response == "Mix it.<|eot|>"
        assert (shown[name].last, shown[name].bos, shown[name].eos) == ("<|eot|>", 1, 3)
    question = "Question: Why?\nAnswer: Mix it.\nVerification: Is the answer correct (Yes/No)?"
    assert shown["generative"].prompt == f"{head}{question}<|eot|><|start|>assistant<|sep|>"
    assert (shown["generative"].response, shown["generative"].last, shown["generative"].eos) == ("", "<|sep|>", 2)


def test_a_base_that_does_not_support_a_type_is_reported(recipe_file: Path) -> None:
    recipe, encoder, _ = parts(recipe_file)
    settings = load_recipe(recipe_file, ["reward_model={type: generative, yes_token: xylophone}"]).reward_model
    verbose = recipe.model_copy(update={"reward_model": settings})
    shown = {example.type: example.problem for example in examples(verbose, encoder, PreferencePair("a", "b", "c"))}
    assert shown["explicit"] is None
    assert "'xylophone' is not one token" in str(shown["generative"])


# --- steps, tokens and memory --------------------------------------------------------------------------------------


def test_steps_and_tokens(recipe_file: Path) -> None:
    recipe, encoder, reward_model = parts(recipe_file)
    pairs = encode(recipe, load_data(recipe), reward_model)["train"]
    assert pairs.dropped == {"identical responses": 1, "longer than 150 tokens": 1}
    assert token_counts(encoder, pairs) == ("1", "3")
    counted = work(recipe, pairs, None, "shared")
    # 5 pairs in micro-batches of 2 are 3; two micro-batches a step make 2 steps an epoch, 6 in 3 epochs.
    assert (counted.pairs, counted.accumulation, counted.steps_per_epoch, counted.steps) == (5, 2, 2, 6)
    texts = [text for pair in pairs.pairs for text in (pair.prompt, pair.chosen, pair.prompt, pair.rejected)]
    template = len(encoder.response_sequences(["x"], ["x"])[0]) - 2  # "x" is one token
    words = sum(len(each) for each in encoder.tokenizer(texts, add_special_tokens=False)["input_ids"])
    assert counted.tokens == words + 10 * template
    both = [(one.ids, other.ids) for one, other in zip(pairs.chosen, pairs.rejected, strict=True)]
    assert (
        counted.shared
        == sum(next(i for i, (a, b) in enumerate(zip(*each, strict=False)) if a != b) for each in both)
        > 0
    )
    assert work(recipe, pairs, None, "padded").shared == 0
    two = launch.LaunchPlan("two", 2, "none", {})
    assert (work(recipe, pairs, two, "shared").accumulation, work(recipe, pairs, two, "shared").steps_per_epoch) == (
        1,
        2,
    )
    assert work(load_recipe(recipe_file, ["training.max_steps=4"]), pairs, None, "shared").steps == 4


@pytest.mark.parametrize("type_name", ["explicit", "implicit"])
def test_memory_follows_the_estimators_formulas(models: dict[str, Path], recipe_file: Path, type_name: str) -> None:
    recipe, _, reward_model = parts(recipe_file, f"reward_model={{type: {type_name}}}")
    config = load_config(recipe, ModelRef(name=str(recipe.base.name)))
    weights = load_file(models["llama"] / "model.safetensors")
    sizes = [tensor.numel() for name, tensor in weights.items() if type_name == "implicit" or "lm_head" not in name]
    sizes += [config.hidden_size] if type_name == "explicit" else []  # the reward head
    total = sum(sizes)

    def plan(sharding: str) -> launch.LaunchPlan:
        return launch.LaunchPlan(sharding, 4, sharding, {"deepspeed_config": {"offload_optimizer_device": "none"}})

    assert (
        memory(recipe, reward_model, config, None).per_gpu == 4 * 4 * total
    )  # float32: weights, gradients, two moments
    assert memory(recipe, reward_model, config, plan("zero2")).per_gpu == 2 * total + 18 * total // 4
    found = memory(recipe, reward_model, config, plan("zero3"))
    assert found.per_gpu == 4 * max(sizes) + 18 * total // 4
    assert found.parameters == found.trainable == total
    half = load_recipe(recipe_file, [f"reward_model={{type: {type_name}}}", "base.dtype=bfloat16"])
    assert memory(half, reward_model, config, None).per_gpu == 4 * 2 * total


def test_memory_under_adapters(models: dict[str, Path], recipe_file: Path) -> None:
    recipe, _, reward_model = parts(recipe_file, "reward_model={type: implicit}", "lora.r=4")
    config = load_config(recipe, ModelRef(name=str(recipe.base.name)))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(models["llama"]), lora_config(recipe, reward_model))
    trainable, total = model.get_nb_trainable_parameters()
    found = memory(recipe, reward_model, config, None)
    assert (found.trainable, found.parameters) == (trainable, total)
    assert found.per_gpu == 16 * trainable + 4 * (total - trainable)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_one_screen(recipe_file: Path) -> None:
    result = run(recipe_file, "distributed=cpu")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) < 40
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("train ", "test "))}
    assert (rows["train"][0], rows["train"][-2:]) == ("5", ["1", "1"])
    assert (rows["test"][0], rows["test"][-4:]) == ("3", ["1", "2", "0", "0"])
    assert "* explicit: " in result.output
    assert "Every training sequence has BOS 1, EOS 3." in result.output
    assert "2 steps per epoch, 6 steps in total (processes: 1, micro-batches per step: 2)" in " ".join(
        result.output.split()
    )
    assert "accelerate's estimator" in result.output
    assert not (recipe_file.parent / "run").exists()


def test_check_does_not_build_a_base(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    result = run(recipe_file, "base={build: {steps: 1}}")
    assert result.exit_code == 0
    assert "is not built yet" in result.output
    assert not (tmp_path / "cache").exists()


def test_mistakes_are_reported_in_one_line(recipe_file: Path) -> None:
    for override, message in (
        ("base.name=./nowhere", "No tokenizer could be loaded from ./nowhere"),
        ("data.train.path=gone.jsonl", "gone.jsonl does not exist"),
        ("distributed=zero9", "Accelerate configuration not found: zero9"),
        ("training.per_device_train_batch_size=3", "is not a multiple of"),
    ):
        result = run(recipe_file, override)
        assert result.exit_code == 2
        assert message in " ".join(line for line in result.output.splitlines() if line.startswith("error: "))
        assert "Traceback" not in result.output
