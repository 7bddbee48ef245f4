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

from rmkit.data.conversations import (
    TEMPLATE_FIELDS,
    Conversation,
    Prompt,
    Response,
    contents,
    parse_prompt,
    parse_response,
)
from rmkit.data.formats import find_unused
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.data.templated import KNOWN_MARKS, READ_AS_TEXT
from rmkit.errors import RmkitError
from rmkit.evaluation.limits import DEFAULT_BATCH_SIZE, WINDOW
from rmkit.evaluation.statistics import length_baselines, summary
from rmkit.runs.rewards import PairRewards, concatenate

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rmkit.encoding.chat import TokenSequence
    from rmkit.encoding.pairs import EncodedPair
    from rmkit.evaluation.scoring import Progress
    from rmkit.reward_models.loading import Checkpoint

Pair = PreferencePair | Mapping[str, Any] | Sequence[Any]

Messages = Sequence[Mapping[str, Any]]
"""Turns as JSON has them, with the keys role and content."""


@dataclass(frozen=True)
class ScoredSet:
    """The rewards of a set.

    Attributes:
        rewards: of the pairs that were scored; dropped pairs have no row.
        response_lengths: [pairs, 2] token counts of (chosen, rejected).
        dropped: reason -> number of pairs left out.
        remarks: warnings about the texts, one line each (see `rmkit.encoding.pairs.remarks`).
    """

    rewards: PairRewards
    response_lengths: NDArray[np.int64]
    dropped: dict[str, int]
    remarks: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Metrics of the rewards, and the accuracies of preferring the longer or the shorter response.

        Raises:
            RmkitError: if a reward is not finite.
        """
        return summary(self.rewards.rewards, self.rewards.log_rewards) | length_baselines(self.response_lengths)


@dataclass
class _ScoredSetBuilder:
    """Collects a `ScoredSet` window by window; keeps a few numbers per pair and no texts."""

    rewards: list[PairRewards] = field(default_factory=list)
    response_lengths: list[tuple[int, int]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    control_texts: int = 0
    templated: int = 0

    def add(self, pairs: Sequence[EncodedPair], rewards: PairRewards) -> None:
        if not pairs:
            return
        self.rewards.append(rewards)
        self.response_lengths += [pair.response_lengths for pair in pairs]
        self.lengths += [pair.longest for pair in pairs]
        self.control_texts += sum(pair.control_texts for pair in pairs)
        self.templated += sum(pair.templated for pair in pairs)

    def build(self, remarks: list[str]) -> ScoredSet:
        return ScoredSet(concatenate(self.rewards), np.array(self.response_lengths), self.dropped, remarks)


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

    def score(
        self,
        prompts: Sequence[Prompt | Messages | Mapping[str, Any]],
        responses: Sequence[Response | Messages],
        batch_size: int = 8,
    ) -> NDArray[np.float64]:
        """Rewards [responses] of responses to prompts; `batch_size` is the number of responses per forward pass.

        A prompt is a text or a list of messages ({"role": ..., "content": ...}) that ends with the user's, or a mapping
        with such messages and possibly tools and chat_template_kwargs. A response is a text, or a list of messages that
        starts and ends with the assistant's.

        Warns of texts that are longer than the model was trained for, or that spell control tokens.

        Raises:
            RmkitError: if a text is empty or longer than the model's position embeddings, the numbers of prompts and
                responses differ, or a reward is not finite.
        """
        if len(prompts) != len(responses):
            raise RmkitError(
                f"There are {len(prompts)} prompts and {len(responses)} responses.",
                "Give one prompt per response.",
            )
        parsed = []
        for number, prompt in enumerate(prompts):
            if not isinstance(prompt, str | list | tuple | Mapping | Conversation) or not (
                prompt.strip() if isinstance(prompt, str) else prompt
            ):
                raise RmkitError(
                    f"prompts[{number}] is empty or not a string.", "Give non-empty texts or lists of messages."
                )
            parsed.append(parse_prompt(prompt, f"prompts[{number}]"))
        answers = []
        for number, response in enumerate(responses):
            if not isinstance(response, str | list | tuple) or not (
                response.strip() if isinstance(response, str) else response
            ):
                raise RmkitError(
                    f"responses[{number}] is empty or not a string.", "Give non-empty texts or lists of messages."
                )
            answers.append(parse_response(response, f"responses[{number}]"))
        if not parsed:
            return np.zeros(0)
        for number, (turns, text) in enumerate(zip(parsed, answers, strict=True)):
            if any(map(KNOWN_MARKS.spelled_in, (*contents(turns), *contents(text)))):
                warnings.warn(
                    f"score: prompts[{number}] or responses[{number}] {READ_AS_TEXT}",
                    stacklevel=2,
                )
                break
        parts, lengths, control_texts, templated = [], [], 0, 0
        for start in range(0, len(parsed), 2 * WINDOW):
            window = slice(start, start + 2 * WINDOW)
            sequences = self.reward_model.encode(parsed[window], answers[window])
            lengths += list(map(len, sequences))
            control_texts += sum(sequence.prompt_spells or sequence.response_spells for sequence in sequences)
            templated += sum(map(self.reward_model.encoder.is_templated, parsed[window]))
            parts.append(self.reward_model.rewards(*self.outputs(sequences, batch_size)).numpy())
        for line in self._remarks("score", lengths, control_texts, templated, "responses"):
            warnings.warn(line, stacklevel=2)
        rewards = np.concatenate(parts)
        if not np.isfinite(rewards).all():
            raise RmkitError(
                f"{self.reward_model.encoder.name}: {np.sum(~np.isfinite(rewards))} of {rewards.size} rewards are not "
                "finite.",
                "Download or save the model again; its weights are finite, so check its config.json.",
            )
        return rewards

    def score_pairs(self, pairs: Iterable[Pair], batch_size: int = 8) -> NDArray[np.float64]:
        """Rewards [pairs, 2] of (chosen, rejected).

        Args:
            pairs: `PreferencePair`s, mappings with the keys prompt, chosen and rejected (and possibly tools and
                chat_template_kwargs), or triples in this order.
            batch_size: responses per forward pass.
        """
        triples = list(map(_triple, pairs))
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
        """Rewards of whole sets, in one pass that holds a bounded number of texts in memory.

        Every window has pairs of all sets, so that sets with common prompts (rewrites of one another, several rejected
        responses of a row) share their computation.

        Args:
            sets: by name.
            max_length: leave out pairs with more tokens, see `rmkit.encoding.pairs.encode_pairs`.
            description: label of the progress bar; no bar without one.
        """
        from rmkit.encoding.pairs import iter_encoded
        from rmkit.evaluation.scoring import Progress
        from rmkit.models.positions import refuse_longer

        builders = {name: _ScoredSetBuilder() for name in sets}
        streams = {
            name: iter_encoded(data, self.reward_model, builders[name].dropped, max_length=max_length)
            for name, data in sets.items()
        }
        with Progress(description, 2 * sum(map(len, sets.values())) * self.models) as progress:
            while streams:
                share = max(1, WINDOW // len(streams))
                window = {name: list(islice(stream, share)) for name, stream in streams.items()}
                streams = {name: stream for name, stream in streams.items() if len(window[name]) == share}
                for name, pairs in window.items():
                    refuse_longer(name, max((pair.longest for pair in pairs), default=0), self.last_position)
                all_pairs = [pair for pairs in window.values() for pair in pairs]
                rewards = self._pair_rewards(all_pairs, batch_size, progress)
                start = 0
                for name, pairs in window.items():
                    builders[name].add(pairs, rewards[start : start + len(pairs)])
                    start += len(pairs)
        return {
            name: builder.build(self._remarks(name, builder.lengths, builder.control_texts, builder.templated))
            for name, builder in builders.items()
        }

    def _remarks(
        self, name: str, lengths: Sequence[int], control_texts: int, templated: int, unit: str = "pairs"
    ) -> list[str]:
        from rmkit.encoding.pairs import remarks
        from rmkit.models.positions import made_for

        known, special_tokens = made_for(self.checkpoint.model.config), self.reward_model.encoder.special_tokens
        options: dict[str, Any] = {"known": known, "special_tokens": special_tokens, "unit": unit}
        return remarks(name, lengths, control_texts, templated, **options)

    def token_terms(self, prompt: Prompt, response: Response) -> NDArray[np.float64] | None:
        """The terms [tokens] whose sum is the reward of a response; None if rewards are not sums over tokens."""
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

    def prefix_rewards(self, prompt: Prompt, response: Response, batch_size: int = 8) -> NDArray[np.float64]:
        """The reward of every prefix of a response [tokens]; the last is the reward of the response."""
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

        from rmkit.evaluation.scoring import pair_rewards

        if not pairs:
            return PairRewards(np.zeros(0, dtype=np.int64), np.zeros((0, 2)))
        sequences = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
        policy, reference = (
            None if outputs is None else torch.stack(outputs.chunk(2), dim=1)
            for outputs in self.outputs(sequences, batch_size, progress)
        )
        assert policy is not None
        return pair_rewards(self.reward_model, policy, reference, [pair.pair.index for pair in pairs])

    @property
    def models(self) -> int:
        """The number of models that read a sequence: 2 with a reference, else 1."""
        return 1 + (self.checkpoint.reference is not None or self.checkpoint.reference_is_base)

    def _of_both(self, compute: Callable[[nn.Module], Tensor]) -> tuple[Tensor, Tensor | None]:
        """The result of `compute` for the model and, if there is one, for its reference."""
        model, reference = self.checkpoint.model, self.checkpoint.reference
        with self.checkpoint.record.precision(self.device):
            outputs = compute(model)
            if reference is not None:
                return outputs, compute(reference)
            if self.checkpoint.reference_is_base:
                with model.disable_adapter():
                    return outputs, compute(model)
        return outputs, None


def _triple(pair: Pair) -> tuple[Any, Any, Any]:
    if isinstance(pair, PreferencePair):
        return pair.prompt, pair.chosen, pair.rejected
    try:
        prompt, chosen, rejected = (
            (pair["prompt"], pair["chosen"], pair["rejected"]) if isinstance(pair, Mapping) else pair
        )
    except (KeyError, ValueError, TypeError):
        raise RmkitError(
            f"{str(pair)[:60]!r} is not a pair.",
            "Give mappings with the keys prompt, chosen and rejected, or triples in this order.",
        ) from None
    given = [key for key in pair if pair[key] is not None] if isinstance(pair, Mapping) else []
    unused = find_unused(given, ("prompt", *TEMPLATE_FIELDS))
    if unused:
        warnings.warn(f"score_pairs: keys of pairs that are not used: {', '.join(unused)}", stacklevel=3)
    besides = {key: pair[key] for key in TEMPLATE_FIELDS if isinstance(pair, Mapping) and pair.get(key)}
    return {"messages": prompt, **besides} if besides else prompt, chosen, rejected
