"""The measure of token-level shift in the released code: how many tokens of two texts are equal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence

from rmkit.errors import RmkitError, first_line

Tokenize = Callable[[str], Sequence[Hashable]]

_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


def token_overlap(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """The share of equal tokens among all pairs (i, j) of a token of `one` and a token of `other`; 0 if one is empty.

    The sum over the vocabulary of (count in one) * (count in other), divided by the product of the lengths.
    """
    if not one or not other:
        return 0.0
    counts, others = Counter(one), Counter(other)
    return sum(count * others[token] for token, count in counts.items()) / (len(one) * len(other))


def mean_overlap(pairs: Iterable[tuple[str, str]], tokenize: Tokenize) -> float:
    """The mean of `token_overlap` over pairs of texts; 0 if there are none."""
    overlaps = [token_overlap(tokenize(one), tokenize(other)) for one, other in pairs]
    return sum(overlaps) / len(overlaps) if overlaps else 0.0


def words_and_marks(text: str) -> list[str]:
    """The words and punctuation marks of a text, for use without a tokenizer."""
    return _WORD_OR_MARK.findall(text)


def load_tokenize(name: str | None) -> Tokenize:
    """A function that tokenizes without special tokens, by hub id or folder; words and punctuation marks if None.

    Raises:
        RmkitError: if the tokenizer cannot be loaded.
    """
    if name is None:
        return words_and_marks
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RmkitError(
            f"No tokenizer could be loaded from {name}: {first_line(error)}",
            "Give a folder with tokenizer.json, or a hub id that this machine can reach.",
        ) from None
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
