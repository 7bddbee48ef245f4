"""Reward models in use: `load_reward_model(path)` and then `score`, without a recipe or a trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor, nn

from rmkit.batching import Layout, pad
from rmkit.encoding import TokenSequence
from rmkit.errors import RmkitError
from rmkit.evaluation.scoring import DEFAULT_BATCH_SIZE, PairRewards, pair_rewards, sequence_outputs
from rmkit.language_model import run
from rmkit.pairs import EncodedPairs
from rmkit.preferences import PreferencePair
from rmkit.recipe import DTypeName
from rmkit.reward_models.checkpoint import Checkpoint, load

Pair = PreferencePair | Mapping[str, str] | Sequence[str]


def load_reward_model(
    path_or_id: str,
    type: str | None = None,
    pooling: str | None = None,
    reference: str | None = None,
    beta: float | None = None,
    *,
    revision: str | None = None,
    dtype: DTypeName | None = None,
    attention: str | None = None,
    layout: Layout | None = None,
    date_string: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
) -> Scorer:
    """A reward model that scores texts.

    Args:
        path_or_id: a run's model/ folder, any transformers model folder, or a hub id. A run's folder knows its options.
        type: explicit, implicit or generative.
        pooling: explicit models: last or mean.
        reference: implicit models: the model that training started from, or "none".
        beta: implicit models: the factor of Eq. 2.
        layout: shared (what sequences start with alike is computed once) or padded; as recorded, else shared.
        device: where to compute; the first accelerator, else the CPU.

    Raises:
        RmkitError: see `rmkit.reward_models.checkpoint.load`.
    """
    options = {"type": type, "pooling": pooling, "reference": reference, "beta": beta}
    checkpoint = load(
        str(path_or_id),
        options=options,
        revision=revision,
        dtype=dtype,
        attention=attention,
        layout=layout,
        date_string=date_string,
        trust_remote_code=trust_remote_code,
    )
    return Scorer(checkpoint, device)


class Scorer:
    """A loaded reward model. `score` rewards responses; `score_pairs` rewards the two responses of preference pairs."""

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device | None = None):
        self.checkpoint = checkpoint
        self.reward_model = checkpoint.reward_model
        self.device = torch.device(device) if device is not None else PartialState().device
        checkpoint.model.to(self.device)
        if checkpoint.reference is not None:
            checkpoint.reference.to(self.device)

    def score(self, prompts: Sequence[str], responses: Sequence[str], batch_size: int = 8) -> NDArray[np.float64]:
        """Rewards [responses] of each response to its prompt; `batch_size` is in responses a forward pass.

        Raises:
            RmkitError: if a text is empty, or there are not as many prompts as responses.
        """
        if len(prompts) != len(responses):
            raise RmkitError(
                f"There are {len(prompts)} prompts and {len(responses)} responses.",
                "Give one prompt for each response.",
            )
        for kind, texts in (("prompt", prompts), ("response", responses)):
            empty = [number for number, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
            if empty:
                raise RmkitError(f"The {kind} number {empty[0]} is empty or no text.", "Give non-empty texts.")
        if not prompts:
            return np.zeros(0)
        sequences = self.reward_model.encode(prompts, responses)
        rewards = self.reward_model.rewards(*self.outputs(sequences, batch_size, None))
        return rewards.numpy()

    def score_pairs(self, pairs: Iterable[Pair], batch_size: int = 8) -> NDArray[np.float64]:
        """Rewards [pairs, 2] of (chosen, rejected).

        Args:
            pairs: `PreferencePair`s, mappings with prompt, chosen and rejected, or such triples.
            batch_size: responses a forward pass.
        """
        triples = [_triple(pair) for pair in pairs]
        prompts = [prompt for prompt, _, _ in triples]
        rewards = self.score(
            prompts * 2, [chosen for _, chosen, _ in triples] + [rejected for _, _, rejected in triples], batch_size
        )
        return rewards.reshape(2, -1).T.copy()

    def score_encoded(
        self, pairs: EncodedPairs, batch_size: int = DEFAULT_BATCH_SIZE, description: str | None = None
    ) -> PairRewards:
        """Rewards of a set that is encoded already; a bar is shown where there is a description."""
        outputs = self.outputs([*pairs.chosen, *pairs.rejected], batch_size, description)
        policy, reference = (None if each is None else torch.stack(each.chunk(2), dim=1) for each in outputs)
        assert policy is not None
        return pair_rewards(self.reward_model, policy, reference)

    def token_terms(self, prompt: str, response: str) -> NDArray[np.float64] | None:
        """What each token of a response adds to its reward [tokens], or None if rewards are no sums over tokens."""
        if not self.reward_model.additive:
            return None
        batch = {
            name: tensor.to(self.device)
            for name, tensor in pad(self.reward_model.encode([prompt], [response]), 0).items()
        }

        @torch.no_grad()
        def outputs(model: nn.Module, _: str) -> Tensor:
            return run(model, self.reward_model.token_outputs, batch).double().cpu()

        return np.asarray(self.reward_model.rewards(*self._of_both(outputs)).numpy(), dtype=np.float64)

    def prefix_rewards(self, prompt: str, response: str, batch_size: int = 8) -> NDArray[np.float64]:
        """The reward of every prefix of a response [tokens]; the last is that of the response."""
        outputs = self.outputs(self.reward_model.prefixes(prompt, response), batch_size)
        return np.asarray(self.reward_model.rewards(*outputs).numpy(), dtype=np.float64)

    def outputs(
        self,
        sequences: Sequence[TokenSequence],
        batch_size: int = DEFAULT_BATCH_SIZE,
        description: str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs [sequences, outputs] of the model and of its reference; a bar is shown under a description."""

        def outputs(model: nn.Module, note: str) -> Tensor:
            shown = None if description is None else f"{description}{note}"
            return sequence_outputs(model, self.reward_model, sequences, batch_size=batch_size, description=shown)

        return self._of_both(outputs)

    def _of_both(self, compute: Callable[[nn.Module, str], Tensor]) -> tuple[Tensor, Tensor | None]:
        """What `compute` gives for the model and for its reference; it is told a note for the bar."""
        model, reference = self.checkpoint.model, self.checkpoint.reference
        with self.autocast():
            outputs = compute(model, "")
            if reference is not None:
                return outputs, compute(reference, " (reference)")
            if self.checkpoint.reference_is_base:
                with model.disable_adapter():
                    return outputs, compute(model, " (reference)")
        return outputs, None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision in which the model was trained."""
        if self.checkpoint.record.autocast:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def _triple(pair: Pair) -> tuple[str, str, str]:
    if isinstance(pair, PreferencePair):
        return pair.prompt, pair.chosen, pair.rejected
    try:
        prompt, chosen, rejected = (
            (pair["prompt"], pair["chosen"], pair["rejected"]) if isinstance(pair, Mapping) else pair
        )
    except (KeyError, ValueError, TypeError):
        raise RmkitError(
            f"A pair is {str(pair)[:60]!r}.", "Give mappings with prompt, chosen and rejected, or such triples."
        ) from None
    return prompt, chosen, rejected
