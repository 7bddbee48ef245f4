"""The protocol of a reward model type: the tokens it reads, its outputs from hidden states, its reward and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from rmkit.data.conversations import Prompt, Response
from rmkit.encoding.batches import Batch
from rmkit.encoding.chat import ChatEncoder, TokenSequence

Settings = TypeVar("Settings")


class RewardModel(ABC, Generic[Settings]):
    """What training, scoring and saving use; they never check the type.

    Class attributes:
        auto_class: the transformers class of the model.
        reads_responses: whether `encode` returns the prompt followed by the response, as `response_sequences` does.
        reads: the entry of a batch with the positions at which `outputs` reads hidden states.
        head: whether the model has a reward head, trained and saved with it.
        generation: whether training also reads the chosen responses themselves (`PairCollator`).
        config: entries that override the base's configuration.
        additive: whether outputs, and so rewards, are sums over the tokens of the response (`token_outputs`).
    """

    auto_class: ClassVar[Any]
    reads_responses: ClassVar[bool] = True
    reads: str = "last"
    head: ClassVar[bool] = False
    generation: bool = False
    config: ClassVar[dict[str, Any]] = {}
    additive: ClassVar[bool] = False

    def __init__(self, settings: Settings, encoder: ChatEncoder):
        self.settings = settings
        self.encoder = encoder

    @property
    def reference(self) -> str | None:
        """The model whose outputs `rewards` and `loss` compare with: `base`, the name of another model, or None."""
        return None

    def adapt_model(self, model: PreTrainedModel) -> None:
        """Change a model that transformers has just loaded, in place."""

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[TokenSequence]:
        """The token sequences [responses] that the model reads to reward responses."""

    @abstractmethod
    def outputs(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """Outputs [sequences, outputs], from which rewards follow, from hidden states [positions, hidden size]."""

    def token_outputs(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """The contribution of every response token to `outputs` [response tokens, outputs], for additive types."""
        raise NotImplementedError

    def prefixes(self, prompt: Prompt, response: Response) -> list[TokenSequence]:
        """The sequences that reward the prefixes of a response, token by token; the last is the whole response."""
        (whole,) = self.encode([prompt], [response])
        return [whole.prefix(end) for end in whole.response_ends]

    @abstractmethod
    def rewards(self, outputs: Tensor, reference: Tensor | None = None) -> Tensor:
        """Rewards [...] from outputs [..., outputs] of the model and, where it has one, of its reference.

        Raises:
            ValueError: if the type has a reference whose outputs are missing or have another shape.
        """

    def log_rewards(self, outputs: Tensor) -> Tensor | None:
        """Log-rewards [...], to rank by where rewards are probabilities that saturate; None for other types."""
        return None

    @abstractmethod
    def loss(self, outputs: Tensor, reference: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
        """The training loss, a scalar, from outputs [pairs, 2, outputs] (chosen, rejected) of model and reference."""
