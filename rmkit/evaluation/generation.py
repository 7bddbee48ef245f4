"""Generation for the Hamiltonian task: does a model that verifies cycles write them itself? (Section 3.2, Appendix D.1)

Responses are sampled at temperature 1 from the whole vocabulary and verified. They are reported with the quantity of
Theorem 1: the likelihood of the planted cycle, one of the correct responses, under the model and under its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import GenerationConfig

from rmkit.config.strict_yaml import StrictModel
from rmkit.encoding.batches import pad
from rmkit.encoding.chat import TokenSequence
from rmkit.errors import RmkitError
from rmkit.evaluation.scorer import RewardScorer
from rmkit.evaluation.scoring import Progress
from rmkit.models.language_model import unbound

MAX_NEW_TOKENS = 300
"""As in the released code."""


class GenerationSettings(StrictModel):
    """Sampling settings; `samples` is the number of responses per prompt."""

    samples: int = 1
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 1.0
    seed: int = 0


@torch.no_grad()
def generate(
    scorer: RewardScorer,
    prompts: Sequence[str],
    settings: GenerationSettings,
    *,
    batch_size: int = 64,
    description: str | None = None,
) -> list[list[str]]:
    """Sampled responses [prompts, samples], without end-of-turn token; deterministic for a seed and a batch size.

    Args:
        batch_size: responses per batch.
        description: label of the progress bar; no bar without one.

    Raises:
        RmkitError: if the model has a reward head instead of a language model head, or prompts and new tokens exceed
            its position embeddings.
    """
    encoder = scorer.reward_model.encoder
    sequences = _encode_prompts(scorer, prompts, settings.max_new_tokens)
    config = _generation_config(encoder.tokenizer.pad_token_id, encoder.end_id, settings)
    torch.manual_seed(settings.seed)
    model: Any = scorer.checkpoint.model
    original_config = model.generation_config
    rows = [sequence for sequence in sequences for _ in range(settings.samples)]
    texts: list[str] = []
    precision = scorer.checkpoint.record.precision(scorer.device)
    with precision, unbound(model), tqdm(total=len(rows), desc=description, disable=description is None) as bar:
        model.generation_config = config  # transformers would add settings of the model's own, such as top_p
        try:
            for start in range(0, len(rows), batch_size):
                batch = pad(rows[start : start + batch_size], config.pad_token_id, "left")
                inputs = {name: batch[name].to(scorer.device) for name in ("input_ids", "attention_mask")}
                generated = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
                texts += encoder.tokenizer.batch_decode(generated, skip_special_tokens=True)
                bar.update(len(generated))
        finally:
            model.generation_config = original_config
    size = settings.samples
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def _generation_config(pad_token_id: int, end_id: int, settings: GenerationSettings) -> GenerationConfig:
    """Sampling from the whole vocabulary, up to the end-of-turn token."""
    return GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=end_id,
        pad_token_id=pad_token_id,
    )


def _encode_prompts(scorer: RewardScorer, prompts: Sequence[str], max_new_tokens: int) -> list[TokenSequence]:
    """The token ids of prompts, up to where a response starts."""
    encoder = scorer.reward_model.encoder
    if scorer.reward_model.head:
        raise RmkitError(
            f"{encoder.name} has a reward head instead of a language model head, so it cannot generate.",
            "Give runs of the types implicit or generative.",
        )
    sequences = [
        TokenSequence(sequence.ids[: sequence.response_start], sequence.response_start)
        for sequence in encoder.response_sequences(prompts, ["x"] * len(prompts))
    ]
    longest, end = max(map(len, sequences), default=0), scorer.last_position
    if end is not None and longest + max_new_tokens > end:
        raise RmkitError(
            f"The longest prompt has {longest} tokens and up to {max_new_tokens} are generated, but the model has "
            f"position embeddings for {end}.",
            f"Give --max-new-tokens {end - longest}." if end > longest else "Shorten the prompts.",
        )
    return sequences


def verify_samples(
    prompts: Sequence[str],
    chosen: Sequence[str],
    generated: Sequence[Sequence[str]],
    is_correct: Callable[[str, str], bool],
) -> dict[str, Any]:
    """The share of correct responses, and all responses with their verdicts.

    Args:
        prompts, chosen: [prompts].
        generated: [prompts, samples].
        is_correct: whether a response to a prompt is correct.
    """
    correct = [[is_correct(prompt, text) for text in texts] for prompt, texts in zip(prompts, generated, strict=True)]
    return {
        "prompts": len(prompts),
        "correct": float(np.mean(correct)),
        "prompts_with_a_correct_one": float(np.mean(np.any(correct, axis=1))),
        "responses": [
            {"prompt": prompt, "chosen": planted, "generated": list(texts), "correct": verdicts}
            for prompt, planted, texts, verdicts in zip(prompts, chosen, generated, correct, strict=True)
        ],
    }


def likelihoods(
    scorer: RewardScorer,
    prompts: Sequence[str],
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    batch_size: int = 64,
    description: str | None = None,
) -> dict[str, float | None] | None:
    """The quantities of Theorem 1, with the planted cycle C for all correct responses.

    Returns:
        Means over the prompts, in nats: `chosen` is ln pi(C|x) and `chosen_reference` ln pi_ref(C|x), `rejected` and
        `rejected_reference` the same for the rejected response. `largest_growth` is the largest
        ln pi(C|x) - ln pi_ref(C|x); `smallest_margin_over_beta` and `mean_margin_over_beta` are r(x, C) - r(x, y-) in
        units of beta. By Theorem 1 a model can verify without growing more than such a margin. None for types whose
        rewards are not sums over tokens.
    """
    if not scorer.reward_model.additive:
        return None
    sequences = scorer.reward_model.encode([*prompts, *prompts], [*chosen, *rejected])
    with Progress(description, len(sequences) * scorer.models) as progress:
        policy, reference = (
            None if outputs is None else outputs[:, 0].numpy()
            for outputs in scorer.outputs(sequences, batch_size, progress)
        )
    assert policy is not None
    means: dict[str, float | None] = _halves("", policy)
    if reference is None:
        return means
    growth = policy - reference
    good, bad = np.split(growth, 2)
    return {
        **means,
        **_halves("_reference", reference),
        "largest_growth": float(good.max()),
        "smallest_margin_over_beta": float((good - bad).min()),
        "mean_margin_over_beta": float((good - bad).mean()),
    }


def _halves(suffix: str, log_probs: NDArray[np.float64]) -> dict[str, float | None]:
    chosen, rejected = np.split(log_probs, 2)
    return {f"chosen{suffix}": float(chosen.mean()), f"rejected{suffix}": float(rejected.mean())}
