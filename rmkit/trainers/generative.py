"""EX-GRMs on transformers' Trainer."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed

from rmkit.language_model import response_log_probs, run
from rmkit.trainers.pairs import PairTrainerMixin


class GenerativeTrainer(PairTrainerMixin, Trainer):
    """Trainer with Eq. 7 and, where `generation_weight` is above 0, that times -ln pi(y+|x) (footnote 7)."""

    config_class = TrainingArguments
    config_defaults: dict[str, Any] = {}

    def __init__(
        self, model: nn.Module, args: TrainingArguments, peft_config: PeftConfig | None = None, **options: Any
    ):
        set_seed(args.seed)  # before adapters are drawn, as TRL's trainers do
        super().__init__(get_peft_model(model, peft_config) if peft_config else model, args, **options)

    def extra_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor | float:
        weight = self.reward_model.settings.generation_weight
        return -weight * run(model, response_log_probs, inputs["generation"]).mean() if weight else 0.0
