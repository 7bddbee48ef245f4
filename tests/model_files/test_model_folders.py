"""A model folder is scored as saved: every weight is used, and no folder causes a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config

from rmkit import RmkitError, load_reward_model
from rmkit.models.language_model import load
from rmkit.reward_models.loading import has_saved_head
from rmkit.reward_models.origins import ModelRef

PAIRS = [("How do I bake bread?", "Mix flour and water."), ("why?", "No.")]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A language model (untied), one that ties its embeddings, and a classifier of the first."""
    place = tmp_path_factory.mktemp("folders")
    made = {"causal": tiny.save_language_model(place / "causal", "llama")}
    made["tied"] = tiny.save_language_model(place / "tied", "qwen2")
    made["other"] = tiny.save_language_model(place / "other", "qwen2", seed=1)
    for name, base in (("classifier", "causal"), ("tied_classifier", "tied")):
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_pretrained(made[base], num_labels=1).save_pretrained(place / name)
        for file in made[base].glob("tokenizer*"):
            shutil.copy(file, place / name)
        if (made[base] / "chat_template.jinja").exists():
            shutil.copy(made[base] / "chat_template.jinja", place / name)
        made[name] = place / name
    return made


@pytest.fixture
def copy(folders, tmp_path):
    """A copy of a folder, to be damaged."""

    def made(name, place="model"):
        return shutil.copytree(folders[name], tmp_path / place)

    return made


def rewards(folder, *args, **options):
    options = {"date_string": "26 Jul 2024"} | options
    return load_reward_model(str(folder), *args, **options).score(*zip(*PAIRS, strict=True))


def generative(folder):
    return rewards(folder, "generative")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def shard(folder, shards=3):
    """Save the weights again in shards with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(weights), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        some = {name: weights[name] for name in names[number::shards]}
        save_file(some, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(some, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


# --- weights and their places --------------------------------------------------------------------------------------

WITHOUT_A_PLACE = {
    "bias of the head": ("classifier", "score.bias", (1,)),
    "bias of a projection": ("classifier", "model.layers.0.self_attn.q_proj.bias", (32,)),
    "unmerged adapter": ("classifier", "model.layers.0.self_attn.q_proj.lora_A.weight", (4, 32)),
    "base_layer": ("causal", "model.layers.0.self_attn.q_proj.base_layer.weight", (32, 32)),
    "more layers": ("causal", "model.layers.2.input_layernorm.weight", (32,)),
    "an extra module": ("causal", "value_head.weight", (1, 32)),
    "an extra head": ("classifier", "v_head.summary.weight", (1, 32)),
    "lm_head beside a head": ("classifier", "lm_head.weight", (8, 32)),
    "a prefix": ("causal", "module.model.norm.weight", (32,)),
}


@pytest.mark.parametrize("case", WITHOUT_A_PLACE)
def test_a_weight_without_a_place_is_refused_by_name(copy, case):
    name, weight, shape = WITHOUT_A_PLACE[case]
    folder = copy(name)
    options = [] if name == "classifier" else ["generative"]
    before = rewards(folder, *options)
    change_weights(folder, lambda weights: weights.update({weight: torch.ones(shape)}))
    with pytest.raises(RmkitError, match="have no place in") as error:
        rewards(folder, *options)
    assert weight in error.value.cause
    assert str(folder) in error.value.cause
    change_weights(folder, lambda weights: weights.pop(weight))  # the remedy: save it without them
    assert (rewards(folder, *options) == before).all()


def test_two_weights_for_one_place_are_refused(copy):
    """transformers accepts names with and without the base model's prefix, and silently loads one of the two."""
    folder = copy("causal")
    before, long = generative(folder), "model.layers.0.self_attn.q_proj.weight"
    short = long.removeprefix("model.")
    change_weights(folder, lambda weights: weights.update({short: 2 * weights[long]}))
    with pytest.raises(RmkitError, match=f"{folder} has two weights for the same place .*: {long} and {short}"):
        generative(folder)
    change_weights(folder, lambda weights: weights.pop(short))  # the remedy
    assert (generative(folder) == before).all()
    change_weights(folder, lambda weights: weights.update({short: weights.pop(long)}))  # without prefix, one of them
    assert (generative(folder) == before).all()


