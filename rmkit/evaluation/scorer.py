"""`RewardScorer`: a loaded reward model that scores texts, pairs and sets, without a recipe or a trainer.

Importing this module is fast, since the class is part of the public face: its methods import torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.errors import RmkitError
from rmkit.evaluation.limits import DEFAULT_BATCH_SIZE, WINDOW
from rmkit.evaluation.statistics import length_baselines

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rmkit.encoding.chat import TokenSequence
    from rmkit.encoding.pairs import EncodedPair
    from rmkit.evaluation.scoring import PairRewards, Progress
    from rmkit.reward_models.saving import Checkpoint

Pair = PreferencePair | Mapping[str, str] | Sequence[str]


@dataclass(frozen=True)
class ScoredSet:
    """Rewards of a set.

    Attributes:
        index: [pairs] the row of each pair in the source; those that were left out have none.
        rewards: of the chosen and the rejected responses.
        response_lengths: [pairs, 2] tokens of both responses.
        dropped: reason -> number of pairs left out.
        remarks: what users should know of the texts, a line each (see `rmkit.encoding.pairs.remarks`).
    """

    index: NDArray[np.int64]
    rewards: PairRewards
    response_lengths: NDArray[np.int64]
    dropped: dict[str, int]
    remarks: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Metrics of the rewards, and accuracies of preferring by length.

        Raises:
            RmkitError: if a reward is not finite.
        """
        return self.rewards.summary() | length_baselines(self.response_lengths.tolist())

    def columns(self) -> dict[str, NDArray[Any]]:
        """What a rewards file holds."""
        return {"index": self.index} | self.rewards.columns()


@dataclass
class _Gathering:
    """The parts of a `ScoredSet`, window after window: a few numbers a pair."""

    parts: list[ScoredSet] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    control_texts: int = 0
    templated: int = 0

    def add(self, pairs: Sequence[EncodedPair], rewards: PairRewards) -> None:
        if not pairs:
            return
        index = np.array([each.pair.index for each in pairs])
        self.parts.append(ScoredSet(index, rewards, np.array([each.response_lengths for each in pairs]), {}))
        self.lengths += [each.longest for each in pairs]
        self.control_texts += sum(each.control_texts for each in pairs)
        self.templated += sum(each.templated for each in pairs)

    def whole(self, remarks: list[str]) -> ScoredSet:
        from rmkit.evaluation.scoring import PairRewards

        rewards = [part.rewards for part in self.parts]
        log_rewards = [each.log_rewards for each in rewards if each.log_rewards is not None]
        return ScoredSet(
            np.concatenate([part.index for part in self.parts]),
            PairRewards(
                np.concatenate([each.rewards for each in rewards]), np.concatenate(log_rewards) if log_rewards else None
            ),
            np.concatenate([part.response_lengths for part in self.parts]),
            self.dropped,
            remarks,
        )


