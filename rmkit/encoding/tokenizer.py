"""Prepare tokenizers for reward models: a chat template, a safe pad token, embedding rows for new tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rmkit.config.resources import TEMPLATES, read_template
from rmkit.errors import RmkitError
from rmkit.library_errors import library_errors
from rmkit.model_files.adapters import TOKENIZER, chain
from rmkit.model_files.gguf import plain_folder
from rmkit.model_files.weights import check_config, model_file
from rmkit.processes import gathered

PAPER_SPECIAL_TOKENS = ["[USER]", "[ASSISTANT]", "[EOS]"]
PAPER_CHAT_TEMPLATE = (TEMPLATES / "paper.jinja").read_text(encoding="utf-8").rstrip("\n")
"""[USER]{prompt}[ASSISTANT]{response}[EOS] (Appendix D), for models without a chat template."""

PAD_TOKEN = "[PAD]"
_RESERVED_PADS = re.compile(
    r"^<\|?(finetune_right_)?pad(ding)?(_id)?\|?>$|^\[PAD\]$|^<\|?reserved_special_token_\d+\|?>$", re.I
)


def load_tokenizer(
    name: str | Path,
    *,
    revision: str | None = None,
    chat_template: Path | None = None,
    added_tokens: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Load and prepare a model's tokenizer; also returns what was changed, one line per change for the user.

    `added_tokens` are not "special" to the tokenizer: decoding without special tokens keeps them.

    Raises:
        RmkitError: if there is no tokenizer at `name` or the template file cannot be read.
    """
    tokenizer = read_tokenizer(name, revision, trust_remote_code)
    notes = []
    if chat_template is not None:
        tokenizer.chat_template = read_template(chat_template)
    elif tokenizer.chat_template is None:
        tokenizer.add_special_tokens({"extra_special_tokens": PAPER_SPECIAL_TOKENS})
        tokenizer.chat_template = PAPER_CHAT_TEMPLATE
        notes.append(f"{name} has no chat template: the paper's [USER]...[ASSISTANT]...[EOS] is used.")
    note = ensure_pad_token(tokenizer)
    if note:
        notes.append(note)
    # Last, so that all other tokens have the same ids in a reference that is loaded without these.
    if tokenizer.add_tokens(list(added_tokens)):
        notes.append(f"Added tokens: {' '.join(added_tokens)}.")
    return tokenizer, notes


def read_tokenizer(
    name: str | Path, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """A model's own tokenizer, without what `load_tokenizer` adds.

    Raises:
        RmkitError: if there is no tokenizer at `name`.
    """
    if model_file(str(name), TOKENIZER, revision) is None:
        for adapter in chain(str(name), revision):  # PEFT saves no tokenizer with an adapter
            if model_file(str(name), TOKENIZER, revision) is None:
                name, revision = adapter.base, adapter.base_revision
    check_config(str(name), revision)  # transformers reads it to find the tokenizer's class
    with library_errors(
        f"No tokenizer could be loaded from {name}",
        "Give a folder with tokenizer files, or a hub id that this machine can reach.",
    ):
        tokenizer = AutoTokenizer.from_pretrained(
            plain_folder(str(name)), revision=revision, trust_remote_code=trust_remote_code, use_fast=True
        )
        has_vocabulary = bool(tokenizer("Yes", add_special_tokens=False)["input_ids"])
    if not has_vocabulary:  # transformers built it from config.json alone
        raise RmkitError(f"The tokenizer of {name} knows no words.", "Give a folder with its tokenizer files.")
    return tokenizer


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give the tokenizer a pad token that never ends a response; returns a note if it was changed, else None.

    If the pad token is also the EOS, stock sequence classifiers read the score one token too early, so a reserved token
    of the vocabulary is used instead, or `[PAD]` is added.
    """
    enders = {tokenizer.eos_token, *PAPER_SPECIAL_TOKENS} - {None}
    named = (
        tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {"": tokenizer.chat_template or ""}
    )
    enders |= {token for token in _special_tokens(tokenizer) if any(token in template for template in named.values())}
    if tokenizer.pad_token is not None and tokenizer.pad_token not in enders:
        return None
    before = tokenizer.pad_token
    candidates = sorted(
        (token for token in _special_tokens(tokenizer) if _RESERVED_PADS.match(token) and token not in enders),
        key=lambda token: ("pad" not in token.lower(), tokenizer.convert_tokens_to_ids(token)),
    )
    tokenizer.add_special_tokens({"pad_token": candidates[0] if candidates else PAD_TOKEN})
    why = "it has none" if before is None else f"its own, {before}, ends responses"
    return f"Pad token: {tokenizer.pad_token} ({why})."


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def add_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Grow the embeddings to the tokenizer's vocabulary; returns the number of rows added.

    New rows are the mean of the old ones, in the input embeddings and in the unembedding. They depend on old weights
    only, so a policy and a reference that is loaded later get the same rows, and an untrained implicit reward model
    rewards every response with 0 (transformers draws random rows instead).
    """
    weight = model.get_input_embeddings().weight
    old = int(getattr(weight, "ds_shape", weight.shape)[0])  # partitioned by ZeRO-3, the local shape is empty
    if len(tokenizer) <= old:
        return 0
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embeddings = {
        id(layer): layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None
    }
    weights = {id(layer.weight): layer.weight for layer in embeddings.values()}
    for weight in weights.values():
        with gathered(weight), torch.no_grad():
            weight[old:] = weight[:old].float().mean(0, keepdim=True).to(weight.dtype)
    return len(tokenizer) - old
