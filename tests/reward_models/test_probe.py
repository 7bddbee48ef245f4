"""Models whose own forward pass differs from rmkit's are refused, at load and before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rmkit import RmkitError, load_reward_model
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.reward_models import probe
from rmkit.reward_models.probe import check_forward, probe_sequences

PAIR = (["How do I bake bread?"], ["Mix flour, water, salt and yeast. Wait. Bake it."])
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def save(folder: Path, model_type: str, auto_class=AutoModelForCausalLM, **options) -> Path:
    """A random model of an architecture with the tokenizer of qwen2."""
    tokenizer = tiny.tokenizer("qwen2")
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **SIZES | options)
    torch.manual_seed(0)
    model = auto_class.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def language_model(folder, **options):
    return load_reward_model(str(folder), "implicit", reference="none", beta=1.0, **options)


def trained_from(folder, run, **changes):
    return run("implicit", base={"name": str(folder)}, **changes)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("modernbert-decoder", {"cls_token_id": 0, "sep_token_id": 0}),  # a norm and a layer before the logits
    ],
)
def test_logits_that_are_more_than_the_unembedding_are_refused(tmp_path, model_type, options):
    folder = save(tmp_path / "model", model_type, **options)
    for options in ({"type": "implicit", "reference": "none", "beta": 1.0}, {"type": "generative"}):
        with pytest.raises(RmkitError, match=rf"\({model_type}\) computes more than rmkit supports.*log-prob") as error:
            load_reward_model(str(folder), **options)
        assert error.value.remedy == "Use a model of another architecture, such as Llama, Qwen or Gemma."


def test_training_such_a_model_is_refused_before_the_run_directory_is_taken(tmp_path, run):
    folder = save(tmp_path / "model", "modernbert-decoder", cls_token_id=0, sep_token_id=0)
    with pytest.raises(RmkitError, match=r"\(modernbert-decoder\) computes more"):
        trained_from(folder, run)
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    reference = {"type": "implicit", "reference": str(folder), "beta": 0.1}
    with pytest.raises(RmkitError, match=r"\(modernbert-decoder\) computes more"):
        run("explicit", reward_model=reference)


@pytest.mark.parametrize(
    ("model_type", "options"), [("cohere", {"logit_scale": 0.3}), ("granite", {"logits_scaling": 3.0})]
)
def test_scaled_logits_are_not_refused(tmp_path, model_type, options):
    folder = save(tmp_path / "model", model_type, **options)
    for dtype in ("float32", "bfloat16"):
        assert np.isfinite(language_model(folder, dtype=dtype).score(*PAIR))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_llama_qwen_gemma_and_neox_are_not_refused(models, architecture):
    """In bfloat16; in float32 the tests of rewards load them."""
    options = {"dtype": "bfloat16", "date_string": "26 Jul 2024"}
    assert np.isfinite(language_model(models[architecture], **options).score(*PAIR))


def test_the_probe_reads_ordinary_tokens_of_the_vocabulary(models):
    for folder in models.values():
        tokenizer, _ = load_tokenizer(folder)
        first, second = (sequence.ids for sequence in probe_sequences(tokenizer))
        assert first[:20] == second[:20]
        assert len({*first, *second}) == 36
        assert not {*first, *second} & {*tokenizer.all_special_ids}
        assert max(*first, *second) < len(tokenizer)


def test_a_difference_of_a_hundredth_is_seen_in_both_precisions(models):
    """The control: 1 % in float32 and 5 % in bfloat16, of the logits."""
    for dtype, factor in (("float32", 1.01), ("bfloat16", 1.05)):
        scorer = language_model(models["qwen2"], dtype=dtype)
        model = scorer.checkpoint.model
        check_forward(model, scorer.reward_model, half=dtype == "bfloat16")

        class Odd(type(model)):
            def forward(self, *args, factor=factor, **kwargs):
                found = super().forward(*args, **kwargs)
                return type(found)(logits=found.logits * factor)

        model.__class__ = Odd
        with pytest.raises(RmkitError, match=r"Odd \(qwen2\) computes more"):
            check_forward(model, scorer.reward_model, half=dtype == "bfloat16")


def test_a_layout_that_gives_other_values_is_refused_and_padded_is_the_remedy(models, monkeypatch):
    collate = probe.collate

    def late(sequences, layout, pad_token_id):
        batch = collate(sequences, layout, pad_token_id)
        return batch if layout == "padded" else batch | {"position_ids": batch["position_ids"].flip(1)}

    monkeypatch.setattr(probe, "collate", late)
    with pytest.raises(RmkitError, match="different values in the shared layout") as error:
        language_model(models["qwen2"])
    assert error.value.remedy == "Set the layout to padded (--layout padded; layout: padded in a recipe)."
    language_model(models["qwen2"], layout="padded")


def test_values_that_are_not_finite_are_the_models(models):
    scorer = language_model(models["qwen2"])
    with torch.no_grad():
        scorer.checkpoint.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(RmkitError, match="not finite") as error:
        check_forward(scorer.checkpoint.model, scorer.reward_model)
    assert "Download or save it again" in error.value.remedy
    check_forward(language_model(models["qwen2"]).checkpoint.model, scorer.reward_model)


def test_the_probe_leaves_a_model_as_it_was(models):
    scorer = language_model(models["qwen2"])
    model = scorer.checkpoint.model.train()
    check_forward(model, scorer.reward_model)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# --- classifiers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["roberta", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("auto_class", [AutoModelForSequenceClassification, None], ids=["classifier", "language model"])
def test_a_head_that_is_no_single_vector_is_refused_by_name(tmp_path, model_type, auto_class):
    """Also for training an explicit model from a language model of that architecture."""
    if auto_class is None:
        auto_class = AutoModelForCausalLM
        model_type = {"deberta-v2": "electra", "modernbert": "modernbert-decoder"}.get(model_type, model_type)
    options = {"num_labels": 1, "cls_token_id": 0, "sep_token_id": 0}
    folder = save(tmp_path / "model", model_type, auto_class, **options)
    with pytest.raises(
        RmkitError, match=rf"the head of \w+ForSequenceClassification \({model_type}\) is not one linear layer"
    ) as error:
        load_reward_model(str(folder), "explicit")
    assert error.value.remedy.startswith("Use a model of another architecture")


def test_a_classifier_has_one_label(models, tmp_path):
    for labels in (2, 1):
        model = AutoModelForSequenceClassification.from_pretrained(models["qwen2"], num_labels=labels)
        model.save_pretrained(tmp_path / str(labels))
        tiny.tokenizer("qwen2").save_pretrained(tmp_path / str(labels))
    for options in ({}, {"type": "explicit", "pooling": "mean"}):
        with pytest.raises(RmkitError, match="is a classifier with 2 labels; a reward model has one") as error:
            load_reward_model(str(tmp_path / "2"), **options)
    assert error.value.remedy == "Give a classifier with one label, or a language model to train one from."
    assert load_reward_model(str(tmp_path / "1")).score(*PAIR).shape == (1,)


def test_an_architecture_without_a_classifier_is_refused_and_scored_as_another_type(tmp_path):
    folder = save(tmp_path / "model", "granite")
    with pytest.raises(RmkitError, match="no sequence classifier for the architecture granite") as error:
        load_reward_model(str(folder), "explicit")
    assert error.value.remedy.startswith("Use --type implicit or generative (reward_model.type)")
    assert np.isfinite(language_model(folder).score(*PAIR))
    assert np.isfinite(load_reward_model(str(folder), "generative").score(*PAIR))
