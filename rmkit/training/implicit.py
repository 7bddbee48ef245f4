"""IM-RMs on TRL's DPOTrainer."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from rmkit.training.pair_trainer import PairTrainerMixin


class ImplicitTrainer(PairTrainerMixin, DPOTrainer):
    """DPOTrainer for encoded pairs, with reference log-probabilities that rmkit computes once.

    `precompute_ref_log_probs` keeps TRL from loading a second model; its own pass and cache are not used.
    """

    config_class = DPOConfig
    config_defaults: dict[str, Any] = {
        "max_length": None,
        "precompute_ref_log_probs": True,
        "disable_dropout": False,  # rmkit/models/dropout.py
    }

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset
