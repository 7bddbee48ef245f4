"""Packed rows give the results of separate sequences: hidden states, rewards, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig, LlamaConfig

from rmkit.encoding.batches import pad, share
from rmkit.encoding.chat import TokenSequence
from rmkit.models.language_model import apply_head, bind, only_read
from rmkit.models.shared_attention import ARCHITECTURES, PackedRow, layout_of, take_shared_rows, why_not_shared

WINDOW = 13
SLIDING = {
    "cohere2": {"sliding_window_pattern": 3},
    "exaone4": {"sliding_window_pattern": 3},
    "gemma2": {"attn_logit_softcapping": 2.0},
    "gemma3_text": {},
    "gpt_oss": {},
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "olmo3": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "smollm3": {"use_sliding_window": True, "no_rope_layers": [1, 0, 1]},
}
"""Architectures with a sliding window in at least one of three layers, shorter than the sequences; their options."""
FIRST = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
)
EVERY = [pytest.param(each, marks=[] if each in FIRST else [pytest.mark.slow]) for each in ARCHITECTURES]
"""All architectures, of which the fast tier runs these twelve."""
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def sequences(seed: int = 0) -> list[TokenSequence]:
    """Groups with shared prompts and response prefixes, an unrelated one, a prefix of another, a copy, a short one."""
    draw = np.random.default_rng(seed)

    def tokens(number):
        return draw.integers(5, 90, size=number).tolist()

    preamble, made = tokens(20), []
    for _ in range(3):
        prompt, start = preamble + tokens(25), tokens(7)
        made += [TokenSequence(prompt + start + tokens(length), len(prompt)) for length in (5, 21, 38)]
    made += [TokenSequence(tokens(30), 10), TokenSequence(made[0].ids[:50], 45), made[0]]
    made.append(TokenSequence(made[0].ids[:10], 4))
    return [made[number] for number in draw.permutation(len(made))]


def language_model(architecture: str, heads: int = 4, **options):
    common = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if architecture == "gpt2":
        common |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    elif architecture != "gpt_neox":
        common["num_key_value_heads"] = heads // 2
    if architecture.startswith(("gemma", "glm", "ministral", "qwen3", "gpt_oss")):
        common["head_dim"] = 32 // heads
    if architecture in ("gpt_oss", "qwen3_moe"):
        common |= EXPERTS
    if architecture in ("gpt_oss", "ministral3"):  # their rotary embeddings are scaled to this length
        del common["max_position_embeddings"]
    if architecture in SLIDING:
        common |= {"sliding_window": WINDOW, **SLIDING[architecture]}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **common | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return bind(model)


def read(model, hidden, batch):
    """All positions that heads read: last tokens, predictors and response tokens."""
    return torch.cat([hidden[batch["last"]], hidden[batch["predictor"]], hidden[batch["response"]]])


def read_with_gradient(model, batch):
    model.zero_grad()
    outputs = apply_head(model, read, batch)
    (outputs * torch.linspace(-1, 1, outputs.numel()).view_as(outputs)).sum().backward()
    gradient = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    return outputs.detach(), gradient


def distance(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [
        *[(each, None) for each in ARCHITECTURES],
        *[pytest.param(*each.values, "eager", marks=each.marks) for each in EVERY],
    ],
)
def test_hidden_states_and_gradients_are_those_of_padded_sequences(architecture, attention):
    model = language_model(architecture, **({"attn_implementation": attention} if attention else {}))
    assert why_not_shared(model.config, attention) is None
    padded, shared = pad(sequences(), 0), share(sequences())
    expected = read_with_gradient(model, padded)
    assert layout_of(model) == "padded"
    take_shared_rows(model, attention)
    assert layout_of(model) == "shared"
    for found, wanted in zip(read_with_gradient(model, shared), expected, strict=True):
        assert distance(found, wanted) < 1e-5
    for found, wanted in zip(read_with_gradient(model, padded), expected, strict=True):
        # Padded batches go on as before. gpt-oss's own gradient varies in its last bit from pass to pass.
        assert torch.equal(found, wanted) or (architecture == "gpt_oss" and distance(found, wanted) < 1e-6)


@pytest.mark.parametrize("attention", [None, pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", EVERY)
def test_under_autocast_both_layouts_agree_with_float32(architecture, attention):
    """Autocast leaves queries in float32 after rotary embeddings; its outputs are bfloat16."""
    model = language_model(architecture, **({"attn_implementation": attention} if attention else {}))
    with torch.no_grad():
        for parameter in model.parameters():  # small again: rounding to bfloat16 must stay small
            if parameter.dim() > 1:
                parameter.div_(4)
    take_shared_rows(model, attention)
    padded, shared = pad(sequences(), 0), share(sequences())
    exact = read_with_gradient(model, padded)
    with torch.autocast("cpu", torch.bfloat16):
        found = {name: read_with_gradient(model, batch) for name, batch in (("padded", padded), ("shared", shared))}
        with torch.no_grad(), only_read(model, shared["last"].unique()):
            last = apply_head(model, last_hidden, shared)
    for outputs, gradient in found.values():
        assert distance(outputs.float(), exact[0]) < 5e-2
        assert torch.nn.functional.cosine_similarity(gradient.float(), exact[1], dim=0) > 0.99
    assert distance(last.float(), found["shared"][0][: len(last)].float()) < 3e-2


def last_hidden(model, hidden, batch):
    return hidden[batch["last"]]


@pytest.mark.parametrize("architecture", SLIDING)
def test_sliding_windows_matter_in_that_comparison(architecture):
    """The control arm: with a window wider than the sequences the outputs differ."""
    narrow, wide = language_model(architecture), language_model(architecture, sliding_window=1000)
    batch = share(sequences())
    for model in (narrow, wide):
        take_shared_rows(model, None)
    with torch.no_grad():
        assert distance(apply_head(narrow, read, batch), apply_head(wide, read, batch)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_activations_give_the_same_gradient(dtype):
    model = language_model("llama")
    take_shared_rows(model, None)
    batch = share(sequences())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        expected = read_with_gradient(model, batch)
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        found = read_with_gradient(model, batch)
    for one, other in zip(found, expected, strict=True):
        assert distance(one, other) <= 100 * torch.finfo(dtype).eps


def test_models_that_cannot_take_shared_rows_say_why():
    assert "bloom" in why_not_shared(BloomConfig(), None)
    assert "qwen3_5_text" in why_not_shared(AutoConfig.for_model("qwen3_5_text"), None)  # linear attention
    assert "flash_attention_2" in why_not_shared(LlamaConfig(), "flash_attention_2")
    assert "later tokens" in why_not_shared(
        AutoConfig.for_model("gemma3_text", use_bidirectional_attention=True), "sdpa"
    )


def test_a_row_stores_shared_prefixes_once():
    """Two responses to a prompt of 20 tokens, with the same first token, and an unrelated sequence of 3."""
    prompt = list(range(20))
    batch = share(
        [TokenSequence([*prompt, 50, 60], 20), TokenSequence([7, 8, 9], 1), TokenSequence([*prompt, 50, 70, 71], 20)]
    )
    assert batch["input_ids"].tolist() == [[7, 8, 9, *prompt, 50, 70, 71, 60]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, *range(23), 21]]
    assert batch["branches"].tolist() == [[0, 3], [0, 23], [21, 1]]
    assert batch["last"].tolist() == [26, 2, 25]
    assert batch["response"].tolist() == [23, 26, 1, 2, 23, 24, 25]
    assert batch["predictor"].tolist() == [22, 23, 0, 1, 22, 23, 24]
    assert batch["response_lengths"].tolist() == [2, 2, 3]


def test_prefixes_and_copies_add_no_tokens():
    whole = TokenSequence(list(range(40)), 10)
    parts = [TokenSequence(whole.ids[:end], 10) for end in range(11, 41)]
    assert share([whole])["input_ids"].shape == share([*parts, whole, whole])["input_ids"].shape == (1, 40)


def test_short_shared_prefixes_are_computed_again():
    few, many = ([TokenSequence([*range(number), end], 1) for end in (50, 60)] for number in (15, 16))
    assert share(few)["input_ids"].shape[1] == 32
    assert share(many)["input_ids"].shape[1] == 18


@pytest.mark.parametrize("window", [None, WINDOW])
def test_a_token_attends_to_earlier_tokens_of_its_own_sequences(window):
    """Masks, ends and positions, against the order of tokens in the sequences, for every pair of tokens."""
    texts = sequences()
    batch = share(texts)
    tokens = batch["input_ids"].shape[1]
    visible = np.zeros((tokens, tokens), dtype=bool)
    paths = _paths(texts, batch)
    for path in paths:
        for position, token in enumerate(path):
            start = 0 if window is None else max(0, position + 1 - window)
            visible[token, path[start : position + 1]] = True
    row = PackedRow(batch["branches"].tolist())
    ends, positions = (each.numpy() for each in row.ends_and_positions(tokens + 5))
    here = np.arange(tokens)
    seen = (here[None] <= here[:, None]) & (here[:, None] < ends[None, :tokens])
    if window is not None:
        seen &= positions[:tokens, None] - positions[None, :tokens] < window
    assert (seen == visible).all()
    assert ends[tokens:].tolist() == list(range(tokens + 1, tokens + 6))  # padding attends to itself
    assert positions[:tokens].tolist() == batch["position_ids"][0].tolist()
    block = row.block_mask(tokens + 5, window, torch.device("cpu"))
    dense = torch.stack(
        [block.mask_mod(torch.tensor(0), torch.tensor(0), torch.tensor(query), torch.arange(tokens)) for query in here]
    )
    assert (dense.numpy() == visible).all()


@pytest.mark.parametrize("window", [None, WINDOW])
def test_flex_attention_equals_attention_with_the_dense_mask(window):
    batch = share(sequences())
    tokens = batch["input_ids"].shape[1]
    row = PackedRow(batch["branches"].tolist())
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, tokens, 16, generator=generator)
    block = row.block_mask(tokens, window, torch.device("cpu"))
    here = torch.arange(tokens)
    dense = block.mask_mod(torch.tensor(0), torch.tensor(0), here[:, None], here[None])
    expected = scaled_dot_product_attention(query, key, value, attn_mask=dense)
    torch.testing.assert_close(flex_attention(query, key, value, block_mask=block), expected)


def _paths(texts, batch):
    """The positions of each text's tokens in the row, found by following its branch."""
    starts, paths, before = np.cumsum([0, *batch["branches"][:, 1].tolist()]), [], []
    for (shared, own), start in zip(batch["branches"].tolist(), starts, strict=False):
        before = before[:shared] + list(range(start, start + own))
        paths.append(before)
    assert {path[-1] for path in paths} <= {*batch["last"].tolist()}
    for text, last in zip(texts, batch["last"].tolist(), strict=True):
        (within, *_) = [path[: path.index(last) + 1] for path in paths if last in path]
        assert batch["input_ids"][0, within].tolist() == text.ids
    return paths


def test_tiny_models_take_both_layouts():
    """The architectures of the other tests are among those that take packed rows."""
    assert {tiny.config(each, 100).model_type for each in tiny.ARCHITECTURES} <= set(ARCHITECTURES)