class RewardScorer:
    """A loaded reward model. `score` rewards responses; `score_pairs` rewards the two responses of preference pairs.

    Raises:
        ValueError: if the reward model has a reference that was not loaded with it.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | torch.device | None = None):
        import torch
        from accelerate import PartialState

        from rmkit.models.positions import last_position
        from rmkit.reward_models.probe import check_forward

        loaded = checkpoint.reference is not None or checkpoint.reference_is_base
        if checkpoint.reward_model.reference is not None and not loaded:
            raise ValueError(f"the reference {checkpoint.reward_model.reference} was not loaded (policy_only)")
        self.checkpoint = checkpoint
        self.reward_model = checkpoint.reward_model
        self.device = torch.device(device) if device is not None else PartialState().device
        checkpoint.model.to(self.device)
        if checkpoint.reference is not None:
            checkpoint.reference.to(self.device)
        ends = [last_position(each) for each in (checkpoint.model, checkpoint.reference) if each is not None]
        self.last_position = min((end for end in ends if end is not None), default=None)
        with checkpoint.record.precision(self.device):
            for model in filter(None, (checkpoint.model, checkpoint.reference)):
                check_forward(model, self.reward_model, half=checkpoint.record.half)

    def score(self, prompts: Sequence[str], responses: Sequence[str], batch_size: int = 8) -> NDArray[np.float64]:
        """Rewards [responses] of each response to its prompt; `batch_size` is in responses a forward pass.

        Warns of texts that are longer than the model was made for, or that spell control tokens.

        Raises:
            RmkitError: if a text is empty or longer than the model's position embeddings, there are not as many prompts
                as responses, or a reward is not finite.
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
        rewards, lengths, spelling, templated = [], [], 0, 0
        for start in range(0, len(prompts), 2 * WINDOW):
            some = slice(start, start + 2 * WINDOW)
            sequences = self.reward_model.encode(prompts[some], responses[some])
            lengths += list(map(len, sequences))
            spelling += sum(each.prompt_spells or each.response_spells for each in sequences)
            templated += sum(map(self.reward_model.encoder.is_templated, prompts[some]))
            rewards.append(self.reward_model.rewards(*self.outputs(sequences, batch_size)).numpy())
        for line in self._remarks("score", lengths, spelling, templated, "responses"):
            warnings.warn(line, stacklevel=2)
        found = np.concatenate(rewards)
        if not np.isfinite(found).all():
            broken = np.sum(~np.isfinite(found))
            raise RmkitError(
                f"{self.reward_model.encoder.name}: {broken} of {found.size} rewards are not finite.",
                "Fetch or save the model again: its weights are finite, so look at what its config.json says.",
            )
        return found

    def score_pairs(self, pairs: Iterable[Pair], batch_size: int = 8) -> NDArray[np.float64]:
        """Rewards [pairs, 2] of (chosen, rejected).

        Args:
            pairs: `PreferencePair`s, mappings with prompt, chosen and rejected, or such triples.
            batch_size: responses a forward pass.
        """
        triples = [_triple(pair) for pair in pairs]
        prompts = [prompt for prompt, _, _ in triples for _ in range(2)]
        responses = [response for _, *both in triples for response in both]
        return self.score(prompts, responses, batch_size).reshape(-1, 2)

    def score_sets(
        self,
        sets: Mapping[str, PreferenceData],
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_length: int | None = None,
        description: str | None = None,
    ) -> dict[str, ScoredSet]:
        """Rewards of whole sets, all in one pass that holds a bounded number of texts at a time.

        A window takes pairs of every set in turn. Sets that have prompts in common (rewrites of one another, the
        several rejected responses of a row) then share them.

        Args:
            sets: by name.
            max_length: pairs over so many tokens are left out, see `rmkit.encoding.pairs.encode_pairs`.
            description: shown beside a progress bar; without one there is no bar.
        """
        from rmkit.encoding.pairs import iter_encoded
        from rmkit.evaluation.scoring import Progress
        from rmkit.models.positions import refuse_longer

        scored = {name: _Gathering() for name in sets}
        streams = {
            name: iter_encoded(data, self.reward_model, scored[name].dropped, max_length=max_length)
            for name, data in sets.items()
        }
        with Progress(description, 2 * sum(map(len, sets.values())) * self.models) as progress:
            while streams:
                each = max(1, WINDOW // len(streams))
                taken = {name: list(islice(stream, each)) for name, stream in streams.items()}
                streams = {name: stream for name, stream in streams.items() if len(taken[name]) == each}
                for name, some in taken.items():
                    refuse_longer(name, max((pair.longest for pair in some), default=0), self.last_position)
                pairs = [pair for some in taken.values() for pair in some]
                rewards = self._pair_rewards(pairs, batch_size, progress)
                start = 0
                for name, some in taken.items():
                    scored[name].add(some, rewards[start : start + len(some)])
                    start += len(some)
        return {
            name: found.whole(self._remarks(name, found.lengths, found.control_texts, found.templated))
            for name, found in scored.items()
        }

    def _remarks(
        self, name: str, lengths: Sequence[int], control_texts: int, templated: int, unit: str = "pairs"
    ) -> list[str]:
        from rmkit.encoding.pairs import remarks
        from rmkit.models.positions import made_for

        known, special_tokens = made_for(self.checkpoint.model.config), self.reward_model.encoder.special_tokens
        options: dict[str, Any] = {"known": known, "special_tokens": special_tokens, "unit": unit}
        return remarks(name, lengths, control_texts, templated, **options)

    def token_terms(self, prompt: str, response: str) -> NDArray[np.float64] | None:
        """What each token of a response adds to its reward [tokens], or None if rewards are no sums over tokens."""
        import torch

        from rmkit.encoding.batches import pad
        from rmkit.models.language_model import apply_head
        from rmkit.models.positions import refuse_longer

        if not self.reward_model.additive:
            return None
        sequences = self.reward_model.encode([prompt], [response])
        refuse_longer("the response", len(sequences[0]), self.last_position)
        batch = {name: tensor.to(self.device) for name, tensor in pad(sequences, 0).items()}

        @torch.no_grad()
        def compute(model: nn.Module) -> Tensor:
            return apply_head(model, self.reward_model.token_outputs, batch).double().cpu()

        return np.asarray(self.reward_model.rewards(*self._of_both(compute)).numpy(), dtype=np.float64)

    def prefix_rewards(self, prompt: str, response: str, batch_size: int = 8) -> NDArray[np.float64]:
        """The reward of every prefix of a response [tokens]; the last is that of the response."""
        outputs = self.outputs(self.reward_model.prefixes(prompt, response), batch_size)
        return np.asarray(self.reward_model.rewards(*outputs).numpy(), dtype=np.float64)

    def outputs(
        self,
        sequences: Sequence[TokenSequence],
        batch_size: int = DEFAULT_BATCH_SIZE,
        progress: Progress | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs [sequences, outputs] of the model and of its reference, in the same batches.

        Raises:
            RmkitError: if a sequence is longer than the model's position embeddings.
        """
        from rmkit.evaluation.scoring import sequence_outputs
        from rmkit.models.positions import refuse_longer

        refuse_longer("the responses", max(map(len, sequences), default=0), self.last_position)

        def compute(model: nn.Module) -> Tensor:
            return sequence_outputs(model, self.reward_model, sequences, batch_size=batch_size, progress=progress)

        return self._of_both(compute)

    def _pair_rewards(self, pairs: Sequence[EncodedPair], batch_size: int, progress: Progress) -> PairRewards:
        import torch

        from rmkit.evaluation.scoring import PairRewards, pair_rewards

        if not pairs:
            return PairRewards(np.zeros((0, 2)))
        sequences = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
        policy, reference = (
            None if outputs is None else torch.stack(outputs.chunk(2), dim=1)
            for outputs in self.outputs(sequences, batch_size, progress)
        )
        assert policy is not None
        return pair_rewards(self.reward_model, policy, reference)

    @property
    def models(self) -> int:
        """How many models read each sequence."""
        return 1 + (self.checkpoint.reference is not None or self.checkpoint.reference_is_base)

    def _of_both(self, compute: Callable[[nn.Module], Tensor]) -> tuple[Tensor, Tensor | None]:
        """What `compute` gives for the model and for its reference."""
        model, reference = self.checkpoint.model, self.checkpoint.reference
        with self.checkpoint.record.precision(self.device):
            outputs = compute(model)
            if reference is not None:
                return outputs, compute(reference)
            if self.checkpoint.reference_is_base:
                with model.disable_adapter():
                    return outputs, compute(model)
        return outputs, None


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