def test_old_buffers_and_an_unembedding_need_no_place(copy):
    folder = copy("causal")
    before = generative(folder)
    change_weights(
        folder, lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    assert (generative(folder) == before).all()
    assert "lm_head.weight" in load_file(folder / "model.safetensors")
    load(AutoModelForSequenceClassification, folder, num_labels=1)
    assert not has_saved_head(ModelRef(name=str(folder)))


def test_masks_of_old_gpt2_files_need_no_place(tmp_path):
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    masks = {"attn.bias": torch.ones(1, 1, 32, 32), "attn.masked_bias": torch.tensor(-1e4)}
    change_weights(tmp_path, lambda weights: weights.update({f"transformer.h.0.{key}": masks[key] for key in masks}))
    load(AutoModelForSequenceClassification, tmp_path, num_labels=1)
    assert has_saved_head(ModelRef(name=str(tmp_path)))
    change_weights(tmp_path, lambda weights: weights.update({"transformer.h.0.attn.c_attn.scale": torch.ones(1)}))
    with pytest.raises(RmkitError, match="have no place"):
        load(AutoModelForSequenceClassification, tmp_path, num_labels=1)


@pytest.mark.parametrize("name", ["classifier", "tied_classifier"])
def test_a_classifier_is_not_a_language_model(folders, name):
    with pytest.raises(RmkitError, match=r"lacks weights: lm_head|score.weight") as error:
        generative(folders[name])
    if name == "tied_classifier":  # all that a language model needs is there
        assert "--type explicit" in error.value.remedy
        rewards(folders[name], "explicit")


def test_missing_weights_and_wrong_shapes_are_named(copy):
    for number, (change, cause) in enumerate(
        [
            (
                lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"),
                "lacks weights: model.layers.1.mlp.up_proj",
            ),
            (lambda weights: weights.pop("model.embed_tokens.weight"), "lacks weights: model.embed_tokens.weight"),
            (
                lambda weights: weights.update({"model.norm.weight": torch.ones(31)}),
                r"model.norm.weight has shape \[31\], but config.json requires \[32\]",
            ),
        ]
    ):
        folder = copy("causal", f"model{number}")
        change_weights(folder, change)
        with pytest.raises(RmkitError, match=cause):
            generative(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_named(copy, value, dtype):
    folder = copy("classifier")

    def change(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value

    change_weights(folder, change)
    with pytest.raises(RmkitError, match=r"the weight model.layers.1.mlp.up_proj.weight has entries that are NaN"):
        rewards(folder, dtype=dtype)


def test_rewards_that_are_not_finite_are_refused_in_python_too(copy):
    folder = copy("classifier")
    change_json(folder / "config.json", rms_norm_eps=float("nan"))
    with pytest.raises(RmkitError, match="values that are not finite") as error:
        rewards(folder)
    assert str(folder) in error.value.cause
    change_json(folder / "config.json", rms_norm_eps=1e-6)  # the remedy: what config.json says
    assert np.isfinite(rewards(folder)).all()


def test_tied_weights_that_differ_are_refused(copy):
    folder = copy("tied")
    embeddings = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    before = generative(folder)
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": embeddings.clone()}))
    assert (generative(folder) == before).all()
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": -embeddings}))
    with pytest.raises(RmkitError, match=r"ties lm_head.weight to model.embed_tokens.weight, but they differ"):
        generative(folder)
    change_json(folder / "config.json", tie_word_embeddings=False)  # the remedy
    assert (generative(folder) != before).any()
    change_json(folder / "config.json", tie_word_embeddings=True)
    embeddings[3] = torch.nan  # which differs from itself
    both = {"lm_head.weight": embeddings.clone(), "model.embed_tokens.weight": embeddings}
    change_weights(folder, lambda weights: weights.update(both))
    with pytest.raises(RmkitError, match=r"lm_head.weight has entries that are NaN"):
        generative(folder)


def test_weights_are_found_through_an_index(copy):
    folder = copy("classifier")
    before = rewards(folder)
    weight_map = shard(folder)
    assert rewards(folder) == pytest.approx(before, rel=1e-5)  # weights lie at other addresses
    # Stray files are not read, in either precision, and the user is told of them.
    save_file({"score.weight": torch.full((1, 32), 7.0)}, folder / "stray.safetensors", metadata={"format": "pt"})
    for dtype in ("float32", "bfloat16"):
        scorer = load_reward_model(str(folder), dtype=dtype, date_string="26 Jul 2024")
        head = load_file(folder / weight_map["score.weight"])["score.weight"]
        assert torch.equal(scorer.checkpoint.model.score.weight, head)
        (note,) = [note for note in scorer.checkpoint.notes if "stray" in note]
        assert "stray.safetensors not used" in note


def test_an_index_that_contradicts_its_files_is_refused(copy):
    folder = copy("classifier")
    weight_map = shard(folder)
    index = folder / "model.safetensors.index.json"

    def refused(changed, cause):
        index.write_text(json.dumps({"metadata": {}, "weight_map": changed}))
        with pytest.raises(RmkitError, match=cause):
            rewards(folder)

    other = next(file for file in weight_map.values() if file != weight_map["score.weight"])
    refused(weight_map | {"score.weight": other}, "disagree on the weight score.weight")
    refused({name: file for name, file in weight_map.items() if name != "score.weight"}, "disagree on the weight score")
    refused(weight_map | {"score.weight": "gone.safetensors"}, "lacks gone.safetensors, which its index names")
    for outside in ("../other.safetensors", "/etc/passwd", "../../etc/passwd", "..\\x.safetensors", "weights.bin"):
        refused(weight_map | {"score.weight": outside}, "which is not a safetensors file of this model")
    for content in ([], {}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {"score.weight": 3}}):
        index.write_text(json.dumps(content))
        with pytest.raises(RmkitError, match=r"weight_map|JSON object"):
            rewards(folder)
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert np.isfinite(rewards(folder)).all()


@pytest.mark.parametrize(
    "entries",
    [
        {"hidden_size": 10**9},
        {"intermediate_size": 10**9},
        {"vocab_size": 10**9},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 90_000},
        {"num_attention_heads": 10**9},
        {"num_labels": 10**9},
        {"head_dim": 10**9},
        {"num_hidden_layers": -1},
        {"hidden_size": -32},
    ],
    ids=str,
)
def test_sizes_are_compared_with_the_files_before_a_model_is_built(copy, entries):
    """Building any of these models would take all memory, or hours."""
    folder = copy("causal")
    change_json(folder / "config.json", **entries)
    with pytest.raises(RmkitError) as error:
        generative(folder)
    assert str(folder) in error.value.cause


def test_another_file_name_is_refused(copy):
    folder = copy("causal")
    change_json(folder / "config.json", transformers_weights="weights.safetensors")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(RmkitError, match="transformers_weights"):
        generative(folder)
    change_json(folder / "config.json", transformers_weights=None)  # the remedy
    (folder / "weights.safetensors").rename(folder / "model.safetensors")
    generative(folder)


def test_training_refuses_what_scoring_refuses(run, folders, copy):
    folder = copy("tied")
    change_weights(folder, lambda weights: weights.update({"v_head.weight": torch.ones(1, 32)}))
    with pytest.raises(RmkitError, match=r"have no place in .*: v_head.weight"):
        run(base={"name": str(folder)})
    with pytest.raises(RmkitError, match=r"have no place in .*: v_head.weight"):
        run("implicit", reward_model={"type": "implicit", "reference": str(folder)})
    with pytest.raises(RmkitError, match=r"have no place in .*: v_head.weight"):
        rewards(folders["tied"], "implicit", reference=str(folder))


@pytest.mark.dist
def test_zero3_refuses_the_same_on_both_processes(folders, copy, pairs, tmp_path):
    """transformers reports no unexpected weights under ZeRO-3; a weight that is not finite is on one process only."""
    extra, broken = copy("causal", "extra"), copy("causal", "broken")
    change_weights(extra, lambda weights: weights.update({"v_head.weight": torch.ones(1, 32)}))
    change_weights(broken, lambda weights: weights["model.norm.weight"][-1:].fill_(float("nan")))
    adapter = tmp_path / "adapter"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folders["causal"]), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(adapter)
    merged = tmp_path / "merged"
    model.merge_and_unload().save_pretrained(merged)
    for file in folders["causal"].glob("*token*"):
        shutil.copy(file, merged)
    shutil.copy(folders["causal"] / "chat_template.jinja", merged)
    for base, said in (
        (extra, "have no place in LlamaForSequenceClassification: v_head.weight"),
        (broken, "the weight model.norm.weight has entries that are NaN or infinite"),
        (adapter, "cannot be merged into a model that ZeRO-3 partitions"),
        (merged, None),  # the remedy
    ):
        recipe = {
            "base": {"name": str(base), "date_string": "26 Jul 2024"},
            "reward_model": {"type": "explicit"},
            "data": {"root": str(pairs), "train": {"name": "train", "path": "train.jsonl", "split": "train"}},
            "training": {"max_steps": 1, "batch_size": 8},
            "output_dir": str(tmp_path / "run"),
        }
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        command = ["-m", "rmkit", "train", str(tmp_path / "recipe.yaml"), "distributed=cpu_zero3"]
        done = subprocess.run(
            [sys.executable, *command, "--num-processes", "2"], capture_output=True, text=True, timeout=400, check=False
        )
        assert (done.returncode == 0) == (said is None), done.stderr
        if said is not None:
            assert f"error: {base}" in done.stderr or f"error: The adapter {base}" in done.stderr
            assert said in done.stderr
