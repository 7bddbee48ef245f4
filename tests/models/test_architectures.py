"""Every architecture of transformers: rewards equal the model's own forward pass, or it is refused by name."""

from __future__ import annotations

import contextlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from rmkit import RmkitError
from rmkit.config.recipe import Explicit, Implicit
from rmkit.encoding.chat import TokenSequence
from rmkit.evaluation.scoring import sequence_outputs
from rmkit.models.language_model import bind
from rmkit.models.shared_attention import possible_layout, take_shared_rows
from rmkit.reward_models.explicit import ExplicitRewardModel
from rmkit.reward_models.implicit import ImplicitRewardModel
from rmkit.reward_models.probe import check_classifier, check_forward

ENCODER = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
TYPES = {
    AutoModelForCausalLM: (ImplicitRewardModel(Implicit(), ENCODER), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    AutoModelForSequenceClassification: (
        ExplicitRewardModel(Explicit(), ENCODER),
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
}


def texts(number: int) -> list[TokenSequence]:
    """Sequences whose tokens and lengths differ from the probe's; every third one shares the previous prompt."""
    draw = np.random.default_rng(number)
    made, prompt = [], []
    for each in range(number):
        if each % 3 == 0:
            prompt = draw.integers(5, 90, size=draw.integers(17, 30)).tolist()
        made.append(TokenSequence(prompt + draw.integers(5, 90, size=draw.integers(2, 20)).tolist(), len(prompt)))
    return made


def probed() -> list[TokenSequence]:
    ids = [37 * number % 90 + 5 for number in range(36)]
    return [TokenSequence(ids[:20] + end, 20) for end in (ids[20:28], ids[28:])]


@torch.no_grad()
def expected(model, auto_class, sequences):
    """ln pi(y|x), or the classifier's output, from the model's own forward pass over single sequences."""
    found = []
    for sequence in sequences:
        logits = type(model).forward(model, input_ids=torch.tensor([sequence.ids])).logits.double()
        if auto_class is AutoModelForSequenceClassification:
            found.append(logits.item())
            continue
        log_probs, ids = torch.log_softmax(logits[0], -1), sequence.ids
        found.append(sum(log_probs[at - 1, ids[at]].item() for at in range(sequence.response_start, len(ids))))
    return np.array(found)


def verdict(model, auto_class, name, check=check_forward):
    """Whether it agrees in all its layouts or is refused, and why; "not built" where its own forward pass fails.

    Raises:
        AssertionError: if it computes other rewards and is not refused, or is refused and computes the same.
    """
    kind = TYPES[auto_class][0]
    try:
        if kind.head:
            check_classifier(name, model.config)
    except RmkitError as error:
        return "refused: head" if name in error.cause else "refused without its name"
    sequences = texts(9)
    try:
        own = expected(model, auto_class, sequences)
    except Exception:
        return "not built"
    kind.adapt_model(bind(model))
    shared = possible_layout("shared", model.config, None)[0] == "shared"
    for layout in ["padded", "shared"] if shared else ["padded"]:
        if layout == "shared":
            take_shared_rows(model, None)
        refused = ""
        try:
            check(model, kind, sequences=probed())
        except RmkitError as error:
            refused = error.cause
        off = np.inf
        with contextlib.suppress(Exception):  # where it fails altogether, so that it has to be refused
            found = sequence_outputs(model, kind, sequences, batch_size=4).numpy()[:, 0]
            off = np.abs(found - own).max() / np.abs(own).max()
        if refused:
            assert refused.startswith(type(model).__name__)
            if "is not causal" in refused:  # a token is seen before it is predicted, also in its own forward pass
                return "refused: not causal"
            assert off > 1e-4, f"{name}: refused, and right to {off:.1g}"
            return "refused: differs" if off < np.inf else "refused: fails"
        assert off < 1e-4, f"{name}: off by {off:.2g} in the layout {layout}, and not refused"
    return "agrees, both layouts" if shared else "agrees"


def survey(auto_class):
    verdicts, wrong = {}, []
    for name in TYPES[auto_class][1]:
        try:
            model = tiny_model(auto_class, name, **({"num_labels": 1} if TYPES[auto_class][0].head else {}))
        except Exception:  # whatever a configuration that cannot be shrunk raises
            verdicts[name] = "not built"
            continue
        try:
            verdicts[name] = verdict(model, auto_class, name)
        except AssertionError as error:
            wrong.append(str(error))
    print(*sorted(Counter(verdicts.values()).items()), sep="\n")
    for kind in sorted({*verdicts.values()}):
        print(f"{kind}:", *(name for name, each in verdicts.items() if each == kind))
    assert not wrong, "\n".join(wrong)
    return verdicts


@pytest.mark.slow
def test_every_language_model_is_scored_correctly_or_refused():
    verdicts = survey(AutoModelForCausalLM)
    counts = Counter(each.partition(":")[0].partition(",")[0] for each in verdicts.values())
    assert counts["agrees"] > 110
    assert counts["not built"] < 40
    for name in (
        "gpt_oss",
        "llama4_text",
        "mixtral",
        "bloom",
        "gemma4_text",
        "deepseek_v3",
        "qwen3_moe",
        "inkling2_text",
        "cohere",
        "granite",
    ):
        assert verdicts[name] in ("agrees", "agrees, both layouts"), name
    for name in ("bert-generation", "xlm", "xlnet"):
        assert verdicts[name] == "refused: not causal", name
    for name in ("modernbert-decoder", "inkling_text", "bert", "electra", "prophetnet"):
        assert verdicts[name] == "refused: differs", name


@pytest.mark.slow
def test_every_classifier_is_scored_correctly_or_refused():
    verdicts = survey(AutoModelForSequenceClassification)
    counts = Counter(each.partition(":")[0].partition(",")[0] for each in verdicts.values())
    assert counts["agrees"] > 45
    assert counts["not built"] < 20
    for name in ("gpt_oss", "gpt2", "llama", "mixtral", "opt", "bloom"):
        assert verdicts[name] in ("agrees", "agrees, both layouts"), name
    for name in ("bert", "roberta", "deberta-v2", "modernbert", "modernbert-decoder", "electra"):
        assert verdicts[name] == "refused: head", name


class _Wrong:
    """A model whose forward pass does slightly more than its submodules."""

    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        return type(found)(**(dict(found) | {"logits": found.logits * 1.01}))


@pytest.mark.parametrize("auto_class", TYPES, ids=lambda each: each.__name__)
def test_a_silently_wrong_architecture_is_refused_and_would_fail_the_survey(auto_class):
    model = tiny_model(auto_class, "llama", num_labels=1)
    assert verdict(model, auto_class, "llama") == "agrees, both layouts"
    model = tiny_model(auto_class, "llama", num_labels=1)
    model.__class__ = type("OddLlama", (_Wrong, type(model)), {})
    assert verdict(model, auto_class, "odd") == "refused: differs"
    model = tiny_model(auto_class, "llama", num_labels=1)
    model.__class__ = type("OddLlama", (_Wrong, type(model)), {})
    with pytest.raises(AssertionError, match="not refused"):
        verdict(model, auto_class, "odd", check=lambda *_, **__: None)
