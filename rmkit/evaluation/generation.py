"""Generation for the Hamiltonian task: does a model that verifies cycles write them itself? (Section 3.2, Appendix D.1)

Responses are sampled at temperature 1 from the whole vocabulary and verified. Beside them stands what Theorem 1 is
about: how likely the planted cycle, one of the correct responses, is under the model and under its reference.
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
    """How responses are sampled; `samples` for each prompt."""

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
    """Sampled responses [prompts, samples], without end-of-turn token. The same seed and batches give the same ones.

    Args:
        batch_size: responses at a time.
        description: shown beside the progress bar; without one there is no bar.

    Raises:
        RmkitError: if the model has a reward head instead of a language model's, or prompts and new tokens are longer
            than its position embeddings.
    """
    if scorer.reward_model.head:
        raise RmkitError(
            f"{scorer.reward_model.encoder.name} has a reward head and no language model's, so it cannot generate.",
            "Give runs of the types implicit or generative.",
        )
    encoder = scorer.reward_model.encoder
    sequences = [
        TokenSequence(each.ids[: each.response_start], each.response_start)
        for each in encoder.response_sequences(prompts, ["x"] * len(prompts))
    ]
    longest, end = max(map(len, sequences), default=0), scorer.last_position
    if end is not None and longest + settings.max_new_tokens > end:
        raise RmkitError(
            f"A prompt takes {longest} tokens, and {settings.max_new_tokens} may follow; the model has position "
            f"embeddings for {end}.",
            f"Give --max-new-tokens {end - longest}." if end > longest else "Shorten the prompts.",
        )
    config = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=encoder.end_id,
        pad_token_id=encoder.tokenizer.pad_token_id,
    )
    torch.manual_seed(settings.seed)
    model: Any = scorer.checkpoint.model
    own = model.generation_config
    rows = [number for number in range(len(prompts)) for _ in range(settings.samples)]
    texts: list[str] = []
    precision = scorer.checkpoint.record.precision(scorer.device)
    with precision, unbound(model), tqdm(total=len(rows), desc=description, disable=description is None) as bar:
        model.generation_config = config  # what the model's own would add, such as top_p, is not wanted
        try:
            for start in range(0, len(rows), batch_size):
                members = rows[start : start + batch_size]
                batch = pad([sequences[each] for each in members], config.pad_token_id, "left")
                inputs = {name: batch[name].to(scorer.device) for name in ("input_ids", "attention_mask")}
                written = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
                texts += encoder.tokenizer.batch_decode(written, skip_special_tokens=True)
                bar.update(len(members))
        finally:
            model.generation_config = own
    size = settings.samples
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def verify_samples(
    prompts: Sequence[str],
    chosen: Sequence[str],
    generated: Sequence[Sequence[str]],
    is_correct: Callable[[str, str], bool],
) -> dict[str, Any]:
    """How many of the responses are correct, and every one of them.

    Args:
        prompts, chosen: [prompts].
        generated: [prompts, samples].
        is_correct: judges a prompt and a response.
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
    """Theorem 1 on what can be computed: the planted cycle C stands for all correct responses. None for other types.

    Means over the prompts, in nats: `chosen` ln pi(C|x), `chosen_reference` ln pi_ref(C|x), the same of the rejected
    response. `largest_growth` is the largest ln pi(C|x) - ln pi_ref(C|x), `..._margin_over_beta` the smallest and the
    mean r(x, C) - r(x, y-) in units of beta: by Theorem 1 no more growth than such a margin is needed to verify.
    """
    if not scorer.reward_model.additive:
        return None
    sequences = scorer.reward_model.encode([*prompts, *prompts], [*chosen, *rejected])
    with Progress(description, len(sequences) * scorer.models) as progress:
        policy, reference = (
            None if each is None else each[:, 0].numpy() for each in scorer.outputs(sequences, batch_size, progress)
        )
    assert policy is not None
    found: dict[str, float | None] = _halves("", policy)
    if reference is None:
        return found
    growth = policy - reference
    good, bad = np.split(growth, 2)
    return {
        **found,
        **_halves("_reference", reference),
        "largest_growth": float(good.max()),
        "smallest_margin_over_beta": float((good - bad).min()),
        "mean_margin_over_beta": float((good - bad).mean()),
    }


def _halves(suffix: str, log_probs: NDArray[np.float64]) -> dict[str, float | None]:
    chosen, rejected = np.split(log_probs, 2)
    return {f"chosen{suffix}": float(chosen.mean()), f"rejected{suffix}": float(rejected.mean())}
