"""`evaluate` modules: `evaluate.load(rmkit.evaluation.metrics.path("preference_accuracy"))` works offline."""

from __future__ import annotations

from pathlib import Path


def path(name: str) -> str:
    """Where `evaluate.load` finds preference_accuracy or normalized_reward_margin."""
    return str(Path(__file__).parent / name)
