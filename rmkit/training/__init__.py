"""Training: thin trainers on TRL and transformers, and what they share."""

from __future__ import annotations

from typing import Any

from rmkit.config.recipe import Explicit, Generative, Implicit, RewardModelSettings


def trainer_class(settings: RewardModelSettings) -> Any:
    """The trainer of a type: transformers' Trainer unless the type needs another. Imported only to train."""
    match settings:
        case Explicit():
            from rmkit.training.explicit import ExplicitTrainer

            return ExplicitTrainer
        case Implicit():
            from rmkit.training.implicit import ImplicitTrainer

            return ImplicitTrainer
        case Generative():
            from rmkit.training.generative import GenerativeTrainer

            return GenerativeTrainer
        case _:
            from rmkit.training.plain import PlainTrainer  # TRL's RewardTrainer takes classifiers only

            return PlainTrainer
