"""The models that are measured: Llamas with random weights, by size. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = Literal["cpu", "gpu"]
DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings; all of its parameters are trained.

    Attributes:
        vocabulary_size: rows of the embeddings. The tokenizer, trained on the pairs' texts, has at most as many tokens.
        head_size: size of an attention head; there are `heads` for queries, `key_value_heads` for keys and values.
        dtype: of the weights and the computation.
    """

    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    device: Device = "cpu"
    dtype: DType = "float32"

    @property
    def products(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one block: q, k, v, o of attention; gate, up, down of the MLP."""
        queries, keys = self.heads * self.head_size, self.key_value_heads * self.head_size
        hidden, inner = self.hidden_size, self.intermediate_size
        attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
        return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]

    @property
    def layer_weights(self) -> int:
        """Number of weights of all linear layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.products)

    @property
    def head_weights(self) -> int:
        """Number of weights of the language model's head."""
        return self.vocabulary_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """Number of parameters: linear layers, embeddings (tied to the head) and norms."""
        return self.layer_weights + self.head_weights + (2 * self.layers + 1) * self.hidden_size


SHAPES = {
    "tiny": Shape(420, 64, 128, 2, 4, 4, 16),
    "19m": Shape(4096, 512, 1536, 5, 8, 8, 64),
    "1b": Shape(128256, 2048, 8192, 16, 32, 8, 64, "gpu", "bfloat16"),  # Llama-3.2-1B
    "3b": Shape(128256, 3072, 8192, 28, 24, 8, 128, "gpu", "bfloat16"),  # Llama-3.2-3B
}
