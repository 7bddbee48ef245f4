"""GGUF files as bases: the same weights and rewards as the folder they were written from, and errors in two lines."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import gguf_name, write_gguf
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer
from typer.testing import CliRunner

from rmkit import RmkitError, load_reward_model
from rmkit.cli import app
from rmkit.config.recipe import Hub, load_recipe
from rmkit.hub.publication import TOKENIZER_FILES, build_publication
from rmkit.model_files import gguf
from rmkit.model_files.gguf import gguf_file, plain_folder
from rmkit.model_files.weights import folder_notes
from rmkit.train import train

PAIR = (["How do I bake bread?"], ["Mix flour, water, salt and yeast. Wait. Bake it."])


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def file(models, tmp_path_factory):
    """The model of `models["qwen2"]` in one file, in float32."""
    return write_gguf(models["qwen2"], tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def folder(file, models, tmp_path):
    """The file in a folder with the original tokenizer."""
    path = tmp_path / "folder"
    path.mkdir()
    shutil.copy(file, path)
    for pattern in TOKENIZER_FILES:
        for found in models["qwen2"].glob(pattern):
            shutil.copy(found, path)
    return path


def refusal(name) -> tuple[str, str]:
    with pytest.raises(RmkitError) as caught:
        plain_folder(str(name))
    assert "\n" not in caught.value.cause + caught.value.remedy
    return caught.value.cause, caught.value.remedy


def entries(tmp_path):
    cache = tmp_path / "cache" / "gguf"
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] if cache.exists() else []


# --- what is loaded --------------------------------------------------------------------------------------------------


def test_float32_weights_and_the_tokenizer_survive(file, models):
    plain = Path(plain_folder(str(file)))
    ours, original = load_file(plain / "model.safetensors"), load_file(models["qwen2"] / "model.safetensors")
    assert ours.keys() == original.keys()
    assert all(torch.equal(ours[name], original[name]) for name in ours)
    assert not hasattr(AutoConfig.from_pretrained(plain), "quantization_config")
    tokenizer, theirs = AutoTokenizer.from_pretrained(plain), AutoTokenizer.from_pretrained(models["qwen2"])
    assert tokenizer.chat_template == theirs.chat_template
    assert tokenizer.get_vocab() == theirs.get_vocab()
    assert tokenizer.eos_token == theirs.eos_token


def test_quantized_weights_are_scale_times_integer(models, tmp_path):
    """Q8_0: rows in blocks of 32 numbers, of which each is an int8 times the block's float16 scale."""
    file = write_gguf(models["qwen2"], tmp_path / "q8.gguf", quantized=True)
    ours = load_file(Path(plain_folder(str(file))) / "model.safetensors")
    original = load_file(models["qwen2"] / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert gguf_name(name) == "blk.0.attn_q.weight"
    blocks = original[name].numpy().reshape(-1, 32)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / 127
    integers = np.round(blocks / scales)
    expected = (integers * scales.astype(np.float16).astype(np.float32)).reshape(original[name].shape)
    np.testing.assert_allclose(ours[name].numpy(), expected, rtol=0, atol=1e-6)
    assert not torch.equal(ours[name], original[name])
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}


def test_rewards_are_those_of_the_original_folder(folder, models):
    """Its tokenizer is the folder's own; llama.cpp's format has no place for all of it."""
    options = {"type": "implicit", "reference": "none", "beta": 0.5}
    ours = load_reward_model(str(folder), **options).score(*PAIR)
    assert list(ours) == list(load_reward_model(str(models["qwen2"]), **options).score(*PAIR))


def test_a_folder_with_other_weights_is_not_read_as_gguf(folder, models):
    shutil.copy(models["qwen2"] / "model.safetensors", folder)
    shutil.copy(models["qwen2"] / "config.json", folder)
    assert gguf_file(folder) is None
    assert plain_folder(str(folder)) == str(folder)
    assert folder_notes(str(folder)) == [f"{folder}: tiny.gguf not used: the weights are in model.safetensors."]


