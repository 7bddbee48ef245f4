"""Encode texts to token ids, with the same code in training, evaluation and use, for every reward model type.

The chat template renders a conversation to text. The response is everything after the prompt's text, including its
end-of-turn token and the template's fixed suffix. Prompt and response are tokenized separately, without adding special
tokens, as in the paper's released code, so the prompt's ids never depend on the response. A tokenizer that puts a space
in front of every text puts none in front of a response. `special_tokens` decides what
happens to texts that spell control tokens; see `rmkit.encoding.control_tokens`.

A response of several turns is tokenized in parts as well: the prompt, an assistant's turn, what the template writes up
to the next one, and so on. Each assistant's turn counts as a response of one turn does; what stands between does not.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rmkit.config.recipe import VERIFICATION_PROMPT, SpecialTokens
from rmkit.data.conversations import (
    AnyTexts,
    Conversation,
    Message,
    Prompt,
    Response,
    Turns,
    as_conversation,
    as_text,
    contents,
    prompt_turns,
    with_contents,
)
from rmkit.encoding.chat_template import PROMPT_PROBE, RESPONSE_PROBE, ChatTemplate, abbreviate, special_ids
from rmkit.encoding.control_tokens import ControlTokens, Render
from rmkit.errors import RmkitError

_MAX_STRUCTURES = 1000  # of conversations; with tools, every row may have its own
_ANSWER_PROBES = [("x", "y"), ("Is 2 + 2 = 4?", "4."), ("a\n", " b "), ("x", ":")]

Job = tuple[Render, tuple[str, ...], list[int]]
"""A rendering to encode: contents of messages -> text; the contents; the control tokens that the template writes."""


@dataclass(frozen=True)
class TokenSequence:
    """The token ids of one text that a reward model reads; the response starts at `response_start` and may be empty.

    Attributes:
        ids: all token ids.
        response_start: the number of tokens before the response.
        gaps: the spans (start, end) of the response that do not count: turns of others than the assistant, and what the
            template writes between turns.
        prompt_spells, response_spells: whether the prompt, and the text after it, spell control tokens.
    """

    ids: list[int]
    response_start: int
    prompt_spells: bool = field(default=False, compare=False)
    response_spells: bool = field(default=False, compare=False)
    gaps: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __hash__(self) -> int:  # ids are never modified
        return hash((self.response_start, self.gaps, *self.ids))

    @property
    def response_positions(self) -> NDArray[np.int64]:
        """The positions of the response's tokens that count [response tokens]."""
        ends = [self.response_start, *itertools.chain(*self.gaps), len(self.ids)]
        spans = [np.arange(start, end) for start, end in zip(ends[::2], ends[1::2], strict=True)]
        return np.concatenate(spans) if self.gaps else spans[0]

    @property
    def response_length(self) -> int:
        """The number of the response's tokens that count."""
        return len(self.ids) - self.response_start - sum(end - start for start, end in self.gaps)

    @property
    def response_ends(self) -> list[int]:
        """End of each prefix of the response, from its first token to the whole response [response tokens]."""
        ends: list[int] = (self.response_positions + 1).tolist()
        return ends

    def prefix(self, end: int) -> TokenSequence:
        """The first `end` tokens."""
        return TokenSequence(self.ids[:end], self.response_start, gaps=tuple(gap for gap in self.gaps if gap[1] < end))


