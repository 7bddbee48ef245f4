"""IM-RM: the log-ratio of a language model to its reference (Eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rmkit.config.recipe import Implicit
from rmkit.data.conversations import Prompt, Response
from rmkit.encoding.batches import Batch
from rmkit.encoding.chat import TokenSequence
from rmkit.models.language_model import response_log_probs, response_token_log_probs, use_unembedding
from rmkit.reward_models.base import RewardModel
from rmkit.reward_models.losses import bradley_terry


def implicit_reward(log_probs: Tensor, reference_log_probs: Tensor | None, beta: float) -> Tensor:
    """r(x, y) = beta * (ln pi(y|x) - ln pi_ref(y|x)) (Eq. 2); beta * ln pi(y|x) without a reference (Figure 7).

    Args:
        log_probs: [sequences] ln pi(y|x), summed over the response's tokens.
        reference_log_probs: [sequences] ln pi_ref(y|x).
        beta: the factor, positive.

    Returns:
        [sequences].
    """
    return beta * (log_probs if reference_log_probs is None else log_probs - reference_log_probs)


class ImplicitRewardModel(RewardModel[Implicit]):
    """The model's own probability of the response, including its end-of-turn token and template suffix."""

    auto_class = AutoModelForCausalLM
    additive = True
    reads = "predictor"

    @property
    def reference(self) -> str | None:
        return None if self.settings.reference == "none" else self.settings.reference

    def adapt_model(self, model: PreTrainedModel) -> None:
        use_unembedding(model)

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[TokenSequence]:
        return self.encoder.response_sequences(prompts, responses)

    def outputs(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """ln pi(y|x) [sequences, 1]."""
        return response_log_probs(model, hidden, batch)

    def token_outputs(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """ln pi of the response tokens [response tokens, 1]."""
        return response_token_log_probs(model, hidden, batch)[:, None]

    def rewards(self, outputs: Tensor, reference: Tensor | None = None) -> Tensor:
        """Eq. 2 [...].

        Raises:
            ValueError: if the reference's outputs are missing, or given without a reference, or of another shape than
                `outputs`, which broadcasting could hide.
        """
        if (reference is None) != (self.reference is None):
            problem = "missing" if reference is None else "given"
            raise ValueError(f"the reference is {self.settings.reference}, but its outputs are {problem}")
        if reference is not None and reference.shape != outputs.shape:
            raise ValueError(
                f"outputs have the shape {list(outputs.shape)}, those of the reference {list(reference.shape)}"
            )
        return implicit_reward(outputs[..., 0], None if reference is None else reference[..., 0], self.settings.beta)

    def loss(self, outputs: Tensor, reference: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
        rewards = self.rewards(outputs, reference)
        return bradley_terry(rewards[:, 0], rewards[:, 1], margin)
