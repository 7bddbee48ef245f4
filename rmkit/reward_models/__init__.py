"""The types of reward model. `reward_model_class` is the only place that maps a type's settings to its code."""

from __future__ import annotations

from typing import Any, assert_never

from rmkit.config.recipe import Explicit, Generative, Implicit, RewardModelSettings
from rmkit.encoding.chat import ChatEncoder
from rmkit.reward_models.base import RewardModel
from rmkit.reward_models.explicit import ExplicitRewardModel
from rmkit.reward_models.generative import GenerativeRewardModel
from rmkit.reward_models.implicit import ImplicitRewardModel

__all__ = ["RewardModel", "make_reward_model", "reward_model_class"]


def reward_model_class(settings: RewardModelSettings) -> type[RewardModel[Any]]:
    """The class of a type of reward model."""
    match settings:
        case Explicit():
            return ExplicitRewardModel
        case Implicit():
            return ImplicitRewardModel
        case Generative():
            return GenerativeRewardModel
        case _:
            assert_never(settings)


def make_reward_model(settings: RewardModelSettings, encoder: ChatEncoder) -> RewardModel[Any]:
    """The reward model that a recipe's settings describe."""
    return reward_model_class(settings)(settings, encoder)
