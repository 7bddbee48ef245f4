"""Rewriters without a language model: they keep the words and change their form. Deterministic for a seed.

For robustness tests beyond the paper, and for token-level shifts without an endpoint.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from functools import cache

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

Rewriter = Callable[[str, random.Random], str]

TYPO_RATE = 0.05
"""Probability of a typo per letter, in words of three or more letters."""

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_WORD = re.compile(r"[^\W\d_]{3,}")
_PUNCTUATION = re.compile(r"(?<=[^\W\d_])[.,;:!?]+(?=\s|$)")
_ENDED = re.compile(r"[.,;:!?][\"'”’»)\]]*$")


def rewrite_locally(style: str, text: str, seed: int = 0) -> str:
    """`text` in a style of `REWRITERS`. The same text and seed always give the same rewrite."""
    digest = hashlib.sha256(f"{seed}\0{style}\0{text}".encode()).digest()
    return REWRITERS[style](text, random.Random(digest))


def typos(text: str, draw: random.Random) -> str:
    """Add typos: a letter omitted, doubled, swapped with the next, or replaced by its neighbour on the keyboard."""

    def add_typos(match: re.Match[str]) -> str:
        letters = list(match[0])
        written = ""
        at = 0
        while at < len(letters):
            letter = letters[at]
            at += 1
            if draw.random() >= TYPO_RATE:
                written += letter
                continue
            match draw.choice(("omit", "double", "swap", "neighbour")):
                case "omit":
                    pass
                case "double":
                    written += letter * 2
                case "swap" if at < len(letters):
                    written += letters[at] + letter
                    at += 1
                case _:
                    written += _neighbour(letter, draw)
        return written or match[0]

    return _WORD.sub(add_typos, text)


def casing(text: str, draw: random.Random) -> str:
    """Change to upper or lower case, at random."""
    return text.upper() if draw.random() < 0.5 else text.lower()


def punctuation(text: str, draw: random.Random) -> str:
    """Remove punctuation marks after words or replace them by an ellipsis, at random."""
    return _PUNCTUATION.sub(lambda _: draw.choice(("", "", " ...")), text)


def whitespace(text: str, draw: random.Random) -> str:
    """Double spaces at random; double line breaks or turn them into spaces, without indentation."""

    def change(match: re.Match[str]) -> str:
        return draw.choice(("\n\n", " ")) if "\n" in match[0] else draw.choice((" ", "  "))

    return re.sub(r"\s+", change, text.strip())


def formatting(text: str, _: random.Random) -> str:
    """Strip Markdown and turn lists into prose; code stays unchanged."""
    return _plain(SyntaxTreeNode(_parser().parse(text))).strip()


REWRITERS: Mapping[str, Rewriter] = {
    "typos": typos,
    "casing": casing,
    "punctuation": punctuation,
    "formatting": formatting,
    "whitespace": whitespace,
}


def _neighbour(letter: str, draw: random.Random) -> str:
    for row in _KEYBOARD:
        at = row.find(letter.lower())
        if at >= 0:
            neighbour = draw.choice([row[place] for place in (at - 1, at + 1) if 0 <= place < len(row)])
            return neighbour.upper() if letter.isupper() else neighbour
    return letter * 2  # not on the keyboard: é, ß, я


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def _plain(node: SyntaxTreeNode) -> str:
    """The text of a Markdown node, without markup."""
    match node.type:
        case "root" | "blockquote":
            return "\n\n".join(filter(None, map(_plain, node.children)))
        case "bullet_list" | "ordered_list":
            return " ".join(map(_sentence, filter(None, map(_plain, node.children))))
        case "list_item":
            return " ".join(filter(None, map(_plain, node.children)))
        case "table" | "thead" | "tbody":
            return " ".join(filter(None, map(_plain, node.children)))
        case "tr":
            return _sentence(", ".join(map(_plain, node.children)))
        case "fence" | "code_block" | "html_block":
            return node.content.rstrip("\n")
        case "text" | "code_inline" | "html_inline":
            return node.content
        case "image":
            return node.content
        case "softbreak" | "hardbreak":
            return "\n"
        case "hr":
            return ""
        case _:  # paragraphs, headings, emphasis, links
            return "".join(map(_plain, node.children))


def _sentence(text: str) -> str:
    return text if _ENDED.search(text) else f"{text}."
