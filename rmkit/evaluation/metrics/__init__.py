"""`evaluate` modules: `evaluate.load(rmkit.evaluation.metrics.path("preference_accuracy"))` works offline."""

from __future__ import annotations

from pathlib import Path


def path(name: str) -> str:
    """The folder from which `evaluate.load` loads preference_accuracy or normalized_reward_margin."""
    return str(Path(__file__).parent / name)
