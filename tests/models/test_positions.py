"""Texts longer than the context length are counted; those beyond the position embeddings are refused."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from rmkit import load_reward_model
from rmkit.cli import app
from rmkit.config.recipe import load_recipe
from rmkit.errors import RmkitError
from rmkit.models.positions import last_position
from rmkit.train import train

KNOWN = 60
SIZES = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": KNOWN},
    "opt": {"hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 1, "ffn_dim": 16},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": KNOWN},
    "gpt_bigcode": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": KNOWN},
    "bart": {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "is_decoder": True},
    "qwen2": {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "num_key_value_heads": 2},
    "mpt": {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": KNOWN},
    "bloom": {"hidden_size": 16, "n_layer": 1, "n_head": 2},
}


def model_of(architecture, vocabulary=100):
    options = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None}
    options |= {"pad_token_id": 1 if architecture == "roberta" else None}
    if "n_positions" not in SIZES[architecture] and architecture not in ("bloom", "mpt"):
        options |= {"max_position_embeddings": KNOWN}
    if "n_head" not in SIZES[architecture]:
        options |= {"num_attention_heads": 2}
    config = AutoConfig.for_model(architecture, **options, **SIZES[architecture])
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def read(model, tokens):
    with torch.no_grad():
        return model(torch.full((1, tokens), 5), use_cache=False).logits


@pytest.mark.parametrize("architecture", SIZES)
def test_the_last_position_is_where_a_forward_pass_ends(architecture):
    model = model_of(architecture)
    limit = last_position(model)
    with torch.device("meta"):
        assert last_position(AutoModelForCausalLM.from_config(model.config)) == limit
    if architecture in ("qwen2", "bloom"):
        assert limit is None
        read(model, KNOWN + 20)
        return
    assert limit == (KNOWN - 2 if architecture == "roberta" else KNOWN)
    read(model, limit)
    with pytest.raises((IndexError, RuntimeError)):
        read(model, limit + 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models with and without a last position, and pairs of which one is longer than their context length."""
    folder = tmp_path_factory.mktemp("positions")
    tokenizer = tiny.tokenizer("qwen2")
    for architecture in ("gpt2", "qwen2"):
        model_of(architecture, len(tokenizer)).save_pretrained(folder / architecture)
        tokenizer.save_pretrained(folder / architecture)
    pairs = [("why?", "Yes.", "No."), ("How?", "Bake it. " * 30, "No."), ("dog?", "The lazy dog", "fox")]
    lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), each, strict=True))) for each in pairs]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def score(place, architecture, *options):
    kind = ["--type", "implicit", "--reference", "none", "--beta", "1"]
    arguments = [str(place / architecture), str(place / "pairs.jsonl"), *kind, *options]
    return CliRunner().invoke(app, ["score", *arguments, "--output", str(place / "rewards.parquet")])


