"""A chat template as a function from conversations to text: where a response starts in it, and what ends it.

The prompt's text ends with the generation prompt. Some templates do not write that before a response that is there
already: DeepSeek-R1's generation prompt opens a thinking block, which a response without thoughts does not have. There
the response starts where the renderings of two responses part; see `ChatTemplate.openings`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from rmkit.data.conversations import (
    WRITTEN_FIELDS,
    Conversation,
    Prompt,
    Response,
    Turns,
    as_conversation,
    contents,
    messages,
    prompt_turns,
    response_turns,
)
from rmkit.encoding.control_tokens import unknown_id
from rmkit.errors import RmkitError, first_line

DEFAULT_DATE = "26 Jul 2024"
"""The date for templates that print today's, unless `date_string` names another: the one in Llama 3's own template."""

PROMPT_PROBE, RESPONSE_PROBE = "rmkit-probe-prompt", "rmkit-probe-response"

_DATE_FORMATS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%b %d, %Y", "%B %d, %Y")
_CLOCK_PROBES = (datetime(2011, 11, 11, 11, 11, 11), datetime(2022, 2, 22, 22, 22, 22))
_PLAIN_PROBES, _THOUGHTS_PROBE = ("a", "b"), "<think>\nrmkit-probe-thoughts\n</think>\n\nrmkit-probe-response"
_TOOL_PROBE = {"type": "function", "function": {"name": "rmkit_probe", "description": "x", "parameters": {}}}


class TemplateError(RmkitError):
    """The chat template fails on a conversation, as it may on those that it does not know."""


class ChatTemplate:
    """The chat template of a tokenizer, with a fixed date, and an end for every response.

    Attributes:
        date_string: the date for templates that print one; `DEFAULT_DATE` if it prints today's and none is given.
        place: which of `openings` a plain response starts after.
        one_place: whether that is so for every response of one turn.
        suffix: what follows the text of a response: its end-of-turn token, and what the template adds after it.
        folds_system: whether the template has no system turn, so that a system message becomes the beginning of the
            first user message, followed by an empty line.
        notes: what is added to the template, one line each for the user.

    Raises:
        RmkitError: see `rmkit.encoding.chat.ChatEncoder`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date_string: str | None = None):
        self.tokenizer = tokenizer
        self.date_string = date_string
        self.name = tokenizer.name_or_path or "this model"
        self.folds_system = False
        self.notes: list[str] = []
        self._clock, self._end, self.place, self.one_place = "", "", 0, True
        self._unread_options: set[str] = set()
        self._refuse_vision()
        self._pin_clock()
        self.place = self.place_of(PROMPT_PROBE, RESPONSE_PROBE)
        self.one_place = self.place_of(PROMPT_PROBE, _THOUGHTS_PROBE) == self.place
        after = self.continued(self.opened(PROMPT_PROBE), PROMPT_PROBE, RESPONSE_PROBE)
        self.suffix = after.rpartition(RESPONSE_PROBE)[2]
        if not self._control_tokens(self.suffix):
            self._end = self._missing_end(self.suffix)
            self.suffix += self._end
        self.folds_system = not self.with_system()

    @property
    def plain(self) -> bool:
        """Whether a plain response is what the template writes after the generation prompt, at any time."""
        return self.place == 0 and not self._end and not self._clock

    def openings(self, prompt: Prompt, response: Response = "") -> Iterator[str]:
        """The rendered texts after which a response to the prompt may start; the first that fits is taken.

        The generation prompt, if the rendering of prompt and response begins with it. Else the text up to where the
        renderings of two responses part, which includes an empty thinking block that the template inserts. Else, for a
        response with thoughts of its own, the text up to where it parts from the generation prompt.

        Args:
            response: its first turn is replaced, and what follows that is kept.
        """
        generation = self._generation_prompt(prompt)
        yield generation
        turns = response_turns(response)
        first, second, thoughts = (
            self._whole(prompt, (replace(turns[0], content=probe), *turns[1:]))
            for probe in (*_PLAIN_PROBES, _THOUGHTS_PROBE)
        )
        for opening in (_common_start(first, second), _common_start(generation, thoughts).rstrip()):
            if not _includes(_common_start(generation, opening), contents(prompt)[-1]):
                raise self._looks_back()
            yield opening

    def place_of(self, prompt: Prompt, response: str) -> int:
        """Which of `openings` a response starts after; that of a plain response, if the template refuses this one."""
        try:
            whole = self._whole(prompt, response)
        except TemplateError:
            return self.place
        place = next((number for number, each in enumerate(self.openings(prompt)) if whole.startswith(each)), None)
        if place is None:
            raise self._looks_back()
        return place

    def opened(self, prompt: Prompt, place: int | None = None) -> str:
        """The rendered text up to the start of a response to the prompt; `place`: which of `openings`."""
        before = self.opening_at(prompt, self.place if place is None else place)
        self._refuse_changed_turns("prompt" if isinstance(prompt, str) else None, prompt_turns(prompt), before)
        return before

    def opening_at(self, prompt: Prompt, place: int) -> str:
        """One of `openings`."""
        return next(islice(self.openings(prompt), place, None))

    def continued(self, before: str, prompt: Prompt, response: str) -> str:
        """The rendered text of a response, after what `opened` returns."""
        whole = self._whole(prompt, response)
        if not whole.startswith(before):
            raise self._looks_back()
        after = whole[len(before) :]
        self._refuse_changed_response(before, response, after)
        return after

    def parts(self, prompt: Prompt, response: Turns) -> list[str]:
        """A prompt with a response of any turns, in parts: the text up to the response, an assistant's turn, the text
        up to the next one, and so on, up to the last assistant's turn.

        An assistant's turn starts as it would in a response of one turn to everything before it, and ends with
        `suffix`, or with the beginning of it that the template writes after earlier turns (with its end-of-turn token).

        Raises:
            RmkitError: if the template changes a text, or writes an earlier turn of the assistant otherwise.
        """
        whole = self._whole(prompt, response)
        parts, start, between = [], 0, prompt_turns(prompt)
        for number, message in enumerate(response):
            if message.role != "assistant":
                between = (*between, message)
                continue
            before, rest = _extended(prompt, response[:number]), response[number:]
            opening = next((each for each in self.openings(before, rest) if whole.startswith(each)), None)
            if opening is None or len(opening) < start:
                raise self._looks_back()
            self._refuse_changed_turns(None, between, opening[start:])
            end = len(whole) if len(rest) == 1 else self._turn_end(before, rest, whole, len(opening))
            self._refuse_changed_response(opening, message.content, whole[len(opening) : end])
            parts += [opening[start:], whole[len(opening) : end]]
            start, between = end, ()
        return parts

    def _turn_end(self, prompt: Prompt, response: Turns, whole: str, start: int) -> int:
        """Where the first turn of a response, which begins at `start` of the rendered text, ends in it.

        Before the content of the next turn, where two renderings with different contents part, it looks for the last
        `suffix`, or as much of it as the template writes there.
        """
        turn, other, *later = response
        head = _common_start(
            *(self._whole(prompt, (turn, replace(other, content=probe), *later)) for probe in _PLAIN_PROBES)
        )
        for end in self._turn_ends():
            at = head.rfind(end, start)
            if at >= 0 and whole.startswith(head):
                return at + len(end)
        raise RmkitError(
            f"The chat template of {self.name} ends an earlier turn of the assistant otherwise than the last one.",
            "Set another base.chat_template, or use responses of one turn.",
        )

    def _whole(self, prompt: Prompt, response: Response) -> str:
        conversation = messages((*prompt_turns(prompt), *response_turns(response)))
        return self.render(conversation, False, options=as_conversation(prompt).template_options) + self._end

    def _whole_or_none(self, prompt: Prompt, response: Response) -> str | None:
        try:
            return self._whole(prompt, response)
        except TemplateError:
            return None

    def _generation_prompt(self, prompt: Prompt) -> str:
        return self.render(messages(prompt), True, options=as_conversation(prompt).template_options)

    def check_read(self, prompt: Conversation, response: Response) -> None:
        """Refuse tools, tool calls and thoughts that the template does not write; warn of options it does not name.

        Raises:
            RmkitError: if the text is the same without them.
        """
        whole = self._whole(prompt, response)
        if prompt.tools and whole == self._whole_or_none(replace(prompt, tools=""), response):
            raise self._ignored("tools", "the column tools")
        turns, size = (*prompt.turns, *response_turns(response)), len(prompt.turns)
        for number, turn in enumerate(turns):
            fields = json.loads(turn.fields or "{}")
            for key in set(fields) & set(WRITTEN_FIELDS):
                left = {name: value for name, value in fields.items() if name != key}
                changed = (
                    *turns[:number],
                    replace(turn, fields=json.dumps(left) if left else ""),
                    *turns[number + 1 :],
                )
                if whole == self._whole_or_none(replace(prompt, turns=changed[:size]), changed[size:]):
                    raise self._ignored(key, f"{key} from such messages")
        for key in json.loads(prompt.options or "{}"):
            if key not in str(self.tokenizer.chat_template) and key not in self._unread_options:
                self._unread_options.add(key)
                warnings.warn(
                    f"The chat template of {self.name} does not read {key} of chat_template_kwargs.", stacklevel=2
                )

    def _ignored(self, what: str, remove: str) -> RmkitError:
        return RmkitError(
            f"The chat template of {self.name} does not write {what}.",
            f"Set a base.chat_template (or --chat-template) that does, or remove {remove}.",
        )

    def _turn_ends(self) -> list[str]:
        """`suffix` and its beginnings that stop before or after a token of it, but not before its end-of-turn token."""
        borders, at = [], 0
        for token in self.tokenizer.convert_ids_to_tokens(self._control_tokens(self.suffix)):
            if token in self.suffix[at:]:  # not if a token's text is written in another form
                start = self.suffix.index(token, at)
                at = start + len(token)
                borders += [start, at]
        return [self.suffix[:border] for border in sorted({*borders[1:], len(self.suffix)}, reverse=True)]

    def _control_tokens(self, text: str) -> list[int]:
        """The special and added tokens of a text."""
        special = special_ids(self.tokenizer)
        return [token for token in self.tokenizer([text], add_special_tokens=False)["input_ids"][0] if token in special]

    def _looks_back(self) -> RmkitError:
        return RmkitError(
            f"The chat template of {self.name} renders a prompt differently once a response follows it.",
            "Set a base.chat_template whose generation prompt starts the assistant's turn.",
        )

    def _refuse_changed(self, role: str, text: str, rendered: str) -> None:
        if not _includes(rendered, text):
            raise RmkitError(
                f"The chat template of {self.name} drops or changes the {role} {abbreviate(text)}.",
                "Set another base.chat_template.",
            )

    def _refuse_changed_turns(self, role: str | None, turns: Turns, rendered: str) -> None:
        for turn in turns:
            self._refuse_changed(role or f"{turn.role} message", turn.content, rendered)

    def _refuse_changed_response(self, before: str, response: str, after: str) -> None:
        # The text before it may end in its beginning, such as `<think>`.
        if not _includes(after, response) and not _overlaps(before, after, response):
            self._refuse_changed("response", response, after)

    def render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool,
        clock: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            clock: what to put in front of the template instead of the pinned clock.
            options: further arguments of the template.
        """
        options = options or {}
        clock = self._clock if clock is None else clock
        if self.folds_system and messages[0]["role"] == "system" and len(messages) > 1:
            messages = _folded(messages)
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                chat_template=clock + self.tokenizer.get_chat_template(tools=options.get("tools")) if clock else None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **{**({} if self.date_string is None else {"date_string": self.date_string}), **options},
            )
            return str(rendered)
        except RmkitError:
            raise  # its time limit
        except Exception as error:  # a template is a program and may fail in any way
            raise TemplateError(
                f"The chat template of {self.name} fails: {first_line(error)}",
                "Set another base.chat_template.",
            ) from None

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
            [
                self.render([user], True, clock),
                self.render([user, assistant], False, clock),
                self.with_system(clock),
                self._with_tools(clock),
            ]
            for clock in map(_clock, _CLOCK_PROBES)
        )
        return first != second

    def with_system(self, clock: str | None = None) -> str:
        """The text of a conversation with a system turn; empty if the template refuses or drops the system's text."""
        messages = [{"role": "system", "content": RESPONSE_PROBE}, {"role": "user", "content": PROMPT_PROBE}]
        try:
            text = self.render(messages, False, clock)
        except TemplateError:
            return ""
        return text if RESPONSE_PROBE in text else ""

    def _with_tools(self, clock: str) -> str:
        """The text of a user turn with tools, which may have a template of its own; empty if the template refuses."""
        try:
            return self.render([{"role": "user", "content": PROMPT_PROBE}], True, clock, {"tools": [_TOOL_PROBE]})
        except TemplateError:
            return ""

    def _refuse_vision(self) -> None:
        """Refuse a template that shows contents as lists of parts only, which is how images are given."""
        if PROMPT_PROBE in self.render([{"role": "user", "content": PROMPT_PROBE}], True):
            return
        parts: Any = [{"type": "text", "text": PROMPT_PROBE}]
        try:
            shown = PROMPT_PROBE in self.render([{"role": "user", "content": parts}], True)
        except TemplateError:
            return
        if shown:
            raise RmkitError(
                f"The chat template of {self.name} is for a vision model: it drops contents that are plain text.",
                "Set a base.chat_template for text.",
            )

    def _missing_end(self, suffix: str) -> str:
        """The end of a response whose turn the template does not end: what it writes before the next turn, else EOS."""
        user, assistant = {"role": "user", "content": PROMPT_PROBE}, {"role": "assistant", "content": RESPONSE_PROBE}
        try:
            longer = self.render([user, assistant, user], add_generation_prompt=False)
        except TemplateError:
            longer = ""
        between = longer.partition(RESPONSE_PROBE)[2].partition(PROMPT_PROBE)[0]
        opener = next(iter(self._control_tokens(between)), None)
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


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids of all special and added tokens but the unknown one, which a line break may be."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {unknown_id(tokenizer)}


def _folded(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose system message, the first, is the beginning of the first user message."""
    system, *others = messages
    at = next((number for number, each in enumerate(others) if each["role"] == "user"), 0)
    others[at] = others[at] | {"content": f"{system['content']}\n\n{others[at]['content']}"}
    return others


def _extended(prompt: Prompt, turns: Turns) -> Prompt:
    """The prompt followed by turns."""
    conversation = as_conversation(prompt)
    return replace(conversation, turns=(*conversation.turns, *turns)) if turns else prompt


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


def abbreviate(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
