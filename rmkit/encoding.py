"""The one encoder: texts to token ids, the same for training, evaluation and use, and for every type.

A conversation is rendered to text by the chat template; the response is the text that follows the prompt's text, its
end-of-turn token and the template's fixed suffix included. The two are tokenised apart, without adding special tokens,
as in the paper's released code, so the prompt's ids never depend on the response.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rmkit.errors import RmkitError
from rmkit.recipe import VERIFICATION_PROMPT

_DATE_PROBES = ("11 11 1111", "22 22 2222")
_PROMPT_PROBE, _RESPONSE_PROBE = "rmkit-probe-prompt", "rmkit-probe-response"


@dataclass(frozen=True)
class TokenSequence:
    """The ids of one text that a reward model reads. Its response is `ids[response_start:]`, which may be empty."""

    ids: list[int]
    response_start: int

    def __len__(self) -> int:
        return len(self.ids)

    def __hash__(self) -> int:  # ids are never changed
        return hash((self.response_start, *self.ids))

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
        RmkitError: if the template cannot be used: it prints today's date, starts with two BOS tokens, drops or changes
            the texts, or ends a response without an end-of-turn token; or if the pad token would end a response.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date_string: str | None = None):
        self.tokenizer = tokenizer
        self.date_string = date_string
        self.name = tokenizer.name_or_path or "this model"
        self._refuse_todays_date()
        probe = self._continued(self._opened(_PROMPT_PROBE), _PROMPT_PROBE, _RESPONSE_PROBE)
        suffix = probe.rpartition(_RESPONSE_PROBE)[2]
        ids = self._ids([suffix])[0] if suffix else []
        special = [number for number, token in enumerate(ids) if token in self._special_ids]
        if not special:
            raise RmkitError(
                f"The chat template of {self.name} ends a response with {suffix!r}, which holds no end-of-turn token.",
                "Put {{ eos_token }} after the assistant's content in a template of your own (base.chat_template).",
            )
        # What stands before the end-of-turn token, a space for example, may become one token with the response's end.
        self.suffix_ids: list[int] = ids[special[0] :]
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
        opened = {prompt: self._opened(prompt) for prompt in dict.fromkeys(prompts)}  # prompts have several responses
        texts = [self._continued(opened[prompt], prompt, each) for prompt, each in zip(prompts, responses, strict=True)]
        prompt_ids = dict(zip(opened, self._ids(list(opened.values())), strict=True))
        response_ids = self._ids(texts)
        sequences = []
        for number, after in enumerate(response_ids):
            before = prompt_ids[prompts[number]]
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
            fields = {"{prompt}": prompt, "{response}": response}
            filled = re.sub(r"\{prompt\}|\{response\}", lambda match: fields[match[0]], verification_prompt)  # noqa: B023
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

    def _opened(self, prompt: str) -> str:
        """The rendered text up to where a response to the prompt starts."""
        before = self._render([{"role": "user", "content": prompt}], add_generation_prompt=True)
        self._refuse_changed("prompt", prompt, before)
        return before

    def _continued(self, before: str, prompt: str, response: str) -> str:
        """The rendered text of a response, from what `_opened` gives on."""
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        whole = self._render(messages, add_generation_prompt=False)
        if not whole.startswith(before):
            raise RmkitError(
                f"The chat template of {self.name} renders a prompt differently once a response follows it.",
                "Give a base.chat_template whose generation prompt starts the assistant's turn.",
            )
        after = whole[len(before) :]
        self._refuse_changed("response", response, after)
        return after

    def _refuse_changed(self, kind: str, text: str, rendered: str) -> None:
        if text not in rendered and _letters(text) not in _letters(rendered):
            raise RmkitError(
                f"The chat template of {self.name} drops or changes the {kind} {_shown(text)}.",
                "Give another base.chat_template.",
            )

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool, template: str | None = None) -> str:
        variables = {} if self.date_string is None else {"date_string": self.date_string}
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
            return str(rendered)
        except Exception as error:  # a template is a program and may fail in any way
            cause = next(iter(str(error).splitlines()), type(error).__name__)
            raise RmkitError(
                f"The chat template of {self.name} fails: {cause}",
                "Give another base.chat_template.",
            ) from None

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _refuse_todays_date(self) -> None:
        # transformers offers templates a clock called strftime_now; a macro of that name stands in front of it.
        template = self.tokenizer.chat_template
        if not isinstance(template, str) or "strftime_now" not in template:
            return
        user, assistant = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
        first, second = (
            [self._render([user], True, clock + template), self._render([user, assistant], False, clock + template)]
            for clock in ("{% macro strftime_now(_) %}" + date + "{% endmacro %}" for date in _DATE_PROBES)
        )
        if first != second:
            raise RmkitError(
                f"The chat template of {self.name} prints today's date, so rewards would change from day to day.",
                'Pin it, for example base.date_string: "26 Jul 2024" (or --date-string).'
                if self.date_string is None
                else "It ignores date_string: give another base.chat_template.",
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


def _letters(text: str) -> str:
    """The text without white space, which templates may strip."""
    return "".join(text.split())


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
