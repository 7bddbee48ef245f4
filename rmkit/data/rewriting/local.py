"""Rewriters that need no language model: the words stay, their form changes. Deterministic by seed.

For robustness beyond the paper, and for a token-level suite where no endpoint can be reached.
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
"""Share of the letters of words of three letters and more at which a typing mistake is made."""

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_WORD = re.compile(r"[^\W\d_]{3,}")
_PUNCTUATION = re.compile(r"(?<=[^\W\d_])[.,;:!?]+(?=\s|$)")
_ENDED = re.compile(r"[.,;:!?][\"'”’»)\]]*$")


def rewrite_locally(style: str, text: str, seed: int = 0) -> str:
    """`text` in a style of `REWRITERS`. The same text always gives the same rewrite, whatever stands before it."""
    digest = hashlib.sha256(f"{seed}\0{style}\0{text}".encode()).digest()
    return REWRITERS[style](text, random.Random(digest))


def typos(text: str, draw: random.Random) -> str:
    """Typing mistakes in words: a letter left out, doubled, swapped with the next, or its neighbour on the keyboard."""

    def mistyped(match: re.Match[str]) -> str:
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

    return _WORD.sub(mistyped, text)


def casing(text: str, draw: random.Random) -> str:
    """All in capitals or all in small letters, as the draw has it."""
    return text.upper() if draw.random() < 0.5 else text.lower()


def punctuation(text: str, draw: random.Random) -> str:
    """Marks that end words left out or replaced by an ellipsis, as the draw has it at each."""
    return _PUNCTUATION.sub(lambda _: draw.choice(("", "", " ...")), text)


def whitespace(text: str, draw: random.Random) -> str:
    """Spaces doubled here and there, line breaks doubled or made spaces: leading indents go."""

    def changed(match: re.Match[str]) -> str:
        return draw.choice(("\n\n", " ")) if "\n" in match[0] else draw.choice((" ", "  "))

    return re.sub(r"\s+", changed, text.strip())


def formatting(text: str, _: random.Random) -> str:
    """Markdown stripped, lists made prose; code stays as it is."""
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
            other = draw.choice([row[near] for near in (at - 1, at + 1) if 0 <= near < len(row)])
            return other.upper() if letter.isupper() else other
    return letter * 2  # not on this keyboard: é, ß, я


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def _plain(node: SyntaxTreeNode) -> str:
    """The text of a part of a document, without its marks."""
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
        case _:  # paragraphs, headings, emphasis, links: what stands in them
            return "".join(map(_plain, node.children))


def _sentence(text: str) -> str:
    return text if _ENDED.search(text) else f"{text}."