def test_files_beside_a_file_are_not_read(file, tmp_path):
    shutil.copy(file, tmp_path / "tiny.gguf")
    (tmp_path / "chat_template.jinja").write_text("another model's")
    assert "another" not in AutoTokenizer.from_pretrained(plain_folder(str(tmp_path / "tiny.gguf"))).chat_template


# --- the cache -------------------------------------------------------------------------------------------------------


def test_a_file_is_dequantized_once_wherever_it_is(file, tmp_path, monkeypatch):
    plain = plain_folder(str(file))
    monkeypatch.setattr(gguf, "_dequantize", lambda *_: pytest.fail("dequantized again"))
    shutil.copy(file, tmp_path / "moved.gguf")
    assert plain_folder(str(tmp_path / "moved.gguf")) == plain
    assert entries(tmp_path) == [Path(plain).name]


def test_one_dequantizes_while_others_wait(file, tmp_path, monkeypatch):
    calls = []

    def dequantize(source, own, folder):
        calls.append(source)
        folder.mkdir()

    monkeypatch.setattr(gguf, "_dequantize", dequantize)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(plain_folder, [str(file)] * 4))) == 1
    assert len(calls) == 1


def test_what_a_killed_process_left_is_removed(file, tmp_path):
    digest = Path(plain_folder(str(file))).name
    cache = tmp_path / "cache" / "gguf"
    shutil.rmtree(cache / digest)
    for left in (f".{digest}.abc", ".another.abc"):
        (cache / left / digest).mkdir(parents=True)
        (cache / left / digest / "model.safetensors").write_text("half")
    plain_folder(str(file))
    assert sorted(entries(tmp_path)) == sorted([digest, ".another.abc"])


def test_nothing_half_written_stays(file, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedModel.save_pretrained", fail)
        cause, remedy = refusal(file)
    assert cause.endswith("No space left on device.")
    assert "RMKIT_CACHE" in remedy
    assert entries(tmp_path) == []
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "roomy"))  # the remedy
    assert Path(plain_folder(str(file)), "config.json").is_file()


# --- errors ----------------------------------------------------------------------------------------------------------


def test_without_the_package(file, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)
        patch.setattr(gguf, "find_spec", lambda name: None)
        assert refusal(file) == (
            f"{file} needs the package gguf, which is not installed.",
            'Install it with `pip install "rmkit[gguf]"`.',
        )
    assert Path(plain_folder(str(file))).is_dir()  # the control


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "header"])
def test_a_damaged_file(file, tmp_path, damage):
    content = file.read_bytes()
    broken = tmp_path / "broken.gguf"
    damaged = {"cut": content[:-5000], "text": b"version https://git-lfs", "empty": b"", "header": content[:900]}
    broken.write_bytes(damaged[damage])
    cause, remedy = refusal(broken)
    assert cause.startswith(f"{broken} cannot be read as a GGUF model: ")
    assert remedy.startswith("Fetch the file again")
    assert "source" not in cause  # the link that the library reads
    assert entries(tmp_path) == []


def test_the_suffix_in_capitals(file, tmp_path):
    (tmp_path / "folder").mkdir()
    large = tmp_path / "folder" / "TINY.GGUF"
    shutil.copy(file, large)
    assert plain_folder(str(large)) == plain_folder(str(large.parent)) == plain_folder(str(file))


def test_a_missing_file(tmp_path):
    missing = tmp_path / "missing.gguf"
    assert refusal(missing) == (f"There is no file {missing}.", "Give the path of a GGUF file on this machine.")


def test_an_architecture_that_transformers_does_not_read(models, tmp_path):
    file = write_gguf(models["qwen2"], tmp_path / "tiny.gguf", architecture="clip")
    cause, _ = refusal(file)
    assert "architecture clip is not supported" in cause


