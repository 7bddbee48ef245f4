"""EX-RM: a linear head on a hidden state (Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rmkit.config.recipe import Explicit
from rmkit.data.conversations import Prompt, Response
from rmkit.encoding.batches import Batch
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.models.language_model import replace_linear, segment_mean
from rmkit.models.numerics import at_least_float32
from rmkit.reward_models.base import RewardModel
from rmkit.reward_models.losses import bradley_terry


def explicit_reward(hidden: Tensor, head: Tensor) -> Tensor:
    """r(x, y) = <u, h_{x,y}> (Eq. 1).

    Args:
        hidden: [..., hidden size] hidden states of prompts with their responses.
        head: [hidden size] u.

    Returns:
        [...], at least float32 whatever the dtype of the hidden states.
    """
    dtype = torch.promote_types(head.dtype, torch.float32)
    return hidden.to(dtype) @ head.to(dtype)


class RewardHead(nn.Linear):
    """transformers' `score` layer in float32: with a bfloat16 head, many responses would get the same reward."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden size] -> [..., 1]."""
        return explicit_reward(hidden, self.weight[0])[..., None]


class ExplicitRewardModel(RewardModel[Explicit]):
    """The head reads the hidden state of the last token, or the mean over the response (`pooling: mean`, Figure 7)."""

    auto_class = AutoModelForSequenceClassification
    head = True
    config = {"num_labels": 1, "problem_type": "regression"}  # "regression": no sigmoid in a pipeline

    def __init__(self, settings: Explicit, encoder: ChatEncoder):
        super().__init__(settings, encoder)
        self.reads = "response" if settings.pooling == "mean" else "last"

    def adapt_model(self, model: PreTrainedModel) -> None:
        if not isinstance(model.score, RewardHead):
            replace_linear(model, model.score, RewardHead)
        if not hasattr(model.score.weight, "ds_id"):
            model.score.float()

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[TokenSequence]:
        return self.encoder.response_sequences(prompts, responses)

    def representation(self, hidden: Tensor, batch: Batch) -> Tensor:
        """h_{x,y} [sequences, hidden size], the input of the head."""
        if self.settings.pooling == "mean":
            return segment_mean(at_least_float32(hidden[batch["response"]]), batch["response_lengths"])
        return hidden[batch["last"]]

    def outputs(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """The reward [sequences, 1]."""
        return torch.as_tensor(model.score(self.representation(hidden, batch)))

    def rewards(self, outputs: Tensor, reference: Tensor | None = None) -> Tensor:
        return outputs[..., 0]

    def loss(self, outputs: Tensor, reference: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
        rewards = self.rewards(outputs)
        return bradley_terry(rewards[:, 0], rewards[:, 1], margin)
