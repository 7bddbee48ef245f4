"""The baseline of scoring: a plain transformers loop, as a careful user would write it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.ours import peak_mib
from benchmarks.setting import SCORING_BATCH, Job, Measurement, Workspace
from rmkit.data.preferences import PreferencePair, load_preferences


@torch.no_grad()
def score(job: Job, _: Path) -> Measurement:
    """Score all sets in input order, from texts to rewards; loading the model is not measured."""
    workspace = Workspace(job.workspace)
    device = "cuda" if job.setting.shape.device == "gpu" else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(workspace.classifier, padding_side="right")
    model = AutoModelForSequenceClassification.from_pretrained(workspace.classifier, dtype=job.setting.shape.dtype)
    model = model.to(device).eval()
    pairs = [pair for path in workspace.scored for pair in load_preferences(str(path))]
    started = time.perf_counter()
    rewards: list[float] = []
    for batch in _texts(tokenizer, pairs):
        inputs = tokenizer(batch, add_special_tokens=False, padding=True, return_tensors="pt").to(device)
        rewards += model(**inputs).logits[:, 0].float().cpu().tolist()
    seconds = time.perf_counter() - started
    return Measurement(
        seconds=seconds, peak_mib=peak_mib(), rewards=list(zip(rewards[::2], rewards[1::2], strict=True))
    )


def _texts(tokenizer: Any, pairs: list[PreferencePair]) -> Iterator[list[str]]:
    """The conversations chosen_0, rejected_0, chosen_1, ... under the chat template, in batches."""
    responses = [(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected)]
    for start in range(0, len(responses), SCORING_BATCH):
        yield [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}], tokenize=False
            )
            for prompt, response in responses[start : start + SCORING_BATCH]
        ]