class ChatEncoder:
    """Encodes prompts with responses, and verification prompts, through one tokenizer's chat template.

    Attributes:
        tokenizer: prepared by `rmkit.encoding.tokenizer.load_tokenizer`.
        template: its chat template.
        date_string: the date for templates that print one; `DEFAULT_DATE` if the template prints today's and none is
            given.
        special_tokens: how to read control tokens that a text spells: `text` reads them as text, `keep` as the tokens
            (like the paper's code), `error` refuses the text.
        suffix_ids: the ids at the end of every turn of the assistant in a response: its end-of-turn token and what the
            template adds after it.
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
        self.special_tokens = special_tokens
        self.template = template = ChatTemplate(tokenizer, date_string)
        self.date_string, self.name, self.notes = template.date_string, template.name, template.notes
        self.folds_system = template.folds_system
        before = template.opened(PROMPT_PROBE)
        after = template.continued(before, PROMPT_PROBE, RESPONSE_PROBE)
        before_ids, after_ids, ids, system_ids = self._ids([before, after, template.suffix, template.with_system()])
        self._refuse_double_bos(before_ids, after_ids)
        self._control_tokens = ControlTokens(tokenizer, [*before_ids, *after_ids, *system_ids])
        self._prompt_controls = self._control_tokens.written(before, before_ids)
        self._response_controls = self._control_tokens.written(after, after_ids)
        self._lead = self._lead_of(before.rpartition(PROMPT_PROBE)[2], after)
        self._opening = before.partition(PROMPT_PROBE)[0].strip()
        special = [number for number, token in enumerate(ids) if token in special_ids(tokenizer)]
        # Anything before the end-of-turn token, such as a space, may merge with the response's last token.
        self.suffix_ids: list[int] = ids[special[0] :]
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id in self.suffix_ids:
            raise RmkitError(
                f"The pad token of {self.name} ({tokenizer.pad_token}) also ends responses.",
                "Load the tokenizer with rmkit.encoding.tokenizer.load_tokenizer, which chooses another.",
            )
        self._controls_of: dict[tuple[Prompt, Response], list[list[int]]] = {}
        self.response_sequences(["x"], ["y"])

    @property
    def plain_template(self) -> bool:
        """Whether a plain response is what the tokenizer's template writes after the generation prompt, at any time.

        And whether its ids are those of its text alone, which they are not where `_lead` stands in front of it.
        """
        return self.template.plain and not self._lead

    @property
    def template_hash(self) -> str:
        """sha256 over the chat template and the pinned date."""
        return hashlib.sha256(f"{self.tokenizer.chat_template}\0{self.date_string}".encode()).hexdigest()

    def response_sequences(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[TokenSequence]:
        """Encode prompts, texts or conversations, followed by their responses with end-of-turn token and suffix.

        Raises:
            RmkitError: if a response lacks its end-of-turn token, the template does not write what a conversation
                holds, or a text spells a control token and `special_tokens` is `error`.
        """
        places = [self._place(*texts) for texts in zip(prompts, responses, strict=True)]
        found: dict[int, TokenSequence] = {}
        for place in dict.fromkeys(places):
            rows = [row for row, its in enumerate(places) if its == place]
            made = self._sequences([prompts[row] for row in rows], [responses[row] for row in rows], place)
            found |= zip(rows, made, strict=True)
        return [found[row] for row in range(len(places))]

    def _place(self, prompt: Prompt, response: Response) -> int | None:
        """Which of the template's `openings` a response of one turn starts after; None for other responses."""
        if not isinstance(response, str):
            return None
        if self.template.one_place and not (isinstance(prompt, Conversation) and (prompt.tools or prompt.options)):
            return self.template.place
        return self.template.place_of(prompt, response)

    def _sequences(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], place: int | None
    ) -> list[TokenSequence]:
        """The sequences of responses that start at the same place."""
        if place is not None:
            return self._text_sequences(prompts, [str(response) for response in responses], place)
        return self._turn_sequences(prompts, [response for response in responses if isinstance(response, tuple)])

    def _text_sequences(self, prompts: Sequence[Prompt], responses: Sequence[str], place: int) -> list[TokenSequence]:
        """The sequences of responses of one turn that start at the same place."""

        @cache  # a prompt has several responses
        def opened(prompt: Prompt) -> str:
            return self.template.opened(prompt, place)

        def opener(prompt: Prompt) -> Job:
            render = lambda *texts: opened(with_contents(prompt, texts))  # noqa: E731
            return render, contents(prompt), self._controls(prompt)[0]

        def continuer(prompt: Prompt, response: str) -> Job:
            def render(*texts: str) -> str:
                masked = with_contents(prompt, texts[:-1])
                return self.template.continued(opened(masked), masked, texts[-1])

            return render, (*contents(prompt), response), self._controls(prompt)[1]

        distinct = list(dict.fromkeys(prompts))
        before = dict(zip(distinct, self._encoded(map(opener, distinct)), strict=True))
        both = [continuer(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        sequences = []
        for number, (after, response_spells) in enumerate(self._encoded_after_prompts(both)):
            ids, prompt_spells = before[prompts[number]]
            self._refuse_without_end(responses[number], after)
            sequences.append(TokenSequence(ids + after, len(ids), prompt_spells, response_spells))
        return sequences

    def _turn_sequences(self, prompts: Sequence[Prompt], responses: Sequence[Turns]) -> list[TokenSequence]:
        """The sequences of responses of any turns, from the parts that `ChatTemplate.parts` returns."""
        parts = cache(lambda prompt, response: self.template.parts(prompt, response))

        def part(prompt: Prompt, response: Turns, number: int) -> Render:
            size = len(contents(prompt))

            def render(*texts: str) -> str:
                masked = with_contents(prompt, texts[:size]), with_contents(response, texts[size:])
                return parts(*masked)[number]

            return render

        controls = [self._controls(*texts) for texts in zip(prompts, responses, strict=True)]
        jobs = [
            (number, (part(prompt, response, number), (*contents(prompt), *contents(response)), expected))
            for prompt, response, each in zip(prompts, responses, controls, strict=True)
            for number, expected in enumerate(each)
        ]
        others, turns = ([job for number, job in jobs if number % 2 == odd] for odd in (0, 1))
        encoded = iter(self._encoded(others)), iter(self._encoded_after_prompts(turns))
        sequences = []
        for response, each in zip(responses, controls, strict=True):
            pieces = [next(encoded[number % 2]) for number in range(len(each))]
            if not all(self.end_id in ids for ids, _ in pieces[1::2]):
                raise self._no_end(as_text(response))
            self._refuse_without_end(as_text(response), pieces[-1][0])
            ends = np.cumsum([len(ids) for ids, _ in pieces]).tolist()
            sequences.append(
                TokenSequence(
                    list(itertools.chain.from_iterable(ids for ids, _ in pieces)),
                    ends[0],
                    pieces[0][1],
                    any(spells for _, spells in pieces[1:]),
                    tuple(zip(ends[1:-1:2], ends[2:-1:2], strict=True)),
                )
            )
        return sequences

    def _refuse_without_end(self, response: str, ids: list[int]) -> None:
        if ids[-len(self.suffix_ids) :] != self.suffix_ids:
            raise self._no_end(response)

    def _no_end(self, response: str) -> RmkitError:
        return RmkitError(
            f"The response {abbreviate(response)} lacks the end-of-turn token of the template.",
            "The template treats some responses differently: set another base.chat_template.",
        )

    def verification_sequences(
        self, prompts: Sequence[Prompt], responses: Sequence[Response], verification_prompt: str = VERIFICATION_PROMPT
    ) -> list[TokenSequence]:
        """I[x, y] of Appendix A: a user turn that asks whether a response is good, up to the start of the answer.

        A conversation stands in it as a text, with its tools, see `rmkit.data.conversations.as_text`; the template gets
        the options of its prompt here as well.
        """
        encoded = self._encoded(
            self._verification_job(_filled(verification_prompt, as_text(prompt), as_text(response)), prompt)
            for prompt, response in zip(prompts, responses, strict=True)
        )
        return [TokenSequence(ids, len(ids), response_spells=spells) for ids, spells in encoded]

    def _verification_job(self, text: str, prompt: Prompt) -> Job:
        options = as_conversation(prompt).options
        if not options:
            return self._render_user_turn, (text,), self._prompt_controls
        asked = Conversation((Message("user", text),), options=options)
        place = self.template.place_of(asked, RESPONSE_PROBE)
        render = lambda text: self.template.opening_at(with_contents(asked, [text]), place)  # noqa: E731
        return render, (text,), self._controls(asked)[0]

    def answer_token(self, word: str, verification_prompt: str = VERIFICATION_PROMPT, prompt: Prompt = "x") -> int:
        """The token for `word` as the answer to a verification prompt, with the template options of `prompt`.

        Prompt and word are tokenized together, as in text that models are trained on. If that merges the word with the
        prompt's last token, the result is the token that continues the prompt's ids to the same text.

        Raises:
            RmkitError: if the word takes several tokens there, is unknown, or its token depends on the pair.
        """
        jobs = [self._verification_job(_filled(verification_prompt, *probe), prompt) for probe in _ANSWER_PROBES]
        found = [self._next_token(render(*content), word) for render, content, _ in jobs]
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
    def control_spellings(self) -> tuple[str, ...]:
        """The texts of the control tokens."""
        return self._control_tokens.spellings

    @property
    def end_id(self) -> int:
        """The end-of-turn token, which a model generates at the end of a response."""
        return next(token for token in self.suffix_ids if token in special_ids(self.tokenizer))

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

    def _controls(self, prompt: Prompt, response: Response = "") -> list[list[int]]:
        """The control tokens that the template writes in each part of prompt and response, by roles and fields."""
        if isinstance(prompt, str) and isinstance(response, str):
            return [self._prompt_controls, self._response_controls]
        plain, answers = _with_probes(prompt, PROMPT_PROBE), _with_probes(response or "x", RESPONSE_PROBE)
        if (plain, answers) not in self._controls_of:
            if len(self._controls_of) == _MAX_STRUCTURES:
                self._controls_of.clear()
            if self.folds_system and prompt_turns(prompt)[0].role == "system":
                warnings.warn(
                    f"The chat template of {self.name} has no system turn: a system message becomes the "
                    "beginning of the first user message.",
                    stacklevel=2,
                )
            self._refuse_spelled(as_conversation(plain), answers)
            self.template.check_read(as_conversation(plain), answers)
            if isinstance(answers, str):
                place = self._place(plain, answers)
                before = self.template.opened(plain, place)
                texts = [before, self.template.continued(before, plain, answers)]
            else:
                texts = self.template.parts(plain, answers)
            written = [self._control_tokens.written(*each) for each in zip(texts, self._ids(texts), strict=True)]
            self._controls_of[plain, answers] = written
        return self._controls_of[plain, answers]

    def _refuse_spelled(self, prompt: Conversation, response: Response) -> None:
        """Refuse control tokens in tools, options and fields, which cannot be told from those of the template."""
        turns = prompt.turns + (() if isinstance(response, str) else response)
        text = " ".join([prompt.tools, prompt.options, *(turn.fields for turn in turns)])
        spelled = next((token for token in self._control_tokens.spellings if token in text), None)
        if spelled is not None and self.special_tokens != "keep":
            raise RmkitError(
                f"The tools or tool calls of a conversation spell a control token of {self.name} ({spelled}).",
                "Set data.special_tokens (or --special-tokens) to keep, or remove such rows.",
            )

    def _render_user_turn(self, content: str) -> str:
        return self.template.opening_at(content, self.template.place)

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
            f"The text {abbreviate(culprit)} spells a control token of {self.name} ({spelled})"
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

    def _refuse_double_bos(self, before_ids: list[int], after_ids: list[int]) -> None:
        """Two BOS tokens at the start are one too many, unless the template also opens later turns with one."""
        bos = self.tokenizer.bos_token_id
        if bos is not None and before_ids[:2] == [bos, bos] and bos not in [*before_ids[2:], *after_ids]:
            raise RmkitError(
                f"The chat template of {self.name} starts with two BOS tokens ({self.tokenizer.bos_token}).",
                "Set a base.chat_template with one BOS.",
            )


def _filled(verification_prompt: str, prompt: str, response: str) -> str:
    # Not str.format: prompts and responses may contain braces.
    fields = {"{prompt}": prompt, "{response}": response}
    return re.sub(r"\{prompt\}|\{response\}", lambda match: fields[match[0]], verification_prompt)


def _with_probes(value: AnyTexts, probe: str) -> AnyTexts:
    """The same with other texts; a message that only calls tools stays without one."""
    return with_contents(value, [text and f"{probe}-{number}" for number, text in enumerate(contents(value))])


def _render_or_error(render: Render, contents: tuple[str, ...]) -> str | RmkitError:
    try:
        return render(*contents)
    except RmkitError as error:
        return error
