"""A pass calls the same modules in the same order for all data: under ZeRO-3 every call is a collective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import tiny_model
from peft import LoraConfig, get_peft_model
from test_attention import EVERY, language_model
from tiny import TYPES
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from rmkit.config.recipe import Recipe
from rmkit.encoding.batches import collate, split
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.models import language_model as module
from rmkit.models.language_model import (
    Unembedding,
    apply_head,
    bind,
    load,
    next_token_logits,
    only_read,
    response_log_probs,
    token_log_probs,
    use_unembedding,
)
from rmkit.models.shared_attention import take_shared_rows
from rmkit.reward_models import make_reward_model
from rmkit.reward_models.loading import load_model
from rmkit.reward_models.origins import ModelRef
from rmkit.training.pair_trainer import PairTrainerMixin

ADAPTERS = {
    "none": None,
    "lora": {"target_modules": ["q_proj", "lm_head"], "lora_dropout": 0.1},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def batches():
    """Batches of few short sequences, many long ones, some with an empty response, and only such ones."""
    draw = np.random.default_rng(0)

    def sequence(prompt, response):
        return TokenSequence(draw.integers(5, 90, size=prompt + response).tolist(), prompt)

    return [
        [sequence(4, 1), sequence(9, 2)],
        [sequence(30, 40), sequence(2, 60), sequence(20, 33), sequence(5, 7)],
        [sequence(9, 3), sequence(40, 0)],
        [sequence(3, 0), sequence(5, 0)],
    ]


def calls(model, head, reads, sequences, layout):
    """Names of the modules that scoring, and then a training step, calls."""
    called = []
    hooks = [
        part.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, part in model.named_modules()
    ]
    batch = collate(sequences, layout, 0)
    model.eval()
    with torch.no_grad(), only_read(model, batch[reads].unique()):
        apply_head(model, head, batch)
    model.train()
    outputs = apply_head(model, head, batch)
    outputs.sum().backward()
    for hook in hooks:
        hook.remove()
    assert all(each.grad is not None for each in model.parameters() if each.requires_grad)
    assert torch.isfinite(outputs).all()
    return called


@pytest.fixture
def few_logits(monkeypatch):
    monkeypatch.setattr(module, "_MAX_LOGITS", 1000)


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("architecture", EVERY)
def test_each_architecture_calls_the_same_modules_whatever_the_batch(architecture, layout, few_logits):
    model = language_model(architecture)
    use_unembedding(model)
    take_shared_rows(model, None)
    first, *others = (calls(model, response_log_probs, "predictor", each, layout) for each in batches())
    assert others == [first] * 3
    assert len(first) > 10


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", ["explicit", "mean", "implicit", "generative"])
def test_each_type_calls_the_same_modules_whatever_the_batch(models, kind, adapter, few_logits):
    tokenizer, _ = load_tokenizer(models["llama"])
    content = {"base": {"name": "x"}, "reward_model": TYPES[kind], "data": {"train": {"name": "t", "path": "p"}}}
    settings = Recipe.model_validate(content | {"output_dir": "o"}).reward_model
    its = make_reward_model(settings, ChatEncoder(tokenizer, "26 Jul 2024"))
    model = load_model(its, ModelRef(name=str(models["llama"])))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if options := ADAPTERS[adapter]:
        if its.head:
            options = {"target_modules": ["q_proj"], "modules_to_save": ["score"]}
        model = get_peft_model(model, LoraConfig(**options))
        model.enable_input_require_grads()
    some = batches()[: 2 if kind == "mean" else 4]  # there is no mean over no tokens
    first, *others = (calls(model, its.outputs, its.reads, each, "shared") for each in some)
    assert others == [first] * len(others)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["explicit", "implicit", "generative", "generative_lambda"])
def test_a_training_batch_goes_through_the_model_once(run, monkeypatch, kind):
    """Under ZeRO-3, the experts of a Mixtral cannot run forward twice before the backward pass."""
    passes = {"training": 0, "batches": 0}
    loss, forward = PairTrainerMixin.compute_loss, Qwen2Model.forward

    def counting(self, *args, **options):
        passes["training"] += self.training
        return forward(self, *args, **options)

    def noting(*args, **options):
        passes["batches"] += 1
        return loss(*args, **options)

    monkeypatch.setattr(Qwen2Model, "forward", counting)
    monkeypatch.setattr(PairTrainerMixin, "compute_loss", noting)
    run(kind)
    assert passes == {"training": 6, "batches": 6}


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_a_batch_can_be_read_in_two_parts(layout):
    sequences = batches()[1]
    batch = collate(sequences, layout, 0)
    first, rest = split(batch, 3)
    for name in ("last", "response", "predictor", "response_lengths"):
        assert torch.equal(torch.cat([first[name], rest[name]]), batch[name])
    assert rest["response_lengths"].tolist() == [7]
    ids = batch["input_ids"].flatten()
    assert ids[rest["response"]].tolist() == sequences[3].ids[5:]
    assert ids[first["last"]].tolist() == [each.ids[-1] for each in sequences[:3]]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_log_probabilities_in_chunks_are_those_of_the_models_own_logits(models, monkeypatch, architecture, adapter):
    """So are their gradients, with tied weights, capped logits, adapters on lm_head and disabled adapters."""
    model = load(AutoModelForCausalLM, models[architecture])
    use_unembedding(model)
    trained = model
    if options := ADAPTERS[adapter]:
        torch.manual_seed(0)
        trained = get_peft_model(model, LoraConfig(**options | {"lora_dropout": 0.0}, init_lora_weights=False)).eval()
    assert isinstance(model, PreTrainedModel)
    if adapter == "saved":
        with torch.no_grad():
            model.lm_head.modules_to_save["default"].weight.mul_(1.1)
    ids = torch.randint(5, 90, (1, 31), generator=torch.Generator().manual_seed(0))
    weights = torch.linspace(-1, 1, 30)

    def gradients(log_probs):
        trained.zero_grad()
        (log_probs * weights).sum().backward()
        return torch.cat([each.grad.flatten() for each in trained.parameters() if each.grad is not None])

    def own():
        return torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]

    def ours():
        return token_log_probs(model, model.base_model(ids).last_hidden_state[0, :-1], ids[0, 1:])

    expected = own()
    expected_gradients = gradients(expected)
    for max_logits in (2**25, 3000):
        monkeypatch.setattr(module, "_MAX_LOGITS", max_logits)
        found = ours()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradients(found), expected_gradients, rtol=1e-4, atol=1e-4)
    if adapter != "none":
        with trained.disable_adapter():
            torch.testing.assert_close(ours(), own())
            assert (ours() - expected).abs().max() > 0.01


SCALED = {
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3},
    "falcon_h1": {"lm_head_multiplier": 0.3},
    "granite": {"logits_scaling": 3.0},
    "granitemoe": {"logits_scaling": 3.0},
    "hyperclovax": {"logits_scaling": 0.3},
}


@pytest.mark.parametrize("adapter", [*ADAPTERS, "dora"])
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(each, marks=[] if each in ("cohere", "granite") else [pytest.mark.slow]) for each in SCALED],
)
def test_scaled_logits_are_those_of_the_model(monkeypatch, architecture, adapter):
    """Within 1e-6 for small logits, in chunks and whole, with adapters on lm_head; without the scale they differ."""
    model = bind(tiny_model(AutoModelForCausalLM, architecture, **SCALED[architecture]))
    use_unembedding(model)
    if options := (ADAPTERS | {"dora": {"target_modules": ["lm_head"], "use_dora": True}})[adapter]:
        get_peft_model(model, LoraConfig(**options | {"lora_dropout": 0.0}, init_lora_weights=False)).eval()
    ids = torch.randint(5, 90, (1, 31), generator=torch.Generator().manual_seed(0))
    hidden = model.base_model(ids).last_hidden_state[0, :-1]
    whole = torch.log_softmax(model(ids).logits[0, :-1], -1)
    for max_logits in (2**25, 500):
        monkeypatch.setattr(module, "_MAX_LOGITS", max_logits)
        found = token_log_probs(model, hidden, ids[0, 1:])
        torch.testing.assert_close(found, whole.gather(-1, ids[0, 1:, None])[:, 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(next_token_logits(model, hidden).log_softmax(-1), whole, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(module, "logit_scale", lambda _: 1.0)
    assert (token_log_probs(model, hidden, ids[0, 1:]) - found).abs().max() > 0.01


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # untied, tied
def test_a_replaced_layer_holds_the_same_parameters(models, architecture):
    """Names, ties and random numbers do not change; nor do the logits."""
    model = load(AutoModelForCausalLM, models[architecture])
    parameters, keys, state = dict(model.named_parameters()), list(model.state_dict()), torch.get_rng_state()
    ids = torch.arange(5, 15)[None]
    expected = model(ids).logits
    use_unembedding(model)
    assert type(model.get_output_embeddings()) is Unembedding
    assert list(model.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings == (architecture == "qwen2")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(ids).logits, expected)