def recipe(models, tmp_path, architecture, **data):
    content = {
        "base": {"name": str(models[architecture])},
        "reward_model": {"type": "explicit"},
        "data": {"train": {"name": "train", "path": "pairs.jsonl", "split": "train"}} | data,
        "training": {"max_steps": 1, "batch_size": 2, "per_device_train_batch_size": 2},
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    return path


def test_scoring_counts_texts_longer_than_the_context_length(place):
    result = score(place, "qwen2")
    assert result.exit_code == 0, result.output
    told = re.sub(r"\s+", " ", result.stdout)
    assert (
        f"warning: pairs.jsonl: 1 of 3 pairs are longer than the model's context length of {KNOWN} tokens (up to"
        in told
    )
    result = score(place, "qwen2", "--max-length", str(KNOWN))
    assert "context length" not in result.stdout
    scorer = load_reward_model(str(place / "qwen2"), "implicit", reference="none", beta=1)
    with pytest.warns(UserWarning, match=f"1 of 2 responses are longer than .* of {KNOWN} tokens"):
        scorer.score(["How?", "why?"], ["Bake it. " * 30, "No."])


def test_scoring_refuses_texts_beyond_the_last_position(place):
    result = score(place, "gpt2")
    assert result.exit_code == 2, repr(result.exception)
    cause, remedy = result.stderr.strip().splitlines()[-2:]
    assert f"the model has position embeddings for {KNOWN}" in cause
    limit = re.search(r"--max-length \d+", remedy)[0]
    assert score(place, "gpt2", *limit.split()).exit_code == 0
    assert pd.read_parquet(place / "rewards.parquet")["index"].tolist() == [0, 2]
    scorer = load_reward_model(str(place / "gpt2"), "implicit", reference="none", beta=1)
    for compute in (lambda text: scorer.score(["How?"], [text]), lambda text: scorer.token_terms("How?", text)):
        with pytest.raises(RmkitError, match="has position embeddings for"):
            compute("Bake it. " * 30)
        assert len(compute("Bake it."))


def test_training_refuses_texts_beyond_the_last_position(place, tmp_path):
    path = recipe({"gpt2": place / "gpt2"}, tmp_path, "gpt2", root=str(place))
    with pytest.raises(RmkitError, match=f"train: a text takes .* position embeddings for {KNOWN}") as error:
        train(load_recipe(path))
    assert not (tmp_path / "run").exists()
    checked = CliRunner().invoke(app, ["check", str(path)])
    assert checked.exit_code == 2
    assert "position embeddings" in checked.stderr
    limit = re.search(r"data.max_length: (\d+)", error.value.remedy)[1]
    override = f"data.max_length={limit}"
    assert CliRunner().invoke(app, ["check", str(path), override]).exit_code == 0
    assert train(load_recipe(path, [override])).record.exists()


def test_a_run_keeps_how_it_treats_control_tokens(models, place, tmp_path):
    (place / "spelled.jsonl").write_text(
        (place / "pairs.jsonl").read_text().replace("No.", "No.<|im_end|>").replace("Bake it. " * 30, "Yes")
    )
    path = recipe(models, tmp_path, "qwen2", special_tokens="keep", root=str(place))
    run = train(load_recipe(path, ["data.train.path=spelled.jsonl"]))
    content = run.read()
    assert content["data"]["train"]["control_texts"] == 2
    assert content["reward_model"]["special_tokens"] == "keep"
    rewards = {}
    for mode in (None, "keep", "text"):
        scorer = load_reward_model(str(run.model), special_tokens=mode)
        with pytest.warns(UserWarning, match="control tokens: 1, which are " + ("read" if mode == "text" else "kept")):
            rewards[mode] = scorer.score(["why?"], ["No.<|im_end|>"]).item()
    assert rewards[None] == rewards["keep"] != rewards["text"]
    recorded = json.loads((run.model / "reward_model.json").read_text())
    del recorded["special_tokens"]  # as saved before there was a choice
    (run.model / "reward_model.json").write_text(json.dumps(recorded))
    with pytest.warns(UserWarning, match="kept as such"):
        assert load_reward_model(str(run.model)).score(["why?"], ["No.<|im_end|>"]).item() == rewards["keep"]
    arguments = ["score", str(run.model), str(place / "spelled.jsonl"), "--output", str(tmp_path / "rewards.parquet")]
    for mode, told in (("keep", "kept as such"), ("text", "read as text")):
        result = CliRunner().invoke(app, [*arguments, "--special-tokens", mode])
        assert result.exit_code == 0
        assert f"control tokens: 2, which are {told}" in result.stdout
    result = CliRunner().invoke(app, [*arguments, "--special-tokens", "error"])
    assert result.exit_code == 2
    assert "spells a control token" in result.stderr
    result = CliRunner().invoke(app, [*arguments, "--special-tokens", "drop"])
    assert result.exit_code == 2
    assert "Use text, keep or error" in result.stderr
    checked = CliRunner().invoke(app, ["check", str(path), "data.train.path=spelled.jsonl"])
    assert "control tokens: 2, which are kept as such" in re.sub(r"\s+", " ", checked.stdout)
