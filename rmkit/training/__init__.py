"""Training: one thin trainer per type on TRL, and what they share."""

from __future__ import annotations

from typing import Any

from rmkit.config.recipe import Generative, Implicit, RewardModelSettings


def trainer_class(settings: RewardModelSettings) -> Any:
    """The trainer class of a type; TRL's RewardTrainer by default. Imported here, since only training needs it."""
    match settings:
        case Implicit():
            from rmkit.training.implicit import ImplicitTrainer

            return ImplicitTrainer
        case Generative():
            from rmkit.training.generative import GenerativeTrainer

            return GenerativeTrainer
        case _:
            from rmkit.training.explicit import ExplicitTrainer

            return ExplicitTrainer
