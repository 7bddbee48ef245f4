"""Rewards on the released sets equal a float64 computation without rmkit."""

from __future__ import annotations

from pathlib import Path

import independent
import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rmkit import load_reward_model
from rmkit.data.preferences import load_preferences

BETA = 0.1
SETS = ["ultrafeedback", "ultrafeedback_french", "rewardmath"]
LONGEST = 600  # characters of a prompt and its response


def real_texts(released, name, number):
    """(prompt, response) of the first short pairs of a released set."""
    pairs = load_preferences(name, root=released, split="test")
    short = [pair for pair in pairs if len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) < LONGEST]
    return [(pair.prompt, response) for pair in short[:number] for response in (pair.chosen, pair.rejected)]


def save_with_head(base, folder):
    torch.manual_seed(2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def check_all_types(base: Path, reference: Path, folder: Path, texts, tolerance):
    """Explicit, implicit (with its reference) and generative rewards of `texts` against float64.

    `tolerance` is relative to the largest reward; for implicit rewards, which are differences, to the largest term.
    """
    prompts, responses = zip(*texts, strict=True)
    explicit = save_with_head(base, folder)
    precise = {"dtype": torch.float64}
    answers = independent.generative(base, texts, **precise)
    policy, initial = (np.array(independent.log_probs(each, base, texts, **precise)) for each in (base, reference))
    arms = {
        "explicit": (load_reward_model(str(explicit)), independent.explicit(explicit, texts, **precise), None),
        "implicit": (
            load_reward_model(str(base), "implicit", reference=str(reference), beta=BETA),
            BETA * (policy - initial),
            BETA * np.abs(policy).max(),
        ),
        "generative": (
            load_reward_model(str(base), "generative"),
            answers,
            None,
        ),
    }
    errors = {}
    for name, (scorer, expected, scale) in arms.items():
        found = scorer.score(list(prompts), list(responses), 8)
        errors[name] = np.abs(found - expected).max() / (scale or np.abs(expected).max())
        assert len(set(np.round(expected, 12))) > 1
    print("relative errors:", {name: f"{error:.1e}" for name, error in errors.items()})
    assert all(error < tolerance for error in errors.values()), errors


@pytest.mark.released
@pytest.mark.parametrize("name", SETS)
def test_a_tiny_model_on_released_texts(released, models, tmp_path, name):
    reference = tiny.save_language_model(tmp_path / "reference", "qwen2", seed=7)
    check_all_types(models["qwen2"], reference, tmp_path / "head", real_texts(released, name, 6), 1e-6)


def perturb(base, folder):
    """A reference slightly different from the policy."""
    model = AutoModelForCausalLM.from_pretrained(base)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3 * parameter.std() * torch.randn(parameter.shape, generator=draw)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.released
def test_a_pretrained_model_on_released_texts(released, smollm2, tmp_path):
    texts = [text for name in SETS for text in real_texts(released, name, 2)]
    check_all_types(smollm2, perturb(smollm2, tmp_path / "reference"), tmp_path / "head", texts, 1e-5)