def test_a_missing_weight_is_not_drawn_at_random(models, tmp_path):
    file = write_gguf(models["qwen2"], tmp_path / "tiny.gguf", lacks="blk.1.ffn_up.weight")
    cause, _ = refusal(file)
    assert cause == f"{file} does not fit its architecture: missing keys, model.layers.1.mlp.up_proj.weight."
    assert entries(tmp_path) == []


def test_several_files_in_a_folder(file, tmp_path):
    folder = tmp_path / "several"
    folder.mkdir()
    for name in ("b.gguf", "a.gguf"):
        shutil.copy(file, folder / name)
    cause, remedy = refusal(folder)
    assert cause == f"{folder} contains 2 GGUF files."
    assert remedy == f"Name one of them, such as {folder / 'a.gguf'}."
    assert Path(plain_folder(str(folder / "a.gguf"))).is_dir()


def test_a_part_of_a_split_file(file, tmp_path):
    part = tmp_path / "tiny-00001-of-00002.gguf"
    shutil.copy(file, part)
    assert refusal(part)[0] == f"{part} is one part of a split GGUF file."


# --- training and use ------------------------------------------------------------------------------------------------


def recipe_file(path: Path, base: Path, pairs: Path) -> Path:
    content = {
        "base": {"name": str(base)},
        "reward_model": {"type": "implicit", "beta": 0.1},
        "lora": {"r": 4},
        "data": {
            "root": str(pairs),
            "train": {"name": "train", "path": "train.jsonl"},
            "evaluation": [{"name": "test", "path": "test.jsonl"}],
        },
        "training": {"num_train_epochs": 1, "learning_rate": 1e-2, "batch_size": 8},
        "output_dir": str(path / "run"),
    }
    (path / "recipe.yaml").write_text(json.dumps(content))
    return path / "recipe.yaml"


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_a_run_knows_its_gguf_base(file, pairs, tmp_path):
    """The adapter is an ordinary run: the base is the file, by its sha256, and its reference."""
    base = Path(shutil.copy(file, tmp_path / "base.gguf"))
    run = train(load_recipe(recipe_file(tmp_path, base, pairs)))
    record = json.loads((run.model / "reward_model.json").read_text())["base"]
    assert record["name"] == str(base)
    assert record["files"] == {"model.gguf": hashlib.sha256(base.read_bytes()).hexdigest()}
    rewards = load_reward_model(str(run.model)).score(*PAIR)
    shutil.rmtree(tmp_path / "cache")  # what it holds can be recomputed
    assert list(load_reward_model(str(run.model)).score(*PAIR)) == list(rewards)

    with pytest.raises(RmkitError, match="is a GGUF file, which is not uploaded"):
        build_publication(run.model, run.read(), Hub(push="end", repo_id="me/model", base="upload"))
    assert (
        build_publication(run.model, run.read(), Hub(push="end", repo_id="me/model", base="org/base")).base.hub_id
        == "org/base"
    )

    base.rename(tmp_path / "moved.gguf")
    with pytest.raises(RmkitError, match=r"The base of .* is missing"):
        load_reward_model(str(run.model))
    assert list(load_reward_model(str(run.model), base=str(tmp_path / "moved.gguf")).score(*PAIR)) == list(rewards)
    with (tmp_path / "moved.gguf").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(RmkitError, match=r"is not the base that .* Changed: model.gguf"):
        load_reward_model(str(run.model), base=str(tmp_path / "moved.gguf"))


def test_commands_take_a_gguf_file(file, pairs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checked = invoke("check", recipe_file(tmp_path, file, pairs))
    assert f"{file} is dequantized, to float32, in" in checked.replace("\n", "")
    data = pairs / "test.jsonl"
    scored = invoke("score", file, data, "--type", "generative", "--limit", 4, "--output", tmp_path / "rewards.parquet")
    assert "accuracy" in scored
    options = ("--type", "implicit", "--pairs", 1, "--no-backbone", "--learning-rate", 1e-3)
    assert "implicit" in invoke("theory", "dynamics", file, data, *options).lower()
