"""Every precision that a recipe can ask for trains, scores, saves and reloads, for every type."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from tiny import TYPES

from rmkit import RmkitError, load_reward_model
from rmkit.preferences import load_preferences

pytestmark = pytest.mark.smoke

PRECISIONS = {
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "autocast": ("float32", True),
    "bfloat16_autocast": ("bfloat16", True),
}
ADAPTERS = {"full": {}, "lora": {"lora": {"r": 4, "alpha": 8}}}
ALL = list(itertools.product(PRECISIONS, TYPES, ADAPTERS, ["shared", "padded"], ["qwen2", "gpt_neox"]))
FAST = {
    ("autocast", "explicit", "full", "shared", "qwen2"),
    ("autocast", "mean", "lora", "padded", "gpt_neox"),
    ("autocast", "implicit", "full", "shared", "gpt_neox"),
    ("autocast", "implicit", "lora", "shared", "qwen2"),
    ("autocast", "generative_lambda", "full", "shared", "qwen2"),
    ("bfloat16", "implicit", "lora", "padded", "qwen2"),
    ("bfloat16_autocast", "no_reference", "full", "shared", "gpt_neox"),
    ("bfloat16_autocast", "generative", "lora", "shared", "gpt_neox"),
}


def precise(name, **training):
    dtype, bf16 = PRECISIONS[name]
    return {"base": {"dtype": dtype}, "training": {"bf16": bf16} | training}


def rewards(directory, state="final"):
    return pd.read_parquet(directory.rewards("test", state))[["chosen_reward", "rejected_reward"]].to_numpy()


@pytest.mark.parametrize(
    ("precision", "kind", "adapter", "layout", "architecture"),
    [pytest.param(*each, marks=() if each in FAST else pytest.mark.slow) for each in ALL],
)
def test_a_run_reloads_to_its_final_rewards(run, pairs, precision, kind, adapter, layout, architecture):
    """Bit for bit on one CPU process; an untrained implicit model with a reference rewards everything 0."""
    options = precise(precision, learning_rate=1e-2) | ADAPTERS[adapter]
    directory = run(kind, architecture=architecture, layout=layout, **options)
    again = load_reward_model(str(directory.model)).score_pairs(load_preferences("test.jsonl", root=pairs), 16)
    assert (again == rewards(directory)).all()
    assert not (again == rewards(directory, "initial")).all()
    if kind == "implicit":
        assert not rewards(directory, "initial").any()
