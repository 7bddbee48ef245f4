"""The content of run.json: a run's numbers, and everything needed to trace them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rmkit.data.overlap import find_overlap
from rmkit.encoding.pairs import EncodedPairs
from rmkit.evaluation.statistics import by_category, length_baselines, summary
from rmkit.processes import running_sharding
from rmkit.runs import environment
from rmkit.runs.directory import FORMAT
from rmkit.runs.rewards import concatenate
from rmkit.training.best_model import find_best
from rmkit.training.scoring_callback import ScoringCallback
from rmkit.training.training_run import TrainingRun


def run_record(
    run: TrainingRun, trainer: Any, scoring: ScoringCallback, best_seconds: float, train_metrics: Mapping[str, float]
) -> dict[str, Any]:
    """The content of run.json. Times are in seconds, memory in MiB, lengths in tokens.

    Args:
        best_seconds: spent on writing the best models during training.
        train_metrics: transformers' metrics of training; empty while it runs.
    """
    recipe, training_set = run.recipe, run.training_set
    final = scoring.history[-1]["sets"]
    categories = recipe.data.categories
    evaluated = {name: metrics for name, metrics in final.items() if name not in run.training_rows}
    seconds = train_metrics.get("train_runtime", 0.0) - scoring.seconds_in_training - best_seconds
    tokens = sum(map(len, [*training_set.chosen, *training_set.rejected]))
    accuracies = {name: metrics["accuracy"] for name, metrics in evaluated.items()}
    return {
        "format": FORMAT,
        **environment.describe(),
        "recipe": recipe.model_dump(mode="json"),
        "reward_model": run.metadata.model_dump(mode="json"),
        "num_processes": trainer.args.world_size,
        "sharding": running_sharding(trainer.args),
        "distributed": run.plan.name if run.plan else None,
        "gradient_accumulation_steps": trainer.args.gradient_accumulation_steps,
        "data": _describe_sets(run),
        "train_fit": _train_fit(run, scoring),
        "metrics": evaluated,
        "accuracy_by_category": by_category(accuracies, categories),
        "history": scoring.history,
        "kept": find_best(scoring.history, recipe.evaluation.save_best)[0],
        "training": {
            "steps": trainer.state.global_step,
            "stopped_early": bool(train_metrics) and trainer.state.global_step < trainer.state.max_steps,
            "seconds": seconds,
            "tokens_per_second": tokens * (trainer.state.epoch or 0.0) / seconds if seconds > 0 else None,
            "log": [entry for entry in trainer.state.log_history if "accuracy" in entry],
        },
        "timings": {
            "total_seconds": time.time() - run.started,
            "scoring_seconds": scoring.seconds,
            "reference_seconds": scoring.references.seconds,
            "best_seconds": best_seconds,
        },
        "peak_memory_mib": environment.peak_memory_mib(),
    }


def _train_fit(run: TrainingRun, scoring: ScoringCallback) -> dict[str, float] | None:
    """Metrics of the training set, of several sets over all pairs of an epoch; None if it was not scored.

    The history has those of every set.
    """
    fits = [metrics for name, metrics in scoring.history[-1]["sets"].items() if name in run.training_rows]
    if len(fits) < 2:
        return fits[0] if fits else None
    scored = concatenate([scoring.scored[name][numbers] for name, numbers in run.training_rows.items()])
    return summary(scored.rewards, scored.log_rewards)


def _describe_sets(run: TrainingRun) -> dict[str, dict[str, Any]]:
    """Size, origin and baselines of every set; of evaluation sets also what they share with the training set."""
    training_set = run.training_set
    categories = run.recipe.data.categories
    return {
        name: {
            "fingerprint": run.fingerprints[name],
            "split": run.data[name].split,
            "pairs": len(pairs),
            "dropped": pairs.dropped,
            "control_texts": pairs.control_texts,
            "category": categories.get(name),
            "training": name in run.training_rows,
            **(_count_shared(training_set, pairs) if name not in run.training_rows else {}),
            **length_baselines(pairs.response_lengths),
        }
        for name, pairs in run.encoded.items()
    }


def _count_shared(training: EncodedPairs, evaluation: EncodedPairs) -> dict[str, int]:
    """The number of pairs of a set whose prompt is in the training set, and of those that are training pairs."""
    overlap = find_overlap(training.pairs, evaluation.pairs)
    return {"shared_prompts": int(overlap.prompt.sum()), "shared_pairs": int(overlap.pair.sum())}
