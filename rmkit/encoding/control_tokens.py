"""Keep text as text: a prompt or response that spells a control token, such as `<|im_end|>`, never becomes that token.

Control tokens are the tokenizer's special tokens, and added tokens that the chat template writes to structure turns. To
tell the template's tokens from those that a text spells, the conversation is rendered with the text's characters
replaced. The template's tokens are then renamed, in the rendered text and in a copy of the tokenizer, to names that do
not occur in the text. The copy maps them to their ids and tokenizes everything else as text.
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
"""The contents of messages -> the text that the chat template renders."""

_MARKUP = re.compile(r"[^\w\s](?=.*\w).*[^\w\s]")
# Letters that normalizers and templates do not change: Yi, Hangul, then private use.
_SPARE = (range(0xA000, 0xA48D), range(0xAC00, 0xD7A4), range(0xF0000, 0x10FFFE))

_STRANGE = "\U00013000"  # a hieroglyph, which only tokenizers of bytes know
_MAX_COPIES = 4  # a single one serves all texts without Yi letters


class ControlTokens:
    """The control tokens of a tokenizer and its chat template.

    An added token that is not special (`<|im_start|>` in some tokenizers) is a control token if the template writes it
    and it is markup: it begins and ends with a symbol, and is not part of a pair `<name>`, `</name>`, as `<think>` is,
    which marks up contents. Whitespace, words and a recipe's `added_tokens` are therefore never control tokens.

    Args:
        written: the ids of a rendered conversation of plain texts.

    Attributes:
        ids: the ids of the control tokens.
        spellings: their texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: Iterable[int]):
        self._tokenizer = tokenizer
        added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        structure = {token for token in written if token in added and _is_structure(added[token], added.values())}
        self.ids = frozenset(special | structure | set(tokenizer.all_special_ids))
        self.spellings: tuple[str, ...] = tuple(tokenizer.convert_ids_to_tokens(sorted(self.ids)))
        self._unknown = unknown_id(tokenizer)
        self._unknown_folded = "" if self._unknown is None else _folded(tokenizer.convert_ids_to_tokens(self._unknown))
        self._copies: dict[str, Tokenizer] = {}

    def written(self, text: str, ids: Iterable[int]) -> list[int]:
        """The control tokens among the ids of a text, followed by the number of times it spells the unknown token.

        The unknown token's id is no evidence, since anything outside the vocabulary has it too.
        """
        count = _folded(text).count(self._unknown_folded) if self._unknown_folded else 0
        return [*(token for token in ids if token in self.ids and token != self._unknown), count]

    def encode_as_text(self, render: Render, contents: Sequence[str], rendered: str | RmkitError) -> list[int]:
        """Tokenize rendered messages such that the only control tokens are those that the template writes.

        Args:
            render: the contents of messages -> text.
            contents: the contents of the messages.
            rendered: the text that `render` returns for them, or the error that it raises.

        Raises:
            RmkitError: `rendered`, if the contents spell no control token or the template also refuses masked contents;
                or if this tokenizer cannot read control tokens as text.
        """
        spare = _unused("".join([*contents, "" if isinstance(rendered, RmkitError) else rendered]))
        opening = next(spare)
        masks = dict(zip(sorted(set("".join("".join(contents).split()))), spare, strict=False))
        masked = self._masked(render, contents, rendered, masks)
        structure = self._found(masked)
        pieces, end = [], 0
        for number, start, stop in structure:
            pieces += [masked[end:start], _new_name(masked[start:stop], opening, number)]
            end = stop
        text = _unmask("".join([*pieces, masked[end:]]), masks)
        ids: list[int] = self._copy(opening).encode(text, add_special_tokens=False).ids
        known = [number for number, _, _ in structure if number != self._unknown]
        if [token for token in ids if token in self.ids and token != self._unknown] != known:
            raise self._unreadable()
        return ids

    def _unreadable(self) -> RmkitError:
        return RmkitError(
            f"The tokenizer of {self._tokenizer.name_or_path} cannot read control tokens as text.",
            "Set data.special_tokens: keep (or --special-tokens keep), or remove the text.",
        )

    def _masked(
        self, render: Render, contents: Sequence[str], rendered: str | RmkitError, masks: dict[str, str]
    ) -> str:
        """The rendered text with enough of the contents' characters replaced that they spell no control token.

        All characters, if the template only copies the contents. If it inspects them, for example for `</think>`, only
        those that spell control tokens, or are at an end, where the template could complete one.
        """
        spelled = [{at for _, start, stop in self._found(text) for at in range(start, stop)} for text in contents]
        refused = rendered if isinstance(rendered, RmkitError) else None
        if refused and not any(spelled):
            raise refused
        ends = [at | _ends(text) for at, text in zip(spelled, contents, strict=True)]
        everything = [set(range(len(text))) for text in contents]
        masked = None
        for places in [spelled] if refused else [everything, ends, spelled]:
            try:
                masked = render(*_mask(contents, places, masks))
            except RmkitError:
                continue
            if _unmask(masked, masks) == rendered:
                return masked
        if masked is None:
            raise refused or self._unreadable()
        return masked  # the template looks for control tokens in the contents, and now finds none

    def _found(self, text: str) -> list[tuple[int, int, int]]:
        """The control tokens that the tokenizer reads in a text: id, start and end."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [
            (token, start, stop)
            for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if token in self.ids
            and (token != self._unknown or _folded(text[start:stop]).strip() == self._unknown_folded.strip())
        ]

    def _copy(self, opening: str) -> Tokenizer:
        """The tokenizer with its control tokens renamed; the names start and end with `opening`, which no text uses."""
        if opening not in self._copies:
            if len(self._copies) == _MAX_COPIES:
                self._copies.clear()
            content = json.loads(self._tokenizer.backend_tokenizer.to_str())
            tokens = zip(sorted(self.ids), self.spellings, strict=True)
            names = {number: _new_name(text, opening, number) for number, text in tokens}
            self._copies[opening] = _rename_tokens(content, names)
        return self._copies[opening]


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token for what is not in the vocabulary, which tokenizer.json may have and tokenizer_config.json not name."""
    if tokenizer.unk_token_id is not None:
        return int(tokenizer.unk_token_id)
    added = tokenizer.added_tokens_decoder
    return next((token for token in tokenizer(_STRANGE, add_special_tokens=False)["input_ids"] if token in added), None)


