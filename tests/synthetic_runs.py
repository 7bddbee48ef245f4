"""Run directories as training leaves them, from given rewards: for tests of the report, without any model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmkit.evaluation.statistics import length_baselines, summary
from rmkit.files import write_json, write_table
from rmkit.runs.directory import RunDirectory

SETTINGS: dict[str, dict[str, Any]] = {
    "explicit": {"type": "explicit", "pooling": "last"},
    "implicit": {"type": "implicit", "beta": 0.01, "reference": "base", "reference_revision": None},
    "generative": {"type": "generative", "generation_weight": 0.0},
}
CATEGORIES = {
    "ultrafeedback": {
        "ultrafeedback": "in-distribution",
        "ultrafeedback_paraphrased": "token-level shift",
        "ultrafeedback_french": "token-level shift",
        "ultrafeedback_spanish": "token-level shift",
        "rewardbench_math": "domain shift",
        "rewardmath": "domain shift",
        "rewardbench_code": "domain shift",
    },
    "rewardmath": {
        "rewardmath": "in-distribution",
        "rewardbench_math": "token-level shift",
        "ultrafeedback": "domain shift",
        "ultrafeedback_paraphrased": "domain shift",
        "ultrafeedback_french": "domain shift",
        "ultrafeedback_spanish": "domain shift",
        "rewardbench_code": "domain shift",
    },
}
Rewards = Any
"""[pairs, 2] of (chosen, rejected)."""


def write_run(
    path: Path,
    sets: Mapping[str, Rewards],
    *,
    settings: Mapping[str, Any] | str = "explicit",
    model: str = "meta-llama/Llama-3.2-1B-Instruct",
    training: str = "ultrafeedback",
    categories: Mapping[str, str | None] | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    train_fit: tuple[float, float] = (0.999, 0.01),
    history: Sequence[Mapping[str, Rewards]] = (),
    texts: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    lengths: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    log_rewards: Mapping[str, Rewards] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """One finished run.

    Args:
        path: the run directory.
        sets: evaluation set -> final rewards.
        settings: the reward_model section, or its type.
        model: base.name.
        training: name and path of the training set; its train split is named train.
        categories: of the sets; the paper's by default.
        seed: training.seed.
        options: more of the training section.
        train_fit: accuracy and loss on the training set.
        history: sets of the states before the final one: initial, epoch_1, ...
        texts: set -> prompt, chosen, rejected.
        lengths: set -> tokens of chosen and rejected.
        log_rewards: set -> log-rewards, for generative runs.
        record: replaces parts of run.json.
    """
    settings = SETTINGS[settings] if isinstance(settings, str) else dict(settings)
    categories = CATEGORIES[training] if categories is None else categories
    run = RunDirectory(path)
    rewards = {name: np.asarray(each, dtype=np.float64) for name, each in sets.items()}
    lengths = {
        name: (lengths or {}).get(name, [(10 + at % 7, 12) for at in range(len(each))])
        for name, each in rewards.items()
    }
    metrics = {name: summary(each, (log_rewards or {}).get(name)) for name, each in rewards.items()}
    states = [("initial" if at == 0 else f"epoch_{at}", at, each) for at, each in enumerate(history)]
    fit = {"accuracy": train_fit[0], "normalized_margin": 1.5, "tie_rate": 0.0, "loss": train_fit[1], "pairs": 2000}
    content = {
        "format": 1,
        "recipe": {
            "base": {"name": model, "revision": None, "build": None},
            "reward_model": settings,
            "data": {
                "train": {"name": "train", "path": training, "split": "train"},
                "evaluation": [{"name": name, "path": name, "split": "test"} for name in rewards],
                "max_length": None,
            },
            "lora": None,
            "training": {"learning_rate": 1e-6, "num_train_epochs": 5, "batch_size": 32, "seed": seed}
            | dict(options or {}),
        },
        "reward_model": {"format": 1, "reward_model": settings},
        "data": {
            "train": _data(training + " train", None, True, [(3, 2)]),
            **{name: _data(name, categories.get(name), False, lengths[name]) for name in rewards},
        },
        "train_fit": fit,
        "metrics": metrics,
        "history": [
            {
                "state": state,
                "epoch": epoch,
                "step": 63 * epoch,
                "sets": {name: summary(each) for name, each in found.items()},
            }
            for state, epoch, found in states
        ]
        + [{"state": "final", "epoch": 5.0, "step": 315, "sets": {"train": fit, **metrics}}],
    } | dict(record or {})
    for name, each in rewards.items():
        columns = {"index": np.arange(len(each)), "chosen_reward": each[:, 0], "rejected_reward": each[:, 1]}
        if log_rewards:
            logs = np.asarray(log_rewards[name], dtype=np.float64)
            columns |= {"chosen_log_reward": logs[:, 0], "rejected_log_reward": logs[:, 1]}
        write_table(run.rewards(name), columns)
        written = (texts or {}).get(name) or {
            column: [f"{column} {at} of {name}" for at in range(len(each))]
            for column in ("prompt", "chosen", "rejected")
        }
        tokens = np.asarray(lengths[name])
        write_table(
            run.examples(name),
            {"index": np.arange(len(each)), **written, "chosen_tokens": tokens[:, 0], "rejected_tokens": tokens[:, 1]},
        )
    write_json(run.record, content)
    return path


def from_scores(scores: Sequence[float], scale: float = 1.0) -> np.ndarray:
    """Rewards [pairs, 2] that rank the pairs as the scores say: 1 right, 1/2 a tie, 0 wrong."""
    margins = (np.asarray(scores, dtype=np.float64) - 0.5) * 2 * scale
    return np.stack([margins, np.zeros_like(margins)], axis=1)


def with_accuracy(right: int, pairs: int) -> np.ndarray:
    """Rewards [pairs, 2] of which the first so many are right."""
    return from_scores([1.0] * right + [0.0] * (pairs - right))


def _data(name: str, category: str | None, training: bool, lengths: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return {
        "fingerprint": hashlib.sha256(name.encode()).hexdigest(),
        "pairs": len(lengths),
        "dropped": {},
        "category": category,
        "training": training,
        **length_baselines(lengths),
    }
