"""QLoRA: a base in 4 bit under float32 adapters. What needs no bitsandbytes is fast; the rest runs it on a CPU."""

from __future__ import annotations

import json
import shutil
import tomllib

import pytest
import torch
from conftest import REPOSITORY
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import TYPES
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from typer.testing import CliRunner

from rmkit import RmkitError, load_recipe, load_reward_model
from rmkit.cli import app
from rmkit.models import quantization
from rmkit.models.quantization import BYTES, quantized_layers, require_four_bit, train_in_float32
from rmkit.reward_models import loading, make_reward_model
from rmkit.reward_models.origins import ModelRef
from rmkit.runs.directory import RunDirectory
from rmkit.train import train
from rmkit.training import preflight
from rmkit.training.checking import memory
from rmkit.training.explicit import ExplicitTrainer
from rmkit.training.preparation import check_four_bit, load_config, load_encoder, trainer_arguments

PROMPT, CHOSEN, REJECTED = "How do I bake bread?", "Mix flour, water, salt and yeast.", "Wait."


@pytest.fixture
def recipe(models, pairs, tmp_path):
    """The path of a recipe that trains adapters on a base in 4 bit; keywords change its sections."""

    def write(base=None, **sections):
        content = {
            "base": {"name": str(models["qwen2"]), "load_in": "4bit"} | (base or {}),
            "reward_model": {"type": "explicit"},
            "data": {"root": str(pairs), "train": {"name": "train", "path": "train.jsonl"}},
            "lora": {"r": 4},
            "training": {"num_train_epochs": 1, "learning_rate": 1e-3, "batch_size": 8},
            "output_dir": str(tmp_path / "run"),
        } | sections
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return path

    return write


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "cause"),
    [
        ({"lora": None}, "base.load_in: 4bit trains adapters only, so give a section lora"),
        ({"base": {"load_in": "8bit"}}, "base.load_in"),
        ({"base": {"name": None, "build": {}}}, "base.load_in is for a pretrained model"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(recipe, sections, cause):
    with pytest.raises(RmkitError, match=cause):
        load_recipe(recipe(**sections))


@pytest.mark.parametrize("command", ["train", "check"])
def test_a_cpu_refuses_in_two_lines_and_writes_nothing(recipe, tmp_path, command):
    path = recipe()
    shown = CliRunner().invoke(app, [command, str(path)]) if command == "check" else None
    if shown is None:
        with pytest.raises(RmkitError) as refused:
            train(load_recipe(path))
        lines = [f"error: {refused.value.cause}", f"  fix: {refused.value.remedy}"]
    else:
        assert shown.exit_code == 2
        lines = [line for line in shown.stderr.splitlines() if line]
    assert lines == [
        "error: base.load_in: 4bit needs a GPU; none is visible.",
        "  fix: Leave base.load_in out, or train on a GPU.",
    ]
    assert not (tmp_path / "run").exists()
    recipe(base={"load_in": None})  # the remedy
    assert CliRunner().invoke(app, ["check", str(path)]).exit_code == 0


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(RmkitError) as refused:
        require_four_bit("base.load_in: 4bit", "", gpu=True)
    assert refused.value.cause == "base.load_in: 4bit needs the package bitsandbytes, which is not installed."
    assert refused.value.remedy == 'Install it with `pip install "rmkit[qlora]"`.'
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [requirement.partition(">")[0] for requirement in extras["qlora"]] == ["bitsandbytes"]


def test_bases_that_cannot_be_quantized_are_refused_before_they_are_read(recipe, models, tmp_path):
    gguf, adapter, quantized = (tmp_path / name for name in ("gguf", "adapter", "quantized"))
    gguf.mkdir()
    (gguf / "model.gguf").touch()
    get_peft_model(AutoModelForCausalLM.from_pretrained(models["qwen2"]), LoraConfig(r=2)).save_pretrained(adapter)
    quantized.mkdir()
    config = json.loads((models["qwen2"] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    for folder, cause in [(gguf, "a GGUF file"), (adapter, "an adapter"), (quantized, "is quantized already")]:
        with pytest.raises(RmkitError, match=cause):
            check_four_bit(load_recipe(recipe(base={"name": str(folder)})), None)
        check_four_bit(load_recipe(recipe(base={"name": str(folder), "load_in": None})), None)  # the remedy
    for sharding in ("zero2", "zero3"):
        with pytest.raises(RmkitError, match=f"DeepSpeed \\({sharding}\\)") as refused:
            check_four_bit(load_recipe(recipe()), sharding)
        assert refused.value.remedy.startswith("Use distributed: ddp")
    check_four_bit(load_recipe(recipe()), "none")


def test_modules_in_4_bit_are_not_trained_whole(recipe):
    def needed(*modules):
        loaded = load_recipe(recipe(lora={"r": 4, "modules_to_save": list(modules)}))
        return sizes(loaded)

    for module in ("q_proj", "mlp", "layers.0.self_attn"):
        with pytest.raises(RmkitError, match=f"lora.modules_to_save: {module} is in 4 bit"):
            needed(module)
    assert needed("norm").quantized == needed().quantized > 0


# --- what is quantized, and the memory -----------------------------------------------------------------------------


def sizes(loaded):
    base = ModelRef(name=str(loaded.base.name))
    reward_model = make_reward_model(loaded.reward_model, load_encoder(loaded, base)[0])
    return memory(loaded, reward_model, load_config(loaded, base), None)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt_neox"])
@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModelForSequenceClassification])
def test_linear_layers_are_quantized_without_head_and_unembedding(models, architecture, auto_class):
    model = auto_class.from_pretrained(models[architecture], num_labels=1)
    found = {name.rpartition(".")[2] for name in quantized_layers(model)}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert found == {"qwen2": projections, "gpt_neox": {"query_key_value", "dense", *GPT_NEOX}}[architecture]


GPT_NEOX = ("dense_h_to_4h", "dense_4h_to_h")


@pytest.mark.parametrize("type_name", ["explicit", "implicit"])
def test_memory_counts_quantized_weights_in_4_bit(recipe, models, type_name):
    settings = {"reward_model": {"type": type_name}}
    whole, quantized = (sizes(load_recipe(recipe(base={"load_in": bits}, **settings))) for bits in (None, "4bit"))
    model = AutoModelForCausalLM.from_pretrained(models["qwen2"])
    numbers = [tensor.numel() for name, tensor in model.named_parameters() if "proj.weight" in name]
    assert quantized.quantized == sum(numbers)
    assert (quantized.parameters, quantized.trainable) == (whole.parameters, whole.trainable)
    assert whole.quantized == 0
    assert whole.per_gpu - quantized.per_gpu == 4 * sum(numbers) - int(sum(numbers) * BYTES)
    assert pytest.approx(4 + 0.127, abs=1e-4) == 8 * BYTES  # QLoRA, Section 3: 0.127 bits for the constants


# --- training ------------------------------------------------------------------------------------------------------


def test_all_that_is_trained_is_float32_although_trl_casts_it(recipe, models):
    """What TRL does with `is_loaded_in_4bit`, on a model that is not: so without bitsandbytes."""
    loaded = load_recipe(recipe())
    base = ModelRef(name=str(loaded.base.name))
    reward_model = make_reward_model(loaded.reward_model, load_encoder(loaded, base)[0])
    model = loading.load_model(reward_model, base)
    head = model.score.weight.detach().clone()
    model.is_loaded_in_4bit = True
    trainer = ExplicitTrainer(
        model=model,
        args=trainer_arguments(loaded, 1, use_cpu=True, bf16=False),
        train_dataset=Dataset.from_dict({"row": [0], "tokens": [1]}),
        data_collator=lambda rows: rows,
        processing_class=reward_model.encoder.tokenizer,
        peft_config=LoraConfig(r=2, modules_to_save=["score", "norm"], task_type="SEQ_CLS"),
        reward_model=reward_model,
    )
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.bfloat16}  # the contract with TRL
    train_in_float32(trainer.model)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    (name,) = (name for name in trained if "score" in name)
    assert torch.equal(trained[name], head)
    assert not torch.equal(head, head.bfloat16().float())  # the control: the cast had rounded it
    assert trained[name].data_ptr() != trainer.model.base_model.model.score.original_module.weight.data_ptr()


# --- loading -------------------------------------------------------------------------------------------------------


def score(model, **options):
    return load_reward_model(str(model), device="cpu", **options).score([PROMPT] * 2, [CHOSEN, REJECTED])


def test_a_model_trained_in_4_bit_is_scored_on_a_cpu_only_when_asked(run):
    model = run("implicit", lora={"r": 4}).model
    whole = score(model)
    with pytest.raises(RmkitError, match="load_in '8bit' is unknown"):
        score(model, load_in="8bit")
    record = json.loads((model / "reward_model.json").read_text())
    (model / "reward_model.json").write_text(json.dumps(record | {"load_in": "4bit"}))
    with pytest.raises(RmkitError) as refused:
        score(model)
    assert refused.value.cause == f"The base of {model} in 4 bit needs a GPU; none is visible."
    assert refused.value.remedy == 'Load it unquantized: --load-in none (load_in="none").'
    scorer = load_reward_model(str(model), load_in="none")
    assert any("not quantized; it was in 4 bit in training" in note for note in scorer.checkpoint.notes)
    assert (score(model, load_in="none") == whole).all()


def test_a_whole_model_is_not_loaded_in_4_bit(run):
    model = run("explicit").model
    with pytest.raises(RmkitError, match="is a whole model") as refused:
        score(model, load_in="4bit")
    assert refused.value.remedy == "Remove --load-in (load_in=)."
    assert "load_in" not in str(load_reward_model(str(model)).checkpoint.notes)


# --- with bitsandbytes ---------------------------------------------------------------------------------------------


@pytest.fixture
def on_a_cpu(monkeypatch):
    """bitsandbytes on a CPU, which rmkit refuses: there it would also pack weights anew for scoring."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: False)
    for module in (quantization, preflight, loading):
        monkeypatch.setattr(module, "require_four_bit", lambda *args: None)


def log_probs(model, tokenizer):
    """ln pi of both responses, by transformers alone."""
    sums = []
    for response in (CHOSEN, REJECTED):
        messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}]
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
        ids = torch.tensor([tokenizer.apply_chat_template(messages, return_dict=False)])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
        sums.append(torch.log_softmax(logits, -1).gather(-1, ids[0, len(prompt) :, None]).sum())
    return torch.stack(sums)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("type_name", ["explicit", "implicit", "generative"])
def test_a_run_in_4_bit_reloads_to_its_rewards(on_a_cpu, run, models, type_name, dtype):
    directory = run(type_name, base={"load_in": "4bit", "dtype": dtype}, lora={"r": 4})  # compares after saving
    record = json.loads((directory.model / "reward_model.json").read_text())
    assert (record["load_in"], record["adapter"]) == ("4bit", True)
    scorer = load_reward_model(str(directory.model), device="cpu")
    assert scorer.checkpoint.notes[-1].endswith("is loaded in 4 bit (NF4), as in training.")
    model = scorer.checkpoint.model
    linear = model.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert (linear.weight.quant_state.quant_type, linear.weight.quant_state.nested) == ("nf4", True)
    assert {weight.dtype for name, weight in model.named_parameters() if "lora_" in name} == {torch.float32}
    if type_name == "explicit":
        assert model.score.weight.dtype == torch.float32
        assert type(model.score.original_module).__name__ == "RewardHead"
    rewards = scorer.score([PROMPT] * 2, [CHOSEN, REJECTED])
    assert (rewards != score(directory.model, load_in="none")).all()
    if type_name != "implicit":
        return
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    base = AutoModelForCausalLM.from_pretrained(
        models["qwen2"], quantization_config=quantized, dtype=getattr(torch, dtype)
    )
    tokenizer = AutoTokenizer.from_pretrained(directory.model)
    with torch.no_grad():
        reference = log_probs(base, tokenizer)
        theirs = log_probs(PeftModel.from_pretrained(base, directory.model), tokenizer)
    expected = TYPES["implicit"]["beta"] * (theirs - reference)
    assert (torch.as_tensor(rewards) - expected).abs().max() < (1e-6 if dtype == "float32" else 2e-2)


@pytest.mark.slow
def test_an_untrained_implicit_model_in_4_bit_has_reward_zero(on_a_cpu, run):
    """The reference is the quantized base; its outputs have another place in the store than the whole one's."""
    history = {}
    for bits in (None, "4bit"):
        directory = run("implicit", name=f"run{bits}", base={"load_in": bits}, lora={"r": 4})
        record = directory.read()
        history[bits] = record["history"][0]["sets"]["test"]
        assert record["timings"]["reference_seconds"] > 0
    for metrics in history.values():
        assert metrics["tie_rate"] == 1
        assert metrics["accuracy"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{"use_dora": True}, {"modules_to_save": ["norm"]}])
def test_dora_and_whole_modules_train_on_a_base_in_4_bit(on_a_cpu, run, lora):
    record = run("explicit", base={"load_in": "4bit"}, lora={"r": 4} | lora).read()
    assert record["reward_model"]["load_in"] == "4bit"


@pytest.mark.slow
def test_a_resumed_run_in_4_bit_ends_as_one_in_one_piece(on_a_cpu, run, tmp_path, capsys):
    training = {"num_train_epochs": 2, "save_strategy": "epoch"}
    options = {"base": {"load_in": "4bit"}, "lora": {"r": 4}, "training": training, "resume": "auto"}
    whole = score(run("implicit", **options).model)
    run_dir = RunDirectory(tmp_path / "run")
    run_dir.record.unlink()
    shutil.rmtree(run_dir.model)
    shutil.rmtree(max((run_dir.path / "checkpoints").glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime))
    assert (score(run("implicit", **options).model) == whole).all()
    assert "Resuming from" in capsys.readouterr().out