def _rename_tokens(content: dict[str, Any], names: dict[int, str]) -> Tokenizer:
    """A tokenizer with some tokens renamed, from the content of its tokenizer.json."""
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


def _new_name(token: str, opening: str, number: int) -> str:
    """Another name for a token; keeps whitespace at its ends, which some tokens include."""
    return token.replace(token.strip() or token, f"{opening}{number}{opening}")


def _unused(text: str) -> Iterator[str]:
    used = set(text)
    return (chr(code) for code in itertools.chain(*_SPARE) if chr(code) not in used)


def _mask(contents: Sequence[str], places: Sequence[set[int]], masks: dict[str, str]) -> list[str]:
    return [
        "".join(masks.get(char, char) if at in some else char for at, char in enumerate(content))
        for content, some in zip(contents, places, strict=True)
    ]


def _unmask(text: str, masks: dict[str, str]) -> str:
    return text.translate({ord(mask): char for char, mask in masks.items()})


def _ends(text: str) -> set[int]:
    """The indices of the first and the last character that are not whitespace."""
    return {len(text) - len(text.lstrip()), len(text.rstrip()) - 1}


def _is_structure(token: str, added: Iterable[str]) -> bool:
    paired = re.fullmatch(r"</?([^/].*)>", token)
    if paired and {f"<{paired[1]}>", f"</{paired[1]}>"} <= set(added):
        return False
    return _MARKUP.fullmatch(token) is not None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
