"""Text stays text: a prompt or response that spells a control token, `<|im_end|>` say, never becomes that token.

Control tokens are the tokenizer's special tokens, and added tokens that the chat template itself writes to structure
turns. To tell the template's own from those that a text spells, the conversation is rendered with the text's characters
replaced. The template's tokens are then renamed, in the rendered text and in a copy of the tokenizer, to names that
occur nowhere in the text. The copy gives them their ids and tokenises everything else as text.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from rmkit.errors import RmkitError

Render = Callable[..., str]
"""The contents of messages -> the text that the chat template makes of them."""

_MARKUP = re.compile(r"[^\w\s](?=.*\w).*[^\w\s]")
# Letters that normalisers and templates leave alone: Yi, Hangul, then private use.
_SPARE = (range(0xA000, 0xA48D), range(0xAC00, 0xD7A4), range(0xF0000, 0x10FFFE))

_MOST_COPIES = 4  # one serves all texts without Yi letters


class ControlTokens:
    """The control tokens of a tokenizer and its chat template.

    An added token that is not special (`<|im_start|>` in some tokenizers) is a control token if the template writes it
    and it is markup: it begins and ends with a symbol, and is not one of a pair `<name>`, `</name>`, such as `<think>`,
    which mark up contents. White space, words and a recipe's `added_tokens` thus stay what they are in any text.

    Args:
        written: the ids of a conversation of plain texts.

    Attributes:
        ids: the ids of the control tokens.
        spellings: their texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: Iterable[int]):
        self._tokenizer = tokenizer
        added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        structure = {each for each in written if each in added and _is_structure(added[each], added.values())}
        self.ids = frozenset(special | structure | set(tokenizer.all_special_ids))
        self.spellings: tuple[str, ...] = tuple(tokenizer.convert_ids_to_tokens(sorted(self.ids)))
        self._unknown = tokenizer.unk_token_id
        self._unknown_folded = _folded(tokenizer.unk_token or "")
        self._copies: dict[str, Tokenizer] = {}

    def written(self, text: str, ids: Iterable[int]) -> list[int]:
        """The control tokens among the ids of a text, and last how often it spells the unknown token.

        The unknown token's id says nothing, since what the vocabulary lacks has it too.
        """
        count = _folded(text).count(self._unknown_folded) if self._unknown_folded else 0
        return [*(each for each in ids if each in self.ids and each != self._unknown), count]

    def encode_as_text(self, render: Render, contents: Sequence[str], rendered: str | RmkitError) -> list[int]:
        """The ids of rendered messages, in which the only control tokens are those that the template writes.

        Args:
            render: the contents of messages -> text.
            contents: what the messages say.
            rendered: what `render` makes of them, or the error with which it refuses them.

        Raises:
            RmkitError: `rendered` if the contents spell no control token, or if the template refuses them even so; or
                if this tokenizer cannot be kept from reading control tokens.
        """
        spare = _unused("".join([*contents, "" if isinstance(rendered, RmkitError) else rendered]))
        opening = next(spare)
        masks = dict(zip(sorted(set("".join("".join(contents).split()))), spare, strict=False))
        masked = self._masked(render, contents, rendered, masks)
        structure = self._found(masked)
        pieces, end = [], 0
        for number, start, stop in structure:
            pieces += [masked[end:start], _named(masked[start:stop], opening, number)]
            end = stop
        text = _restored("".join([*pieces, masked[end:]]), masks)
        ids: list[int] = self._copy(opening).encode(text, add_special_tokens=False).ids
        known = [number for number, _, _ in structure if number != self._unknown]
        if [each for each in ids if each in self.ids and each != self._unknown] != known:
            raise self._unreadable()
        return ids

    def _unreadable(self) -> RmkitError:
        return RmkitError(
            f"The tokenizer of {self._tokenizer.name_or_path} cannot read the control tokens in a text as text.",
            "Set data.special_tokens: keep (or --special-tokens keep), or remove the text.",
        )

    def _masked(
        self, render: Render, contents: Sequence[str], rendered: str | RmkitError, masks: dict[str, str]
    ) -> str:
        """The rendered text with so many of the contents' characters replaced that they spell no control token.

        All of them, for a template that only copies the contents; of a template that looks at them, as for `</think>`,
        those alone that spell control tokens or stand at an end, where the template could complete one.
        """
        spelled = [{at for _, start, stop in self._found(each) for at in range(start, stop)} for each in contents]
        refused = rendered if isinstance(rendered, RmkitError) else None
        if refused and not any(spelled):
            raise refused
        ends = [at | _ends(each) for at, each in zip(spelled, contents, strict=True)]
        everything = [set(range(len(each))) for each in contents]
        masked = None
        for places in [spelled] if refused else [everything, ends, spelled]:
            try:
                masked = render(*_replaced(contents, places, masks))
            except RmkitError:
                continue
            if _restored(masked, masks) == rendered:
                return masked
        if masked is None:
            raise refused or self._unreadable()
        return masked  # the template looks for control tokens in the contents: it is shown none

    def _found(self, text: str) -> list[tuple[int, int, int]]:
        """The control tokens that the tokenizer reads in a text: id, start and end."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [
            (each, start, stop)
            for each, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if each in self.ids
            and (each != self._unknown or _folded(text[start:stop]).strip() == self._unknown_folded.strip())
        ]

    def _copy(self, opening: str) -> Tokenizer:
        """The tokenizer with its control tokens renamed; the names begin and end with a character of no text."""
        if opening not in self._copies:
            if len(self._copies) == _MOST_COPIES:
                self._copies.clear()
            content = json.loads(self._tokenizer.backend_tokenizer.to_str())
            tokens = zip(sorted(self.ids), self.spellings, strict=True)
            self._copies[opening] = _renamed(content, {each: _named(text, opening, each) for each, text in tokens})
        return self._copies[opening]


def _renamed(content: dict[str, Any], names: dict[int, str]) -> Tokenizer:
    """A tokenizer, from the content of its tokenizer.json, with other names for some of its tokens."""
    model = content["model"]
    renamed = {token["content"]: names[token["id"]] for token in content["added_tokens"] if token["id"] in names}
    content["added_tokens"] = [
        token | {"content": renamed.get(token["content"], token["content"])} for token in content["added_tokens"]
    ]
    if isinstance(model["vocab"], dict):
        renamed |= {token: names[number] for token, number in model["vocab"].items() if number in names}
        model["vocab"] = {renamed.get(token, token): number for token, number in model["vocab"].items()}
    else:  # Unigram
        model["vocab"] = [[names.get(number, token), score] for number, (token, score) in enumerate(model["vocab"])]
    if "merges" in model:
        model["merges"] = [[a, b] for a, b in model["merges"] if renamed.keys().isdisjoint((a, b, a + b))]
    if "unk_token" in model:
        model["unk_token"] = renamed.get(model["unk_token"], model["unk_token"])
    content |= {"truncation": None, "padding": None, "post_processor": None}
    return Tokenizer.from_str(json.dumps(content))


def _named(token: str, opening: str, number: int) -> str:
    """Another name for a token; white space at its ends stays, which some tokens take with them."""
    return token.replace(token.strip() or token, f"{opening}{number}{opening}")


def _unused(text: str) -> Iterator[str]:
    used = set(text)
    return (chr(code) for code in itertools.chain(*_SPARE) if chr(code) not in used)


def _replaced(contents: Sequence[str], places: Sequence[set[int]], masks: dict[str, str]) -> list[str]:
    return [
        "".join(masks.get(char, char) if at in some else char for at, char in enumerate(content))
        for content, some in zip(contents, places, strict=True)
    ]


def _restored(text: str, masks: dict[str, str]) -> str:
    return text.translate({ord(mask): char for char, mask in masks.items()})


def _ends(text: str) -> set[int]:
    """Where the first and the last character stand, white space aside."""
    return {len(text) - len(text.lstrip()), len(text.rstrip()) - 1}


def _is_structure(token: str, added: Iterable[str]) -> bool:
    paired = re.fullmatch(r"</?([^/].*)>", token)
    if paired and {f"<{paired[1]}>", f"</{paired[1]}>"} <= set(added):
        return False
    return _MARKUP.fullmatch(token) is not None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
