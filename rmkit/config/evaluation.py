"""The section `evaluation:` of a recipe: when the sets are scored, and which model is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveInt

from rmkit.config.strict_yaml import StrictModel
from rmkit.errors import RmkitError

BEST_METRICS = ("accuracy", "margin", "loss")
"""The metrics of an evaluation set that `evaluation.save_best` can follow; the best loss is the smallest."""


class Evaluation(StrictModel):
    """When and how the sets are scored. `train_fit` also scores the training set at the end.

    `every_steps` and `every_epochs` score after every N steps or epochs and after the last one; `every_epoch: true` is
    `every_epochs: 1`. `save_best` (<set>.accuracy, .margin or .loss) makes the best model of these evaluations the
    final one, and `early_stopping` ends the run after so many evaluations without a better one.
    """

    every_epoch: bool = False
    every_epochs: PositiveInt | None = None
    every_steps: PositiveInt | None = None
    save_best: Annotated[str, Field(min_length=1)] | None = None
    early_stopping: PositiveInt | None = None
    train_fit: bool = True
    batch_size: PositiveInt = 16

    @property
    def epochs(self) -> int | None:
        """The number of epochs between two evaluations."""
        return self.every_epochs or (1 if self.every_epoch else None)


def check_evaluation(settings: Evaluation, names: Sequence[str], source: str) -> None:
    """Refuse settings that contradict each other or have no effect.

    Args:
        names: the evaluation sets of the recipe.
        source: the file that errors name.

    Raises:
        RmkitError: naming the key.
    """
    key, best = f"{source}: evaluation", settings.save_best
    if settings.every_epoch and settings.every_epochs not in (None, 1):
        raise RmkitError(f"{key}.every_epoch and evaluation.every_epochs are both given.", "Remove one of them.")
    if settings.early_stopping is not None and best is None:
        raise RmkitError(
            f"{key}.early_stopping needs a metric that is to improve.",
            "Set evaluation.save_best, for example to <set>.accuracy, or remove early_stopping.",
        )
    if best is None and (settings.every_steps or settings.every_epochs) and not names:
        every = "every_steps" if settings.every_steps else "every_epochs"
        raise RmkitError(
            f"{key}.{every} has no set to score.",
            f"Add one to data.evaluation, set data.validation, or remove {every}.",
        )
    if best is None:
        return
    if best not in [f"{name}.{metric}" for name in names for metric in BEST_METRICS]:
        raise RmkitError(
            f"{key}.save_best is {best!r}, not a metric of an evaluation set.",
            "Use <set>.accuracy, <set>.margin or <set>.loss with a set of data.evaluation "
            f"({', '.join(names) or 'there is none'}); data.validation adds the set validation.",
        )
    if settings.epochs is None and settings.every_steps is None:
        raise RmkitError(
            f"{key}.save_best has no evaluations to choose from: the sets are scored before and after training only.",
            "Set evaluation.every_steps or evaluation.every_epoch.",
        )
