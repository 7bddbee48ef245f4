"""Encode texts to token ids, with the same code in training, evaluation and use, for every reward model type.

The chat template renders a conversation to text. The response is everything after the prompt's text, including its
end-of-turn token and the template's fixed suffix. Prompt and response are tokenized separately, without adding special
tokens, as in the paper's released code, so the prompt's ids never depend on the response. A tokenizer that puts a space
in front of every text puts none in front of a response. `special_tokens` decides what
happens to texts that spell control tokens; see `rmkit.encoding.control_tokens`.

The prompt's text ends with the generation prompt. Some templates do not write that before a response that is there
already: DeepSeek-R1's generation prompt opens a thinking block, which a response without thoughts does not have. There
the response starts where the renderings of two responses part; see `ChatEncoder._openings`.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from rmkit.config.recipe import VERIFICATION_PROMPT, SpecialTokens
from rmkit.data.conversations import Message, Prompt, as_text, contents, messages, with_contents
from rmkit.encoding.control_tokens import ControlTokens, Render, unknown_id
from rmkit.errors import RmkitError, first_line

DEFAULT_DATE = "26 Jul 2024"
"""The date for templates that print today's, unless `date_string` names another: the one in Llama 3's own template."""

_DATE_FORMATS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%b %d, %Y", "%B %d, %Y")
_CLOCK_PROBES = (datetime(2011, 11, 11, 11, 11, 11), datetime(2022, 2, 22, 22, 22, 22))
_PROMPT_PROBE, _RESPONSE_PROBE = "rmkit-probe-prompt", "rmkit-probe-response"
_PLAIN_PROBES, _THOUGHTS_PROBE = ("a", "b"), "<think>\nrmkit-probe-thoughts\n</think>\n\nrmkit-probe-response"
_ANSWER_PROBES = [("x", "y"), ("Is 2 + 2 = 4?", "4."), ("a\n", " b "), ("x", ":")]

Job = tuple[Render, tuple[str, ...], list[int]]
"""A rendering to encode: contents of messages -> text; the contents; the control tokens that the template writes."""


@dataclass(frozen=True)
class TokenSequence:
    """The token ids of one text that a reward model reads; the response is `ids[response_start:]` and may be empty.

    `prompt_spells` and `response_spells`: whether the prompt, and the text after it, spell control tokens.
    """

    ids: list[int]
    response_start: int
    prompt_spells: bool = field(default=False, compare=False)
    response_spells: bool = field(default=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __hash__(self) -> int:  # ids are never modified
        return hash((self.response_start, *self.ids))

    @property
    def response_ends(self) -> range:
        """End of each prefix of the response, from its first token to the whole response."""
        return range(self.response_start + 1, len(self.ids) + 1)


class _TemplateError(RmkitError):
    """The chat template fails on a conversation, as it may on those that it does not know."""


class ChatEncoder:
    """Encodes prompts with responses, and verification prompts, through one tokenizer's chat template.

    Attributes:
        tokenizer: prepared by `rmkit.encoding.tokenizer.load_tokenizer`.
        date_string: the date for templates that print one; `DEFAULT_DATE` if the template prints today's and none is
            given.
        special_tokens: how to read control tokens that a text spells: `text` reads them as text, `keep` as the tokens
            (like the paper's code), `error` refuses the text.
        suffix_ids: the ids at the end of every response: its end-of-turn token and what the template adds after it.
        folds_system: whether the template has no system turn, so that a system message becomes the beginning of the
            first user message, followed by an empty line.
        notes: what the encoder adds to the template, one line each for the user.

    Raises:
        RmkitError: if the template is unusable: it starts with two BOS tokens, drops or changes texts, renders a prompt
            differently once a response follows it, or is for images; if it prints a date and `date_string` is none; if
            nothing can end a response; or if the pad token also ends responses.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        date_string: str | None = None,
        special_tokens: SpecialTokens = "text",
    ):
        self.tokenizer = tokenizer
        self.date_string = date_string
        self.special_tokens = special_tokens
        self.name = tokenizer.name_or_path or "this model"
        self.folds_system = False
        self.notes: list[str] = []
        self._unknown = unknown_id(tokenizer)
        self._clock, self._end, self._place, self._one_place = "", "", 0, True
        self._refuse_vision()
        self._pin_clock()
        self._place = self._place_of(_PROMPT_PROBE, _RESPONSE_PROBE)
        self._one_place = self._place_of(_PROMPT_PROBE, _THOUGHTS_PROBE) == self._place
        before = self._opened(_PROMPT_PROBE)
        after = self._continued(before, _PROMPT_PROBE, _RESPONSE_PROBE)
        suffix = after.rpartition(_RESPONSE_PROBE)[2]
        if not any(token in self._special_ids for token in self._ids([suffix])[0]):
            self._end = self._missing_end(suffix)
            after, suffix = after + self._end, suffix + self._end
        before_ids, after_ids, ids = self._ids([before, after, suffix])
        self._refuse_double_bos(before_ids, after_ids)
        system = self._with_system()
        self.folds_system = not system
        self._control_tokens = ControlTokens(tokenizer, [*before_ids, *after_ids, *self._ids([system])[0]])
        self._prompt_controls = self._control_tokens.written(before, before_ids)
        self._response_controls = self._control_tokens.written(after, after_ids)
        self._lead = self._lead_of(before.rpartition(_PROMPT_PROBE)[2], after)
        self._opening = before.partition(_PROMPT_PROBE)[0].strip()
        special = [number for number, token in enumerate(ids) if token in self._special_ids]
        # Anything before the end-of-turn token, such as a space, may merge with the response's last token.
        self.suffix_ids: list[int] = ids[special[0] :]
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id in self.suffix_ids:
            raise RmkitError(
                f"The pad token of {self.name} ({tokenizer.pad_token}) also ends responses.",
                "Load the tokenizer with rmkit.encoding.tokenizer.load_tokenizer, which chooses another.",
            )
        self._controls_of_roles: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
        self.response_sequences(["x"], ["y"])

    @property
    def plain_template(self) -> bool:
        """Whether a plain response is what the tokenizer's template writes after the generation prompt, at any time."""
        return self._place == 0 and not self._end and not self._clock

    @property
    def template_hash(self) -> str:
        """sha256 over the chat template and the pinned date."""
        return hashlib.sha256(f"{self.tokenizer.chat_template}\0{self.date_string}".encode()).hexdigest()

    def response_sequences(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[TokenSequence]:
        """Encode prompts, texts or conversations, followed by their responses with end-of-turn token and suffix.

        Raises:
            RmkitError: if a response lacks its end-of-turn token, or a text spells a control token and
                `special_tokens` is `error`.
        """
        if self._one_place:
            return self._sequences(prompts, responses, self._place)
        places = [self._place_of(*texts) for texts in zip(prompts, responses, strict=True)]
        found: dict[int, TokenSequence] = {}
        for place in set(places):
            rows = [row for row, its in enumerate(places) if its == place]
            made = self._sequences([prompts[row] for row in rows], [responses[row] for row in rows], place)
            found |= zip(rows, made, strict=True)
        return [found[row] for row in range(len(places))]

    def _sequences(self, prompts: Sequence[Prompt], responses: Sequence[str], place: int) -> list[TokenSequence]:
        """The sequences of responses that start at the same one of `_openings`."""

        @cache  # a prompt has several responses
        def opened(prompt: Prompt) -> str:
            return self._opened(prompt, place)

        def opener(prompt: Prompt) -> Job:
            render = lambda *texts: opened(with_contents(prompt, texts))  # noqa: E731
            return render, contents(prompt), self._controls(prompt)[0]

        def continuer(prompt: Prompt, response: str) -> Job:
            def render(*texts: str) -> str:
                masked = with_contents(prompt, texts[:-1])
                return self._continued(opened(masked), masked, texts[-1])

            return render, (*contents(prompt), response), self._controls(prompt)[1]

        distinct = list(dict.fromkeys(prompts))
        before = dict(zip(distinct, self._encoded(map(opener, distinct)), strict=True))
        both = [continuer(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        sequences = []
        for number, (after, response_spells) in enumerate(self._encoded_after_prompts(both)):
            ids, prompt_spells = before[prompts[number]]
            if after[-len(self.suffix_ids) :] != self.suffix_ids:
                raise RmkitError(
                    f"The response {_abbreviate(responses[number])} lacks the end-of-turn token of the template.",
                    "The template treats some responses differently: set another base.chat_template.",
                )
            sequences.append(TokenSequence(ids + after, len(ids), prompt_spells, response_spells))
        return sequences

    def verification_sequences(
        self, prompts: Sequence[Prompt], responses: Sequence[str], verification_prompt: str = VERIFICATION_PROMPT
    ) -> list[TokenSequence]:
        """I[x, y] of Appendix A: a user turn that asks whether a response is good, up to the start of the answer.

        A conversation stands in it as a text, see `rmkit.data.conversations.as_text`.
        """
        texts = [
            _filled(verification_prompt, as_text(prompt), response)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        encoded = self._encoded((self._render_user_turn, (text,), self._prompt_controls) for text in texts)
        return [TokenSequence(ids, len(ids), response_spells=spells) for ids, spells in encoded]

    def answer_token(self, word: str, verification_prompt: str = VERIFICATION_PROMPT) -> int:
        """The token for `word` as the answer to a verification prompt.

        Prompt and word are tokenized together, as in text that models are trained on. If that merges the word with the
        prompt's last token, the result is the token that continues the prompt's ids to the same text.

        Raises:
            RmkitError: if the word takes several tokens there, is unknown, or its token depends on the pair.
        """
        found = [
            self._next_token(self._render_user_turn(_filled(verification_prompt, *probe)), word)
            for probe in _ANSWER_PROBES
        ]
        if set(found) <= {None, self.tokenizer.unk_token_id}:
            ids = self._ids([word])[0] if word else []
            pieces = ", ".join(repr(self.tokenizer.decode([token])) for token in ids)
            raise RmkitError(
                f"{word!r} is not one token for {self.name}: it is {pieces or 'nothing'}.",
                "Set reward_model.yes_token and reward_model.no_token to words that are one token each.",
            )
        token = found[0]
        if token is None or set(found) != {token}:
            raise RmkitError(
                f"Which token {word!r} is after a verification prompt depends on the pair.",
                "Make reward_model.verification_prompt, or the chat template, end the prompt in a fixed text.",
            )
        return token

    def is_templated(self, prompt: Prompt) -> bool:
        """Whether a turn starts with a control token, or with the text that opens a prompt in this chat template."""
        starts = self._control_tokens.spellings + ((self._opening,) if self._opening else ())
        return any(text.lstrip().startswith(starts) for text in contents(prompt))

    @property
    def end_id(self) -> int:
        """The end-of-turn token, which a model generates at the end of a response."""
        return next(token for token in self.suffix_ids if token in self._special_ids)

    def response_tokens(self, sequence: TokenSequence) -> list[str]:
        """The text of each response token; together they are its text. A token with part of a character is empty."""
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
        """All special and added tokens but the unknown one, which a line break may be."""
        return {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder} - {self._unknown}

    def _controls(self, prompt: Prompt) -> tuple[list[int], list[int]]:
        """The control tokens that the template writes around a prompt and around a response, by the prompt's roles."""
        if isinstance(prompt, str):
            return self._prompt_controls, self._response_controls
        roles = tuple(message.role for message in prompt)
        if roles not in self._controls_of_roles:
            if self.folds_system and roles[0] == "system":
                warnings.warn(
                    f"The chat template of {self.name} has no system turn: a system message becomes the "
                    "beginning of the first user message.",
                    stacklevel=2,
                )
            plain = tuple(Message(role, f"{_PROMPT_PROBE}-{number}") for number, role in enumerate(roles))
            before = self._opened(plain)
            texts = [before, self._continued(before, plain, _RESPONSE_PROBE)]
            first, second = map(self._control_tokens.written, texts, self._ids(texts))
            self._controls_of_roles[roles] = (first, second)
        return self._controls_of_roles[roles]

    def _openings(self, prompt: Prompt) -> Iterator[str]:
        """The rendered texts after which a response to the prompt may start; the first that fits is taken.

        The generation prompt, if the rendering of prompt and response begins with it. Else the text up to where the
        renderings of two responses part, which includes an empty thinking block that the template inserts. Else, for a
        response with thoughts of its own, the text up to where it parts from the generation prompt.
        """
        generation = self._render(messages(prompt), add_generation_prompt=True)
        yield generation
        for opening in (
            _common_start(*(self._whole(prompt, response) for response in _PLAIN_PROBES)),
            _common_start(generation, self._whole(prompt, _THOUGHTS_PROBE)).rstrip(),
        ):
            if not _includes(_common_start(generation, opening), contents(prompt)[-1]):
                raise self._looks_back()
            yield opening

    def _place_of(self, prompt: Prompt, response: str) -> int:
        """Which of `_openings` a response starts after; that of a plain response, if the template refuses this one."""
        try:
            whole = self._whole(prompt, response)
        except _TemplateError:
            return self._place
        place = next((number for number, each in enumerate(self._openings(prompt)) if whole.startswith(each)), None)
        if place is None:
            raise self._looks_back()
        return place

    def _opened(self, prompt: Prompt, place: int | None = None) -> str:
        """The rendered text up to the start of a response to the prompt; `place`: which of `_openings`."""
        before = self._opening_at(prompt, self._place if place is None else place)
        for message in messages(prompt):
            role = "prompt" if isinstance(prompt, str) else f"{message['role']} message"
            self._refuse_changed(role, message["content"], before)
        return before

    def _opening_at(self, prompt: Prompt, place: int) -> str:
        return next(islice(self._openings(prompt), place, None))

    def _continued(self, before: str, prompt: Prompt, response: str) -> str:
        """The rendered text of a response, after what `_opened` returns."""
        whole = self._whole(prompt, response)
        if not whole.startswith(before):
            raise self._looks_back()
        after = whole[len(before) :]
        if not _overlaps(before, after, response):  # the text before it may end in its beginning, such as `<think>`
            self._refuse_changed("response", response, after)
        return after

    def _whole(self, prompt: Prompt, response: str) -> str:
        conversation = [*messages(prompt), {"role": "assistant", "content": response}]
        return self._render(conversation, add_generation_prompt=False) + self._end

    def _looks_back(self) -> RmkitError:
        return RmkitError(
            f"The chat template of {self.name} renders a prompt differently once a response follows it.",
            "Set a base.chat_template whose generation prompt starts the assistant's turn.",
        )

    def _refuse_changed(self, role: str, text: str, rendered: str) -> None:
        if not _includes(rendered, text):
            raise RmkitError(
                f"The chat template of {self.name} drops or changes the {role} {_abbreviate(text)}.",
                "Set another base.chat_template.",
            )

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool, clock: str | None = None) -> str:
        """The text of a conversation. `clock`: what to put in front of the template instead of the pinned clock."""
        clock = self._clock if clock is None else clock
        if self.folds_system and messages[0]["role"] == "system" and len(messages) > 1:
            system, user, *others = messages
            messages = [user | {"content": f"{system['content']}\n\n{user['content']}"}, *others]
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                chat_template=clock + self.tokenizer.get_chat_template() if clock else None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **({} if self.date_string is None else {"date_string": self.date_string}),
            )
            return str(rendered)
        except RmkitError:
            raise  # its time limit
        except Exception as error:  # a template is a program and may fail in any way
            raise _TemplateError(
                f"The chat template of {self.name} fails: {first_line(error)}",
                "Set another base.chat_template.",
            ) from None

    def _render_user_turn(self, content: str) -> str:
        return self._opening_at(content, self._place)

    def _encoded(self, jobs: Iterable[Job]) -> list[tuple[list[int], bool]]:
        """The ids of rendered texts, and whether the contents of each spell control tokens."""
        jobs = list(jobs)
        texts = [_render_or_error(render, content) for render, content, _ in jobs]
        encoded = iter(self._ids([text for text in texts if isinstance(text, str)]))
        found = []
        for (render, content, controls), text in zip(jobs, texts, strict=True):
            if isinstance(text, str):
                ids = next(encoded)
                if self._control_tokens.written(text, ids) == controls:
                    found.append((ids, False))
                    continue
            found.append(self._with_control_tokens(render, content, text, ids if isinstance(text, str) else None))
        return found

    def _encoded_after_prompts(self, jobs: Iterable[Job]) -> list[tuple[list[int], bool]]:
        """As `_encoded`, for texts that follow a prompt: with `_lead` in front, whose ids are then removed."""
        jobs = list(jobs)
        if not self._lead:
            return self._encoded(jobs)

        def led(job: Job) -> Job:
            render, content, controls = job
            return lambda *texts: self._lead + render(*texts), content, [*lead_controls, *controls]

        lead = self._ids([self._lead])[0]
        lead_controls = [token for token in lead if token in self._control_tokens.ids]
        return [
            (ids[len(lead) :], spells) if ids[: len(lead)] == lead else self._encoded([job])[0]
            for job, (ids, spells) in zip(jobs, self._encoded(map(led, jobs)), strict=True)
        ]

    def _lead_of(self, generation_prompt: str, response: str) -> str:
        """What must stand in front of a response for its ids to be those that it has in the whole conversation.

        Nothing for most tokenizers. SentencePiece's put a space in front of a text, which a response in the middle of
        one does not have: for them it is the end of the generation prompt, from its last control token on.
        """
        starts = [generation_prompt.rfind(spelling) for spelling in self._control_tokens.spellings]
        lead = generation_prompt[max(0, *starts) :]
        before, both, alone = self._ids([lead, lead + response, response])
        rest = both[len(before) :]
        same_controls = [[token for token in ids if token in self._control_tokens.ids] for ids in (rest, alone)]
        separable = both[: len(before)] == before and same_controls[0] == same_controls[1]
        return lead if separable and rest != alone else ""

    def _with_control_tokens(
        self, render: Render, contents: tuple[str, ...], text: str | RmkitError, ids: list[int] | None
    ) -> tuple[list[int], bool]:
        """Ids by the rule of `special_tokens`, and whether the contents spell a control token after all."""
        if isinstance(text, RmkitError) and self.special_tokens != "text":
            raise text
        as_text = self._control_tokens.encode_as_text(render, contents, text) if self.tokenizer.is_fast else None
        if as_text is not None and as_text == ids:
            return ids, False
        if self.special_tokens == "keep":
            assert ids is not None
            return ids, True
        if self.special_tokens == "text" and as_text is not None:
            return as_text, True
        spellings = self._control_tokens.spellings
        culprit = next((text for text in contents[::-1] if any(map(text.__contains__, spellings))), contents[-1])
        spelled = " ".join(token for token in spellings if token in culprit)
        raise RmkitError(
            f"The text {_abbreviate(culprit)} spells a control token of {self.name} ({spelled})"
            + (", whose tokenizer has no fast version to read it as text." if as_text is None else "."),
            f"Set data.special_tokens (or --special-tokens) to {'keep' if as_text is None else 'text or keep'}.",
        )

    def _next_token(self, before: str, word: str) -> int | None:
        """The single token that continues a text by a word; None if it takes several."""
        prompt, both, alone = self._ids([before, before + word, word])
        if both[:-1] == prompt:
            return both[-1]
        text = self.tokenizer.decode(prompt) + word
        candidates = [token for token in (*alone, self.tokenizer.convert_tokens_to_ids(word)) if token is not None]
        return next((token for token in candidates if self.tokenizer.decode([*prompt, token]) == text), None)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _pin_clock(self) -> None:
        """Give a template that prints today's date a fixed one: as `date_string`, or else as its clock."""
        if self._prints_clock() and self.date_string is None:
            self.date_string = DEFAULT_DATE
            self.notes.append(
                f"The chat template of {self.name} prints today's date: {DEFAULT_DATE} is used instead "
                "(another: base.date_string or --date-string)."
            )
        if self.date_string is not None and self._prints_clock():
            self._clock = _clock(_date(self.date_string))

    def _prints_clock(self) -> bool:
        """Whether what the template writes depends on what `strftime_now` returns."""
        if "strftime_now" not in str(self.tokenizer.chat_template):
            return False
        user, assistant = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
        first, second = (
            [self._render([user], True, clock), self._render([user, assistant], False, clock), self._with_system(clock)]
            for clock in map(_clock, _CLOCK_PROBES)
        )
        return first != second

    def _with_system(self, clock: str | None = None) -> str:
        """The text of a conversation with a system turn; empty if the template refuses or drops the system's text."""
        messages = [{"role": "system", "content": _RESPONSE_PROBE}, {"role": "user", "content": _PROMPT_PROBE}]
        try:
            text = self._render(messages, False, clock)
        except _TemplateError:
            return ""
        return text if _RESPONSE_PROBE in text else ""

    def _refuse_vision(self) -> None:
        """Refuse a template that shows contents as lists of parts only, which is how images are given."""
        if _PROMPT_PROBE in self._render([{"role": "user", "content": _PROMPT_PROBE}], True):
            return
        parts: Any = [{"type": "text", "text": _PROMPT_PROBE}]
        try:
            shown = _PROMPT_PROBE in self._render([{"role": "user", "content": parts}], True)
        except _TemplateError:
            return
        if shown:
            raise RmkitError(
                f"The chat template of {self.name} is for a vision model: it drops contents that are plain text.",
                "Set a base.chat_template for text.",
            )

    def _missing_end(self, suffix: str) -> str:
        """The end of a response whose turn the template does not end: what it writes before the next turn, else EOS."""
        user, assistant = {"role": "user", "content": _PROMPT_PROBE}, {"role": "assistant", "content": _RESPONSE_PROBE}
        try:
            longer = self._render([user, assistant, user], add_generation_prompt=False)
        except _TemplateError:
            longer = ""
        between = longer.partition(_RESPONSE_PROBE)[2].partition(_PROMPT_PROBE)[0]
        opener = next((token for token in self._ids([between])[0] if token in self._special_ids), None)
        if opener is not None and opener != self.tokenizer.bos_token_id:
            end = str(self.tokenizer.convert_ids_to_tokens(opener))
            what = "what the template writes before the next turn"
        else:
            end, what = self.tokenizer.eos_token or "", "the EOS"
        if not end:
            raise RmkitError(
                f"The chat template of {self.name} ends a response with {suffix!r}, which has no end-of-turn token.",
                "Put {{ eos_token }} after the assistant's content in a template of your own (base.chat_template).",
            )
        self.notes.append(
            f"The chat template of {self.name} ends a response without an end-of-turn token: {end} is added, {what}."
        )
        return end

    def _refuse_double_bos(self, before_ids: list[int], after_ids: list[int]) -> None:
        """Two BOS tokens at the start are one too many, unless the template also opens later turns with one."""
        bos = self.tokenizer.bos_token_id
        if bos is not None and before_ids[:2] == [bos, bos] and bos not in [*before_ids[2:], *after_ids]:
            raise RmkitError(
                f"The chat template of {self.name} starts with two BOS tokens ({self.tokenizer.bos_token}).",
                "Set a base.chat_template with one BOS.",
            )


def _date(date_string: str) -> datetime:
    """A date in one of the usual formats, at midnight.

    Raises:
        RmkitError: if the text is no date.
    """
    date = next((date for date in (_parsed(date_string, each) for each in _DATE_FORMATS) if date is not None), None)
    if date is None:
        raise RmkitError(
            f"The chat template prints a date in its own format, and {date_string!r} is not a date.",
            f"Write base.date_string (or --date-string) like {DEFAULT_DATE} or 2024-07-26.",
        )
    return date


def _clock(moment: datetime) -> str:
    """The beginning of a template in which `strftime_now` returns a fixed moment.

    transformers gives templates a clock of that name, which a macro hides, and lets no function be passed instead.
    """
    # Jinja removes the line break after the macro, and reads the template from the start of a line, as without it.
    codes = [f"%-{code}" for code in "dmyHIMSj"] + [f"%{code}" for code in "aAwdbBmyYHIpMSfzZjUWcxXGuVeFDTRklPChgnt%"]
    values = json.dumps({code: moment.strftime(code) for code in codes})
    return (
        "{% macro strftime_now(format) %}{% set its = namespace(text=format) %}{% for code, value in "
        + values
        + ".items() %}{% set its.text = its.text | replace(code, value) %}{% endfor %}{{ its.text }}{% endmacro %}\n"
    )


def _parsed(text: str, form: str) -> datetime | None:
    try:
        return datetime.strptime(text.strip(), form)
    except ValueError:
        return None


def _filled(verification_prompt: str, prompt: str, response: str) -> str:
    # Not str.format: prompts and responses may contain braces.
    fields = {"{prompt}": prompt, "{response}": response}
    return re.sub(r"\{prompt\}|\{response\}", lambda match: fields[match[0]], verification_prompt)


def _render_or_error(render: Render, contents: tuple[str, ...]) -> str | RmkitError:
    try:
        return render(*contents)
    except RmkitError as error:
        return error


def _includes(rendered: str, text: str) -> bool:
    return text in rendered or _letters(text) in _letters(rendered)


def _overlaps(before: str, after: str, text: str) -> bool:
    """Whether a text begins at the end of `before` and continues in `after`, white space aside."""
    before, after, text = _letters(before), _letters(after), _letters(text)
    return any(before.endswith(text[:end]) and after.startswith(text[end:]) for end in range(1, len(text)))


def _common_start(first: str, second: str) -> str:
    differ = (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return first[: next(differ, min(len(first), len(second)))]


def _letters(text: str) -> str:
    """The text without whitespace, which templates may strip."""
    return "".join(text.split())


def _abbreviate(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
