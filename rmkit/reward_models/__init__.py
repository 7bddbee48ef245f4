"""The types of reward model. `make_reward_model` is the one place where a type becomes code."""

from __future__ import annotations

from typing import Any, assert_never

from rmkit.config.recipe import Explicit, Generative, Implicit, RewardModelSettings
from rmkit.encoding.chat import ChatEncoder
from rmkit.reward_models.base import RewardModel
from rmkit.reward_models.explicit import ExplicitRewardModel
from rmkit.reward_models.generative import GenerativeRewardModel
from rmkit.reward_models.implicit import ImplicitRewardModel

__all__ = ["RewardModel", "make_reward_model"]


def make_reward_model(settings: RewardModelSettings, encoder: ChatEncoder) -> RewardModel[Any]:
    """The reward model of a recipe's settings."""
    match settings:
        case Explicit():
            return ExplicitRewardModel(settings, encoder)
        case Implicit():
            return ImplicitRewardModel(settings, encoder)
        case Generative():
            return GenerativeRewardModel(settings, encoder)
        case _:
            assert_never(settings)
