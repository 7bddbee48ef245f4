"""Tokenizers made ready for reward models: a chat template, a pad token that ends no response, rows for new tokens."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rmkit.errors import RmkitError
from rmkit.library_errors import library_errors
from rmkit.model_files.adapters import TOKENIZER, chain
from rmkit.model_files.weights import check_config, model_file

PAPER_SPECIAL_TOKENS = ["[USER]", "[ASSISTANT]", "[EOS]"]
PAPER_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}[USER]{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}[ASSISTANT]{{ message['content'] }}[EOS]"
    "{% else %}{{ raise_exception('the template has no ' + message['role'] + ' role') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
)
"""[USER]{prompt}[ASSISTANT]{response}[EOS] (Appendix D), for models that have no template of their own."""

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
    """The tokenizer of a model, made ready, and what was changed (one line each, to be said to the user).

    `added_tokens` are not "special" to the tokenizer: decoding without special tokens keeps them.

    Raises:
        RmkitError: if there is no tokenizer at `name` or the template file cannot be read.
    """
    if model_file(str(name), TOKENIZER, revision) is None:
        for adapter in chain(str(name), revision):  # PEFT saves no tokenizer with an adapter
            if model_file(str(name), TOKENIZER, revision) is None:
                name, revision = adapter.base, adapter.base_revision
    check_config(str(name), revision)  # transformers reads it to find the tokenizer's class
    with library_errors(
        f"No tokenizer could be loaded from {name}",
        "Give a folder that holds tokenizer files, or a hub id that this machine can reach.",
    ):
        tokenizer = AutoTokenizer.from_pretrained(
            str(name), revision=revision, trust_remote_code=trust_remote_code, use_fast=True
        )
        knows_words = bool(tokenizer("Yes", add_special_tokens=False)["input_ids"])
    if not knows_words:  # made from a config.json alone
        raise RmkitError(f"The tokenizer of {name} knows no words.", "Give a folder that holds its tokenizer files.")
    notes = []
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RmkitError(f"The chat template {chat_template} cannot be read: {error}.", "Check the path.") from None
    elif tokenizer.chat_template is None:
        tokenizer.add_special_tokens({"extra_special_tokens": PAPER_SPECIAL_TOKENS})
        tokenizer.chat_template = PAPER_CHAT_TEMPLATE
        notes.append(f"{name} has no chat template: the paper's [USER]...[ASSISTANT]...[EOS] is used.")
    note = ensure_pad_token(tokenizer)
    if note:
        notes.append(note)
    # Last, so that the other tokens have the ids that they have in a reference that is loaded without these.
    if tokenizer.add_tokens(list(added_tokens)):
        notes.append(f"Added tokens: {' '.join(added_tokens)}.")
    return tokenizer, notes


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give the tokenizer a pad token that never ends a response; returns what was done, None if nothing.

    A pad token that is also the EOS makes stock sequence classifiers read the score one token too early, so a reserved
    token of the vocabulary is taken instead, or `[PAD]` is added.
    """
    enders = {tokenizer.eos_token, *PAPER_SPECIAL_TOKENS} - {None}
    enders |= {token for token in _special_tokens(tokenizer) if token in (tokenizer.chat_template or "")}
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

    New rows are the mean of the old ones, in the input embeddings and in the unembedding. Being a function of the old
    weights alone, they are the same for a policy and for a reference that is loaded again later, so that an untrained
    implicit reward model rewards every response 0 (transformers draws random rows instead).
    """
    weight = model.get_input_embeddings().weight
    old = int(getattr(weight, "ds_shape", weight.shape)[0])  # partitioned by ZeRO-3, the local shape is empty
    if len(tokenizer) <= old:
        return 0
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embeddings = {
        id(each): each for each in (model.get_input_embeddings(), model.get_output_embeddings()) if each is not None
    }
    weights = {id(each.weight): each.weight for each in embeddings.values()}
    for weight in weights.values():
        with _gathered(weight), torch.no_grad():
            weight[old:] = weight[:old].float().mean(0, keepdim=True).to(weight.dtype)
    return len(tokenizer) - old


def _gathered(parameter: torch.nn.Parameter) -> contextlib.AbstractContextManager[Any]:
    """The whole of a parameter that ZeRO-3 has partitioned; nothing to do otherwise."""
    if not hasattr(parameter, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    gathered: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
    return gathered
