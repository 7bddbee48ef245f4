"""The content of run.json: all that is needed to trace a run's numbers, and the numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rmkit.config.recipe import Recipe
from rmkit.data.overlap import find_overlap
from rmkit.data.preferences import PreferenceData
from rmkit.encoding.pairs import EncodedPairs
from rmkit.evaluation.statistics import by_category, length_baselines
from rmkit.processes import running_sharding
from rmkit.reward_models.saving import ModelMetadata
from rmkit.runs import environment
from rmkit.runs.directory import FORMAT
from rmkit.training import launch
from rmkit.training.scoring_callback import ScoringCallback


def run_record(
    recipe: Recipe,
    data: Mapping[str, PreferenceData],
    encoded: Mapping[str, EncodedPairs],
    scoring: ScoringCallback,
    record: ModelMetadata,
    trainer: Any,
    train_metrics: Mapping[str, float],
    plan: launch.LaunchPlan | None,
    started: float,
) -> dict[str, Any]:
    """What run.json holds. Times are in seconds, memory in MiB, lengths in tokens."""
    training_set = recipe.data.train.name
    final = scoring.history[-1]["sets"]
    categories = {each.name: each.category for each in recipe.data.evaluation}
    evaluated = {name: metrics for name, metrics in final.items() if name != training_set}
    seconds = train_metrics.get("train_runtime", 0.0) - scoring.seconds_in_training
    tokens = sum(map(len, [*encoded[training_set].chosen, *encoded[training_set].rejected]))
    accuracies = {name: metrics["accuracy"] for name, metrics in evaluated.items()}
    return {
        "format": FORMAT,
        **environment.describe(),
        "recipe": recipe.model_dump(mode="json"),
        "reward_model": record.model_dump(mode="json"),
        "num_processes": trainer.args.world_size,
        "sharding": running_sharding(trainer.args),
        "distributed": plan.name if plan else None,
        "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
        "data": {
            name: {
                "fingerprint": data[name].fingerprint,
                "split": data[name].split,
                "pairs": len(pairs),
                "dropped": pairs.dropped,
                "control_texts": pairs.control_texts,
                "category": categories.get(name),
                "training": name == training_set,
                **(_shared(encoded[training_set], pairs) if name != training_set else {}),
                **length_baselines(pairs.response_lengths),
            }
            for name, pairs in encoded.items()
        },
        "train_fit": final.get(training_set),
        "metrics": evaluated,
        "accuracy_by_category": by_category(accuracies, categories),
        "history": scoring.history,
        "training": {
            "steps": trainer.state.global_step,
            "seconds": seconds,
            "tokens_per_second": tokens * (trainer.state.epoch or 0.0) / seconds if seconds > 0 else None,
            "log": [entry for entry in trainer.state.log_history if "accuracy" in entry],
        },
        "timings": {
            "total_seconds": time.time() - started,
            "scoring_seconds": scoring.seconds,
            "reference_seconds": scoring.references.seconds,
        },
        "peak_memory_mib": environment.peak_memory_mib(),
    }


def _shared(training: EncodedPairs, evaluation: EncodedPairs) -> dict[str, int]:
    """How many pairs of a set have their prompt in the training set, and how many are training pairs."""
    overlap = find_overlap(training.pairs, evaluation.pairs)
    return {"shared_prompts": int(overlap.prompt.sum()), "shared_pairs": int(overlap.pair.sum())}
