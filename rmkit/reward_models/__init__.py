"""The types of reward model. `reward_model` is the one place where a type's name becomes code."""

from __future__ import annotations

import importlib
from typing import Any

from rmkit.config.recipe import RewardModelSettings
from rmkit.encoding.chat import ChatEncoder
from rmkit.reward_models.base import RewardModel

__all__ = ["RewardModel", "reward_model", "trainer_class"]


def reward_model(settings: RewardModelSettings, encoder: ChatEncoder) -> RewardModel[Any]:
    """The reward model of a recipe's settings: `explicit` is `rmkit.reward_models.explicit.ExplicitRewardModel`."""
    made: RewardModel[Any] = _named("reward_models", settings.type, "RewardModel")(settings, encoder)
    return made


def trainer_class(settings: RewardModelSettings) -> Any:
    """The trainer of a type: `explicit` is `rmkit.training.explicit.ExplicitTrainer`. Imported only to train."""
    return _named("training", settings.type, "Trainer")


def _named(package: str, kind: str, suffix: str) -> Any:
    return getattr(importlib.import_module(f"rmkit.{package}.{kind}"), kind.capitalize() + suffix)
