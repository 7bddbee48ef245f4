"""Any type of reward model on transformers' Trainer."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from rmkit.training.pair_trainer import PairTrainerMixin


class PlainTrainer(PairTrainerMixin, Trainer):
    """Trainer with the reward model's own loss."""

    config_class = TrainingArguments
    config_defaults: dict[str, Any] = {}

    def __init__(
        self, model: nn.Module, args: TrainingArguments, peft_config: PeftConfig | None = None, **options: Any
    ):
        set_seed(args.seed)  # before adapters are drawn, as TRL's trainers do
        super().__init__(get_peft_model(model, peft_config) if peft_config else model, args, **options)
