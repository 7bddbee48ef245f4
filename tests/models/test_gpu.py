"""The `gpu` tier: the three types in bfloat16 on one GPU, and under ZeRO-3; skipped without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from test_attention import distance, language_model, read_with_gradient, sequences

from rmkit import load_reward_model
from rmkit.data.preferences import load_preferences
from rmkit.encoding.batches import pad, share
from rmkit.models.shared_attention import take_shared_rows

HEADS = 2
"""Of size 16: FlexAttention takes no smaller ones on a GPU."""
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """As in conftest.py, with larger heads."""
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.save_language_model(folder / name, name, heads=HEADS) for name in tiny.ARCHITECTURES}


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt_neox", "gpt_oss", "cohere2"])
def test_shared_rows_give_the_outputs_of_padded_ones(architecture, dtype, attention):
    """FlexAttention, which a GPU takes by default, and attention sequence by sequence."""
    options = {"attn_implementation": attention} if attention else {}
    model = language_model(architecture, HEADS, **options).to("cuda", dtype)
    padded, shared = (
        {name: tensor.cuda() for name, tensor in batch.items()} for batch in (pad(sequences(), 0), share(sequences()))
    )
    expected = read_with_gradient(model, padded)
    take_shared_rows(model, attention)
    for found, wanted in zip(read_with_gradient(model, shared), expected, strict=True):
        assert distance(found.float(), wanted.float()) < (1e-4 if dtype is torch.float32 else 5e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("type_name", ["explicit", "implicit", "generative"])
def test_a_run_on_a_gpu_reloads_to_its_rewards(run, pairs, type_name, dtype):
    directory = run(type_name, base={"dtype": dtype}, training={"bf16": dtype == "bfloat16"})
    record = directory.read()
    assert record["peak_memory_mib"]["gpu"] > 0
    assert record["training"]["tokens_per_second"] > 0
    rewards = pd.read_parquet(directory.rewards("test"))[["chosen_reward", "rejected_reward"]].to_numpy()
    again = load_reward_model(str(directory.model)).score_pairs(load_preferences("test.jsonl", root=pairs), 16)
    np.testing.assert_allclose(again, rewards, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("type_name", ["explicit", "implicit", "generative"])
def test_zero3_on_the_visible_gpus(run, tmp_path, type_name):
    one = run(type_name, "one")
    command = [sys.executable, "-m", "rmkit", "train", str(tmp_path / "one.yaml"), "distributed=zero3"]
    subprocess.run([*command, f"output_dir={tmp_path / 'sharded'}"], env=os.environ | {}, check=True, timeout=900)
    record = json.loads((tmp_path / "sharded" / "run.json").read_text())
    assert record["sharding"] == "zero3"
    assert record["num_processes"] == torch.cuda.device_count()
    sharded, whole = (
        pd.read_parquet(tmp_path / name / "rewards" / "test.parquet").to_numpy() for name in ("sharded", "one")
    )
    np.testing.assert_allclose(sharded, whole, rtol=0, atol=1e-3 * max(1, np.abs(whole).max()))
    assert one.record.exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("type_name", ["explicit", "implicit", "generative"])
def test_adapters_on_a_base_in_4_bit_reload_to_their_rewards(run, pairs, type_name, dtype):
    pytest.importorskip("bitsandbytes")
    half = {"dtype": dtype, "load_in": "4bit"}
    directory = run(type_name, base=half, lora={"r": 4}, training={"bf16": dtype == "bfloat16"})
    rewards = pd.read_parquet(directory.rewards("test"))[["chosen_reward", "rejected_reward"]].to_numpy()
    scorer = load_reward_model(str(directory.model))
    assert scorer.checkpoint.notes[-1].endswith("in 4 bit (NF4), as in training.")
    again = scorer.score_pairs(load_preferences("test.jsonl", root=pairs), 16)
    np.testing.assert_allclose(again, rewards, rtol=1e-3, atol=1e-4)
