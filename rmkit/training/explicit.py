"""EX-RMs on TRL's RewardTrainer."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from rmkit.training.pair_trainer import PairTrainerMixin


class ExplicitTrainer(PairTrainerMixin, RewardTrainer):
    """RewardTrainer with the score read at the last real token and the loss in float32."""

    config_class = RewardConfig
    config_defaults: dict[str, Any] = {"max_length": None, "disable_dropout": False}  # rmkit/models/dropout.py

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # its rows are pair numbers, which the collator looks up
