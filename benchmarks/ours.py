"""rmkit's side: training from a recipe, scoring with the scorer of `rmkit evaluate`."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.setting import BETA, LEARNING_RATE, SCORING_BATCH, SEED, Job, Measurement, Workspace
from rmkit import RewardScorer, load_reward_model
from rmkit.config.recipe import Recipe
from rmkit.config.strict_yaml import validate
from rmkit.data.preferences import PreferenceData, load_preferences
from rmkit.runs import environment

_TYPES: dict[str, dict[str, Any]] = {
    "explicit": {"type": "explicit"},
    "implicit": {"type": "implicit", "beta": BETA},
    "generative": {"type": "generative"},
}


def train(job: Job, scratch: Path) -> Measurement:
    """One epoch of `rmkit.train.train`, with its own run directory and cache, so that nothing is reused."""
    from rmkit.train import train as run_recipe

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        os.environ["RMKIT_CACHE"] = f"{folder}/cache"
        record = run_recipe(recipe(job, Path(folder) / "run")).read()
    return Measurement(
        seconds=record["training"]["seconds"],
        reference_seconds=record["timings"]["reference_seconds"],
        peak_mib=peak_mib(),
        losses=[entry["pair_loss"] for entry in record["training"]["log"]],
    )


def recipe(job: Job, output_dir: Path) -> Recipe:
    """The recipe of a job: the paper's optimisation, no scoring, no activation checkpointing."""
    workspace = Workspace(job.workspace)
    content = {
        "base": {"name": str(workspace.base), "dtype": job.setting.shape.dtype},
        "reward_model": _TYPES[job.work],
        "layout": "padded" if job.side == "padded" else "shared",
        "data": {"train": {"name": "train", "path": str(workspace.train), "split": "train"}},
        "training": {
            "num_train_epochs": 1,
            "batch_size": job.setting.batch_size,
            "per_device_train_batch_size": job.micro_batch,
            "learning_rate": LEARNING_RATE,
            "activation_checkpointing": False,
            "logging_steps": 1,
            "disable_tqdm": True,
            "seed": SEED,
        },
        "evaluation": {"train_fit": False, "batch_size": 2 * job.micro_batch},
        "output_dir": str(output_dir),
    }
    return validate(Recipe, content, "the benchmark's recipe")


def score(job: Job, _: Path) -> Measurement:
    """Score all sets, from texts to rewards; loading the model is not measured."""
    workspace = Workspace(job.workspace)
    scorer = load_reward_model(str(workspace.classifier), dtype=job.setting.shape.dtype)
    sets = [load_preferences(str(path)) for path in workspace.scored]
    started = time.perf_counter()
    rewards = rewards_of(scorer, sets)
    return Measurement(seconds=time.perf_counter() - started, peak_mib=peak_mib(), rewards=rewards)


def rewards_of(scorer: RewardScorer, sets: list[PreferenceData]) -> list[tuple[float, float]]:
    """Rewards [pairs, 2] of all sets, concatenated, as `rmkit evaluate` scores them."""
    found = scorer.score_sets({pairs.name: pairs for pairs in sets}, SCORING_BATCH)
    return [(chosen, rejected) for each in found.values() for chosen, rejected in each.rewards.rewards.tolist()]


def peak_mib() -> float:
    """Peak memory of this process: GPU memory if it has a GPU, else host memory."""
    peak = environment.peak_memory_mib()
    return peak.get("gpu", peak["host"])
