"""The one encoder: texts to token ids, the same for training, evaluation and use, and for every type.

A conversation is rendered to text by the chat template; the response is the text that follows the prompt's text, its
end-of-turn token and the template's fixed suffix included. The two are tokenised apart, without adding special tokens,
as in the paper's released code, so the prompt's ids never depend on the response.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rmkit.errors import RmkitError
from rmkit.recipe import VERIFICATION_PROMPT

_DATE_PROBE = "the-date-of-today"
_RESPONSE_PROBE = "rmkit-probe-response"


@dataclass(frozen=True)
class TokenSequence:
    """The ids of one text that a reward model reads. Its response is `ids[response_start:]`, which may be empty."""

    ids: list[int]
    response_start: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def response_ends(self) -> range:
        """Where each prefix of the response ends, from its first token to the whole."""
        return range(self.response_start + 1, len(self.ids) + 1)


class ChatEncoder:
    """Encodes prompts with responses, and verification prompts, through one tokenizer's chat template.

    Attributes:
        tokenizer: made ready by `rmkit.vocabulary.load_tokenizer`.
        date_string: what templates that print a date are told it is.
        suffix_ids: the ids with which every response ends: its end-of-turn token and what the template adds after it.

    Raises:
        RmkitError: if the template cannot be used: it prints today's date, starts with two BOS tokens, drops the
            response, or ends it without an end-of-turn token; or if the pad token would end a response.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date_string: str | None = None):
        self.tokenizer = tokenizer
        self.date_string = date_string
        self.name = tokenizer.name_or_path or "this model"
        self._refuse_todays_date()
        probe = self._texts("x", _RESPONSE_PROBE)[1]
        _, found, suffix = probe.partition(_RESPONSE_PROBE)
        if not found:
            raise RmkitError(
                f"The chat template of {self.name} drops the response.", "Give another base.chat_template."
            )
        self.suffix_ids: list[int] = self._ids([suffix])[0] if suffix else []
        if not self._special_ids & set(self.suffix_ids):
            raise RmkitError(
                f"The chat template of {self.name} ends a response with {suffix!r}, which holds no end-of-turn token.",
                "Put {{ eos_token }} after the assistant's content in a template of your own (base.chat_template).",
            )
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id in self.suffix_ids:
            raise RmkitError(
                f"The pad token of {self.name} ({tokenizer.pad_token}) also ends responses.",
                "Load the tokenizer with rmkit.vocabulary.load_tokenizer, which picks another.",
            )
        self.response_sequences(["x"], ["y"])

    @property
    def template_hash(self) -> str:
        """sha256 over the chat template and the pinned date."""
        return hashlib.sha256(f"{self.tokenizer.chat_template}\0{self.date_string}".encode()).hexdigest()

    def response_sequences(self, prompts: Sequence[str], responses: Sequence[str]) -> list[TokenSequence]:
        """Each prompt followed by its response, end-of-turn token and suffix included.

        Raises:
            RmkitError: for a text with a second BOS token or a response without its end-of-turn token.
        """
        texts = [self._texts(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        prompt_ids = self._ids([prompt for prompt, _ in texts])
        response_ids = self._ids([response for _, response in texts])
        sequences = []
        for number, (before, after) in enumerate(zip(prompt_ids, response_ids, strict=True)):
            self._refuse_double_bos(before + after, prompts[number])
            if after[-len(self.suffix_ids) :] != self.suffix_ids:
                raise RmkitError(
                    f"The response {_shown(responses[number])} lacks the end-of-turn token of the template.",
                    "The template treats some responses differently: give another base.chat_template.",
                )
            sequences.append(TokenSequence(before + after, len(before)))
        return sequences

    def verification_sequences(
        self, prompts: Sequence[str], responses: Sequence[str], verification_prompt: str = VERIFICATION_PROMPT
    ) -> list[TokenSequence]:
        """I[x, y] of Appendix A: a user turn that asks for a verdict on a response, up to where the answer starts."""
        texts = []
        for prompt, response in zip(prompts, responses, strict=True):
            # Not str.format: prompts and responses hold braces of their own.
            before, _, after = verification_prompt.partition("{prompt}")
            filled = before.replace("{response}", response) + prompt + after.replace("{response}", response)
            texts.append(self._render([{"role": "user", "content": filled}], add_generation_prompt=True))
        sequences = []
        for number, ids in enumerate(self._ids(texts)):
            self._refuse_double_bos(ids, prompts[number])
            sequences.append(TokenSequence(ids, len(ids)))
        return sequences

    def single_token(self, word: str) -> int:
        """The id of a word that is one token.

        Raises:
            RmkitError: if it is several tokens, or unknown.
        """
        (ids,) = self._ids([word])
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            pieces = ", ".join(repr(self.tokenizer.decode([each])) for each in ids)
            raise RmkitError(
                f"{word!r} is not one token for {self.name}: it is {pieces or 'nothing'}.",
                "Set reward_model.yes_token and reward_model.no_token to words that are one token each.",
            )
        return ids[0]

    @property
    def end_id(self) -> int:
        """The end-of-turn token, with which a model ends a response that it writes itself."""
        return next(each for each in self.suffix_ids if each in self._special_ids)

    def response_tokens(self, sequence: TokenSequence) -> list[str]:
        """The text of each token of a response, together its text; one that holds a part of a character is empty."""
        pieces, before = [], ""
        for end in sequence.response_ends:
            text = self.tokenizer.decode(
                sequence.ids[sequence.response_start : end], clean_up_tokenization_spaces=False
            )
            if not text.endswith("\ufffd"):
                pieces.append(text[len(before) :])
                before = text
            else:
                pieces.append("")
        return pieces

    @property
    def _special_ids(self) -> set[int]:
        return {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}

    def _texts(self, prompt: str, response: str) -> tuple[str, str]:
        """The rendered text up to where the response starts, and from there on."""
        user = {"role": "user", "content": prompt}
        before = self._render([user], add_generation_prompt=True)
        whole = self._render([user, {"role": "assistant", "content": response}], add_generation_prompt=False)
        if not whole.startswith(before):
            raise RmkitError(
                f"The chat template of {self.name} renders a prompt differently once a response follows it.",
                "Give a base.chat_template whose generation prompt starts the assistant's turn.",
            )
        return before, whole[len(before) :]

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool, **variables: Any) -> str:
        if self.date_string is not None:
            variables["date_string"] = self.date_string
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
            )
            return str(rendered)
        except (TemplateError, TypeError, ValueError) as error:
            raise RmkitError(
                f"The chat template of {self.name} fails: {str(error).splitlines()[0]}",
                "Give another base.chat_template.",
            ) from None

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _refuse_todays_date(self) -> None:
        # transformers offers templates a clock called strftime_now; a variable of that name stands in front of it.
        rendered = self._render([{"role": "user", "content": "x"}], True, strftime_now=lambda _: _DATE_PROBE)
        if _DATE_PROBE in rendered:
            raise RmkitError(
                f"The chat template of {self.name} prints today's date, so rewards would change from day to day.",
                'Pin it, for example base.date_string: "26 Jul 2024" (or --date-string).',
            )

    def _refuse_double_bos(self, ids: list[int], prompt: str) -> None:
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return
        also_ends = bos in self.suffix_ids or bos == self.tokenizer.eos_token_id
        if ids[:2] == [bos, bos] or (not also_ends and ids.count(bos) > 1):
            raise RmkitError(
                f"Two BOS tokens ({self.tokenizer.bos_token}) in the text of the prompt {_shown(prompt)}.",
                "Give plain texts, not ones that a chat template has been applied to, and a template with one BOS.",
            )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
