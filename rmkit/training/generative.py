"""EX-GRMs on transformers' Trainer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rmkit.encoding.batches import Batch
from rmkit.models.language_model import apply_head, response_log_probs
from rmkit.training.plain import PlainTrainer


class GenerativeTrainer(PlainTrainer):
    """Trainer with Eq. 7 and, where `generation_weight` is above 0, that times -ln pi(y+|x) (footnote 7)."""

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | float]:
        """The outputs for Eq. 7, and the term of footnote 7."""
        weight = self.reward_model.settings.generation_weight
        if not weight:
            return super().outputs(model, inputs)
        # One pass for both: DeepSpeed's ZeRO-3 cannot go through experts twice before it goes back.
        outputs, log_probs = apply_head(model, self._both, inputs).split(
            [2 * len(inputs["last"]), len(inputs["index"])]
        )
        return outputs.view(-1, 2), -weight * log_probs.mean()

    def _both(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """The outputs [sequences, 2] on verification prompts, and ln pi(y+|x) [pairs], in one flat tensor."""
        outputs = self.reward_model.outputs(model, hidden, batch)
        log_probs = response_log_probs(model, hidden, cast(Batch, batch["generation"]))
        return torch.cat([outputs.flatten(), log_probs.flatten()])
