"""Metrics of the rewards of a set: accuracy, margin, tie rate, length baselines. NumPy only.

All raise an RmkitError if the numbers of chosen and rejected rewards differ, there are none, or one is not finite: NaN
would count as a lost pair.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmkit.errors import RmkitError

Floats = NDArray[np.float64]


def accuracy(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Share of pairs [pairs] whose chosen response has the higher reward; a tie counts 1/2 (Definition 1)."""
    chosen, rejected = _pairs(chosen, rejected)
    return float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected)))


def normalized_margin(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Mean of |r+ - r-| / s, where s is the unbiased standard deviation of all 2N rewards (Appendix D.3).

    0 if all rewards are equal.
    """
    chosen, rejected = _pairs(chosen, rejected)
    deviation = np.std(np.concatenate([chosen, rejected]), ddof=1)
    return float(np.mean(np.abs(chosen - rejected)) / deviation) if deviation > 0 else 0.0


def tie_rate(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Share of pairs [pairs] whose two rewards are equal."""
    chosen, rejected = _pairs(chosen, rejected)
    return float(np.mean(chosen == rejected))


def bradley_terry_loss(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Mean of -ln sigmoid(r+ - r-) (Eq. 3), in nats."""
    chosen, rejected = _pairs(chosen, rejected)
    return float(np.mean(np.logaddexp(0.0, rejected - chosen)))


def length_baselines(lengths: ArrayLike) -> dict[str, float]:
    """Accuracy of preferring the longer or the shorter response, from token counts [pairs, 2] of (chosen, rejected)."""
    counts = np.asarray(lengths, dtype=np.float64)
    return {"longer_wins": accuracy(counts[:, 0], counts[:, 1]), "shorter_wins": accuracy(-counts[:, 0], -counts[:, 1])}


def summary(rewards: ArrayLike, log_rewards: ArrayLike | None = None) -> dict[str, float]:
    """The metrics of one set.

    Args:
        rewards: [pairs, 2] of (chosen, rejected).
        log_rewards: [pairs, 2], for rewards that are probabilities: they still rank where probabilities saturate.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    ranking = rewards if log_rewards is None else np.asarray(log_rewards, dtype=np.float64)
    return {
        "accuracy": accuracy(ranking[:, 0], ranking[:, 1]),
        "normalized_margin": normalized_margin(rewards[:, 0], rewards[:, 1]),
        "tie_rate": tie_rate(ranking[:, 0], ranking[:, 1]),
        "loss": bradley_terry_loss(rewards[:, 0], rewards[:, 1]),
        "pairs": len(rewards),
    }


def unseen_prompt_accuracy(unseen: NDArray[np.bool_], ranking: ArrayLike) -> dict[str, float]:
    """Accuracy on the pairs whose prompt is not a training prompt, for sets that share prompts with the training set.

    Args:
        unseen: [pairs] whether the prompt is not a training prompt (see `rmkit.data.overlap.find_overlap`).
        ranking: [pairs, 2] values that rank (chosen, rejected): rewards, or log-rewards if there are any.

    Returns:
        `pairs_unseen_prompts` and, if there are any, `accuracy_unseen_prompts`; empty if every prompt is unseen.
    """
    if unseen.all():
        return {}
    count: dict[str, float] = {"pairs_unseen_prompts": int(unseen.sum())}
    if not unseen.any():
        return count
    kept = np.asarray(ranking, dtype=np.float64)[unseen]
    return {"accuracy_unseen_prompts": accuracy(kept[:, 0], kept[:, 1]), **count}


def by_category(accuracies: Mapping[str, float], categories: Mapping[str, str | None]) -> dict[str, float]:
    """Mean accuracy by category, from accuracies and categories by set name; sets without a category are skipped."""
    grouped: dict[str, list[float]] = {}
    for name, value in accuracies.items():
        category = categories.get(name)
        if category is not None:
            grouped.setdefault(category, []).append(value)
    return {category: float(np.mean(values)) for category, values in grouped.items()}


def _pairs(chosen: ArrayLike, rejected: ArrayLike) -> tuple[Floats, Floats]:
    chosen, rejected = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    if chosen.ndim != 1 or chosen.shape != rejected.shape or not chosen.size:
        raise RmkitError(
            f"There are {chosen.size} chosen and {rejected.size} rejected rewards.", "Give one of both for every pair."
        )
    broken = np.flatnonzero(~(np.isfinite(chosen) & np.isfinite(rejected)))
    if broken.size:
        raise RmkitError(
            f"{broken.size} of {chosen.size} pairs have a reward that is not finite (the first is pair {broken[0]}).",
            "Training diverged or weights are damaged: lower training.learning_rate, or use float32.",
        )
    return chosen, rejected
