"""Texts to which the chat template was already applied: refuse them, or read them back into turns.

A text is read back by what the template writes between turns, and only if rendering the turns again gives the text,
up to BOS and whitespace at its ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rmkit.data.conversations import Message, Turns, contents, messages, parse_prompt
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.data.templated import ALLOW, KNOWN_MARKS, TurnMarks, literal_marks
from rmkit.encoding.chat import ChatEncoder
from rmkit.errors import RmkitError

_SYSTEM, _USER, _ASSISTANT, _LAST = (f"rmkit-probe-{name}" for name in ("system", "user", "assistant", "last"))


class TemplateReader:
    """Recognises what one chat template writes, and reads it back."""

    def __init__(self, encoder: ChatEncoder):
        self._encoder = encoder

    def apply(self, data: PreferenceData, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
        """Some pairs of a set without templated texts, by the set's rule.

        `error` refuses them, `read` reads them back, `text` leaves them as they are.

        Raises:
            RmkitError: naming row and column of a text that is refused or cannot be read back.
        """
        found = []
        for pair in pairs:
            column = None if data.templated == "text" else self._templated_column(pair)
            if column is not None:
                where = data.place(pair)
                if data.templated == "error":
                    raise RmkitError(
                        f"{where}, column {column} spells turns of the chat template, which was already applied.", ALLOW
                    )
                pair = self._read_pair(pair, where)
            found.append(pair)
        return found

    def is_templated(self, text: str) -> bool:
        """Whether a text is made of turns, as this or another known template writes them."""
        return KNOWN_MARKS.spelled_in(text) or (self._marks is not None and self._marks.spelled_in(text))

    def _templated_column(self, pair: PreferencePair) -> str | None:
        texts = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        return next((name for name, each in texts.items() if any(map(self.is_templated, contents(each)))), None)

    def _read_pair(self, pair: PreferencePair, where: str) -> PreferencePair:
        texts = [text for text in (pair.prompt, pair.chosen, pair.rejected) if isinstance(text, str)]
        found = self._read(*texts) if len(texts) == 3 else None
        if found is None:
            raise RmkitError(
                f"{where}: the chat template of {self._encoder.name} does not write these texts, so they cannot be "
                "read back into turns.",
                "Give the conversation as messages, or set templated: text in the set (--templated text).",
            )
        prompt, chosen, rejected = found
        return replace(pair, prompt=parse_prompt(prompt, where), chosen=chosen, rejected=rejected)

    def _read(self, prompt: str, *responses: str) -> tuple[Turns, str, str] | None:
        """The turns of a prompt, and two responses."""
        turns = self._turns(prompt)
        if turns is None and not self.is_templated(prompt):
            turns = (Message("user", prompt),)
        elif turns is None or turns[-1].role != "user":  # the beginning of both responses, cut anywhere
            whole = self._turns(responses[0]) if all(text.startswith(prompt) for text in responses) else None
            turns = whole[:-1] if whole is not None else ()
        if not turns or turns[-1].role != "user":
            return None
        chosen, rejected = (self._response(turns, text) for text in responses)
        return (turns, chosen, rejected) if chosen and rejected else None

    def _response(self, turns: Turns, text: str) -> str | None:
        """A response without what the template writes around it; None if that is not what the template writes."""
        marks = self._separators
        if marks is None:
            return None
        whole = self._turns(text)
        if whole is not None and whole[-1].role == "assistant" and whole[:-1] == turns:
            return whole[-1].content
        body = text
        if marks.assistant and body.lstrip().startswith(marks.assistant.rstrip()):
            body = body.lstrip()
            body = body.removeprefix(marks.assistant if body.startswith(marks.assistant) else marks.assistant.rstrip())
        if marks.end.strip() and body.rstrip().endswith(marks.end.rstrip()):
            body = body.rstrip().removesuffix(marks.end.rstrip())
        if body == text:
            return None if self.is_templated(text) else text
        if self._holds_marks(body):
            return None
        wanted = self._normal(self._render(turns, True) + body + marks.end)
        for content in (body.removeprefix(marks.inserted), body, body.strip()):
            if self._normal(self._render((*turns, Message("assistant", content)), False)) == wanted:
                return content
        return None

    def _turns(self, text: str) -> Turns | None:
        """The turns of a text; None if the template does not write it."""
        marks, text = self._separators, self._normal(text)
        for start, role in ((marks.start, "user"), (marks.system_start, "system")) if marks is not None else ():
            if not start or not text.startswith(start):
                continue
            for longest in (True, False):  # of the marks at a place: a response may begin like the end of one
                turns = self._split(text[len(start) :], role, longest)
                if any(self._holds_marks(turn.content) for turn in turns):
                    continue  # a turn of another role, for example
                if any(self._normal(self._render(turns, generation)) == text for generation in (True, False)):
                    return turns
        return None

    def _split(self, text: str, role: str, longest: bool) -> Turns:
        """The turns of a text after its first opener, up to the last one, which may be the assistant's opener."""
        marks, turns = self._separators, []
        assert marks is not None
        after = {"system": (marks.after_system,), "user": marks.after_user, "assistant": (marks.after_assistant,)}
        while text:
            places = [(text.find(mark), len(mark)) for mark in after[role] if mark in text]
            places += [
                (len(text) - len(mark.rstrip()), len(mark)) for mark in after[role] if text.endswith(mark.rstrip())
            ]
            end = marks.end if role == "assistant" else marks.user_end
            at, length = min(
                places,
                key=lambda place: (place[0], -place[1] if longest else place[1]),
                default=(len(text.removesuffix(end.rstrip())), len(text)),
            )
            turns.append(Message(role, text[:at]))
            text = text[at + length :]
            role = "assistant" if role == "user" else "user"
        return tuple(turns)

    def _render(self, turns: Turns, generation: bool) -> str:
        """The rendered turns; empty if the template refuses them."""
        try:
            return self._encoder.template.render(messages(turns), add_generation_prompt=generation)
        except RmkitError:
            return ""

    def _normal(self, text: str) -> str:
        """A rendered text without the whitespace at its ends and the BOS."""
        return text.strip().removeprefix(self._bos).lstrip()

    @cached_property
    def _bos(self) -> str:
        """The BOS, unless every turn opens with it."""
        bos = str(self._encoder.tokenizer.bos_token or "")
        both = self._render((Message("user", _USER), Message("assistant", _ASSISTANT), Message("user", _LAST)), True)
        return "" if bos and bos in both.partition(_USER)[2] else bos

    @cached_property
    def _separators(self) -> _Separators | None:
        """What the template writes around turns; None if it does not show them, or writes nothing between them."""
        turns = (Message("user", _USER), Message("assistant", _ASSISTANT), Message("user", _LAST))
        shown = [
            _around(self._render(turns, True), _USER, _ASSISTANT, _LAST),
            _around(self._render(turns[:2], False), _USER, _ASSISTANT),
            _around(self._render(turns[:1], False), _USER),
        ]
        if not all(shown):
            return None
        (start, answer, next_user, generation), (_, last_answer, end), (_, user_end) = shown
        if not (answer.strip() and next_user.strip() and generation.strip() and start.strip()):
            return None
        with_system = _around(self._render((Message("system", _SYSTEM), turns[0]), True), _SYSTEM, _USER)
        system_start, after_system = with_system[:2] if with_system and with_system[1].strip() else ("", "")
        return _Separators(
            self._normal(start) + start[len(start.rstrip()) :],
            self._normal(system_start) + system_start[len(system_start.rstrip()) :],
            after_system,
            tuple(dict.fromkeys(each for each in (answer, last_answer, generation) if each.strip())),
            next_user,
            user_end,
            end,
            generation.removeprefix(user_end),
            last_answer.removeprefix(generation) if last_answer.startswith(generation) else "",
            next_user.removeprefix(end),
        )

    def _holds_marks(self, content: str) -> bool:
        """Whether the content of a turn that was read holds what opens or ends turns, so that it may be several."""
        marks = self._separators
        assert marks is not None
        return any(token in content for token in marks.tokens(self._encoder.control_spellings))

    @cached_property
    def _marks(self) -> TurnMarks | None:
        """The openers that hold a control token, as prose may begin with any other."""
        marks = self._separators
        if marks is None:
            return None
        spellings = [token for token in self._encoder.control_spellings if token != self._bos]
        openers = [each.strip() for each in (marks.start, marks.system_start, marks.assistant, marks.user)]
        ends = [each.strip() for each in (marks.end, marks.user_end)]
        return literal_marks(
            [each for each in openers if any(map(each.__contains__, spellings))], [each for each in ends if each]
        )


@dataclass(frozen=True)
class _Separators:
    """What a template writes before the first turn (a user's, the system's), between turns, and after the last one.

    Attributes:
        assistant, user: the openers of later turns.
        inserted: what it writes between the generation prompt and a response, such as an empty thinking block.
    """

    start: str
    system_start: str
    after_system: str
    after_user: tuple[str, ...]
    after_assistant: str
    user_end: str
    end: str
    assistant: str
    inserted: str
    user: str

    def tokens(self, spellings: Sequence[str]) -> set[str]:
        """What opens and ends turns: the first control token of each, or all of it where it has none."""
        edges = (self.start, self.system_start, self.user, self.assistant, self.end, self.user_end)
        firsts = (
            min((token for token in spellings if token in edge), key=edge.find, default=edge.strip()) for edge in edges
        )
        return {each for each in firsts if each}


def _around(text: str, *probes: str) -> list[str]:
    """The texts before, between and after probes; empty if one is missing."""
    pieces = []
    for probe in probes:
        before, found, text = text.partition(probe)
        if not found:
            return []
        pieces.append(before)
    return [*pieces, text]
