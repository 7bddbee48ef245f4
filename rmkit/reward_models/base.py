"""What a type of reward model is: which tokens it reads, what it makes of hidden states, its reward and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from rmkit.encoding.batches import Batch
from rmkit.encoding.chat import ChatEncoder, TokenSequence

Settings = TypeVar("Settings")


class RewardModel(ABC, Generic[Settings]):
    """The protocol that training, scoring and saving know; they never ask which type they have.

    Class attributes:
        auto_class: the transformers class that holds such a model.
        reads_responses: whether `encode` gives each prompt followed by its response, as `response_sequences` does.
        reads: the entry of a batch that says at which positions `outputs` reads hidden states.
        head: whether the model has a reward head, which is trained and saved with it.
        generation: whether training also reads the chosen responses as such (`PairCollator`).
        config: what the model's configuration must say, beyond what the base says.
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
        """`base`, or the name of another model whose outputs `rewards` and `loss` are given; None if there is none."""
        return None

    def adapt_model(self, model: PreTrainedModel) -> None:
        """Adapt a model that transformers has just loaded."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], responses: Sequence[str]) -> list[TokenSequence]:
        """The sequences that the model reads to reward each response."""

    @abstractmethod
    def outputs(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """What the model says of each sequence [sequences, outputs], from hidden states [positions, hidden size]."""

    def token_outputs(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """What each token of the responses adds to `outputs` [response tokens, outputs], for additive types."""
        raise NotImplementedError

    def prefixes(self, prompt: str, response: str) -> list[TokenSequence]:
        """What the model reads to reward each prefix of a response, token by token; the last is the whole response."""
        (whole,) = self.encode([prompt], [response])
        return [TokenSequence(whole.ids[:end], whole.response_start) for end in whole.response_ends]

    @abstractmethod
    def rewards(self, outputs: Tensor, reference: Tensor | None = None) -> Tensor:
        """Rewards [...] from outputs [..., outputs] of the model and, where it has one, of its reference.

        Raises:
            ValueError: if the type has a reference and its outputs are missing, or are not those of these sequences.
        """

    def log_rewards(self, outputs: Tensor) -> Tensor | None:
        """The logarithms [...] of rewards that are probabilities, which rank where these saturate; else None."""
        return None

    @abstractmethod
    def loss(self, outputs: Tensor, reference: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
        """The training loss, a scalar, from outputs [pairs, 2, outputs] (chosen, rejected) of model and reference."""
