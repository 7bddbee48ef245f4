"""Lengths in tokens, for the filters and cards of sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rmkit.errors import RmkitError, first_line

_CHUNK = 1000


def length_tokenizer(name: str) -> Any:
    """The tokenizer for length limits.

    Raises:
        RmkitError: if it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        cause = first_line(error)
        raise RmkitError(
            f"The tokenizer {name} for the length filter could not be loaded: {cause}",
            "Give as tokenizer a folder, a hub id that this machine can reach, or none for no length filter.",
        ) from None


def token_counts(tokenizer: Any, texts: Sequence[str], description: str) -> list[int]:
    """The number of tokens [texts], including the special tokens that the tokenizer adds."""
    from tqdm.auto import tqdm

    counts: list[int] = []
    for start in tqdm(range(0, len(texts), _CHUNK), desc=description, unit="k", leave=False):
        counts += map(len, tokenizer(list(texts[start : start + _CHUNK]), verbose=False)["input_ids"])
    return counts
