"""The formats of preference pairs that people have, recognised by their columns, as prompt, chosen and rejected.

- text in all three columns ("standard"), or lists of messages ("conversational"); TRL documents both, with a prompt
  column or without one, when both responses begin with the prompt;
- a text as prompt and lists of messages that repeat it (ultrafeedback_binarized), or messages as prompt and texts;
- transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ...", hh-rlhf), whose last turn is the response;
- `system`, `history`, and the prompt under another name (`question` in orca_dpo_pairs) or as `instruction`, `input`;
- messages of ShareGPT and OpenAI, see `rmkit.data.sharegpt`; several responses per row, see `rmkit.data.ranked`.

A prompt that is not in a column of its own is the longest common beginning of both responses: whole messages, whole
turns of a transcript, whole words of a text.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rmkit.config.recipe import Templated
from rmkit.data.conversations import (
    TEMPLATE_FIELDS,
    Conversation,
    Message,
    Prompt,
    Turns,
    parse_messages,
    parse_prompt,
    parse_response,
    prompt_turns,
)
from rmkit.data.sharegpt import holds_messages, plain_messages
from rmkit.data.templated import KNOWN_MARKS, already_applied
from rmkit.errors import RmkitError

FIELDS = ("prompt", "chosen", "rejected", "system", "history", *TEMPLATE_FIELDS, "margin")
Columns = Mapping[str, str | Sequence[str]]
"""Field of `FIELDS` -> column. `margin` may also be two columns of scores, whose difference it is, and `prompt` two of
texts, which are joined by a line break. The fields of `rmkit.data.ranked_columns.FIELDS` are read there."""

EMPTY_TURNS, OUT_OF_ORDER = LEFT_OUT = ("empty turns", "turns out of order")
_PROMPTS = ("question", "instruction", "input", "messages", "conversations", "conversation")
_INSTRUCTION = ("instruction", "input")
_RESPONSES = (("chosen_response", "rejected_response"), ("preferred_output", "non_preferred_output"))
_SCORES = [
    pair
    for name in ("score", "rating")
    for pair in ((f"chosen_{name}", f"rejected_{name}"), (f"{name}_chosen", f"{name}_rejected"))
]
_MEANINGFUL = (*_PROMPTS, "system", "history", "context", "documents", *TEMPLATE_FIELDS)
_BESIDES = ("system", "history", *TEMPLATE_FIELDS)
_IMAGES = ("image", "images")
_KNOWN = (
    "prompt, chosen and rejected as text or messages, chosen and rejected that begin with the prompt, or prompt and "
    "responses with scores, ranks or a winner"
)
_MAP = "map other names in the set, for example columns: {prompt: question} (rmkit score: --column prompt=question)"
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](?:role|content|from|value)["']\s*:""")
"""A list of messages as JSON or Python prints it."""


def find_columns(names: Sequence[str], given: Columns, path: str) -> dict[str, tuple[str, ...]]:
    """The columns of a source by field; all but `margin` have one.

    Args:
        names: all columns of the source.
        given: the columns of fields that have other names.

    Raises:
        RmkitError: if a column is missing, several could hold the prompt, or there are images.
    """
    found = {field: (column,) if isinstance(column, str) else tuple(column) for field, column in given.items()}
    listed = ", ".join(names) or "none"
    for field, columns in found.items():
        if field not in FIELDS or not 1 <= len(columns) <= (2 if field in ("margin", "prompt") else 1):
            raise RmkitError(
                f"columns has {field}: {given[field]}, which is not a field with its column.",
                f"Map {', '.join(FIELDS)} to a column (prompt and margin also to a list of two), or responses with "
                "scores, ranks or winner.",
            )
        for column in columns:
            if column not in names:
                raise RmkitError(f"{path} has no column {column}; it has {listed}.", "Name one of these in columns.")
    taken = {column for columns in found.values() for column in columns}
    free = [name for name in names if name not in taken]
    found |= {field: (field,) for field in FIELDS if field not in found and field in free}
    for columns in _RESPONSES:
        if not {"chosen", "rejected"} & found.keys() and {*columns} <= {*free}:
            found |= {"chosen": columns[:1], "rejected": columns[1:]}
    if "prompt" not in found:
        prompts = [name for name in _PROMPTS if name in free]
        if (*prompts,) == _INSTRUCTION:
            found["prompt"] = _INSTRUCTION
        elif len(prompts) > 1:
            raise RmkitError(
                f"{path} has no column prompt, and several that may hold it: {', '.join(prompts)}.",
                f"Choose one with columns: {{prompt: {prompts[0]}}} in the set "
                f"(rmkit score: --column prompt={prompts[0]}).",
            )
        elif prompts:
            found["prompt"] = (prompts[0],)
    for field in ("chosen", "rejected"):
        if field not in found:
            raise RmkitError(f"{path} has no column {field}; it has {listed}.", f"Give {_KNOWN}; {_MAP}.")
    images = [name for name in _IMAGES if name in free]
    if images:
        raise RmkitError(
            f"{path} has the column {images[0]}; rmkit reads text only.",
            "Use pairs without images, or drop the column.",
        )
    return found


@dataclass(frozen=True)
class PairFormat:
    """How the rows of a source become prompt, chosen and rejected.

    Attributes:
        path: the source, for errors.
        columns: as `find_columns` returns them.
        kind: what the columns chosen and rejected hold.
        unused: columns that may change what is meant, and are not read.
        scores: two columns whose difference could be the margin, and is not.
        transcript_prompts: whether the prompts look like transcripts; they are read as texts.
        json_messages: the columns of texts that look like messages in JSON; they are read as texts.
        csv: whether numbers are written as texts.
        templated: what is done with texts to which a chat template was already applied.
    """

    path: str
    columns: Mapping[str, tuple[str, ...]]
    kind: str = "standard"
    unused: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    transcript_prompts: bool = False
    json_messages: tuple[str, ...] = ()
    csv: bool = False
    templated: Templated = "error"

    @property
    def needed(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys(column for columns in self.columns.values() for column in columns))

    @property
    def description(self) -> str | None:
        """What was recognised, for one line; None for texts in the columns prompt, chosen and rejected."""
        parts = [self.kind]
        if "prompt" not in self.columns:
            parts.append("prompt extracted")
        parts += [
            f"{field} from {(' - ' if field == 'margin' else ' + ').join(columns)}"
            for field, columns in self.columns.items()
            if columns != (field,)
        ]
        parts += [f"with {field}" for field in _BESIDES if self.columns.get(field) == (field,)]
        if self.transcript_prompts:
            parts.append("prompts that look like transcripts are read as one user turn")
        if self.json_messages:
            parts.append(
                f"lists of messages that are written as text are read as text: {', '.join(self.json_messages)}"
            )
        if self.scores:
            parts.append(f"available as margin: [{', '.join(self.scores)}]")
        if self.unused:
            parts.append(f"not used: {', '.join(self.unused)}")
        return None if parts == ["standard"] else ", ".join(parts)

    def convert(self, index: int, row: Mapping[str, Any]) -> dict[str, Any] | str:
        """prompt, chosen, rejected and margin of a row; or why it is left out, one of `LEFT_OUT`.

        Values of columns that hold something else are returned as they are, for `rmkit.data.preferences.parse_row`.

        Raises:
            RmkitError: naming the row, if it is not of this format or a conversation is not well-formed.
        """
        values = {field: row[columns[0]] for field, columns in self.columns.items()}
        if isinstance(values.get("prompt"), Mapping) and "messages" in values["prompt"]:
            values["tools"] = self._tools_of(index, values["prompt"]) or values.get("tools")
        values = {field: plain_messages(value) for field, value in values.items()}
        if len(self.columns.get("prompt", ())) == 2:
            values["prompt"] = self._joined(index, [row[column] for column in self.columns["prompt"]])
        if "margin" in values:
            values["margin"] = self._margin(index, [row[column] for column in self.columns["margin"]])
        found = self._with_prompt(index, values)
        if isinstance(found, str):
            return found
        before = self._before(index, values)
        options = {field: values.get(field) for field in TEMPLATE_FIELDS}
        prompt = found["prompt"]
        if (before or any(options.values())) and isinstance(prompt, str | Sequence | Conversation):
            turns = prompt_turns(prompt) if isinstance(prompt, str | Conversation) else tuple(prompt)
            found["prompt"] = parse_prompt((*before, *turns), self._where(index, "the prompt"), **options)
        return found

    def _where(self, index: int, column: str) -> str:
        return f"{self.path}: row {index}, {column}"

    def _with_prompt(self, index: int, values: dict[str, Any]) -> dict[str, Any] | str:
        """The row with the prompt taken out of the responses if it stands there."""
        found = {field: value for field, value in values.items() if field not in _BESIDES}
        if self.kind in ("standard", "conversational prompt"):
            return found if "prompt" in found else found | self._split_texts(index, found)
        if self.kind == "conversational":
            both = [self._messages(index, field, values[field]) for field in ("chosen", "rejected")]
        else:
            turns = [self._turns(index, field, values[field]) for field in ("chosen", "rejected")]
            if not all(content for each in turns for _, content in each):
                return EMPTY_TURNS
            both = [tuple(Message(_ROLES[name], content) for name, content in each) for each in turns]
        given = parse_prompt(values["prompt"], self._where(index, "the prompt")) if "prompt" in values else None
        beginning, *responses = split_conversations(both[0], both[1], given)
        if given is None and not beginning:
            raise RmkitError(
                f"{self.path} has no column prompt, and in row {index} chosen and rejected do not begin alike.",
                f"Give {_KNOWN}.",
            )
        for field, response in zip(("chosen", "rejected"), responses, strict=True):
            try:
                found[field] = parse_response(response, self._where(index, field))
            except RmkitError:
                if self.kind == "transcripts":  # its turns may be no turns, but texts that look like them
                    return OUT_OF_ORDER
                raise
        if not beginning:
            return found
        if given is not None:
            self._check_repeated(index, given, beginning)
        return found | {"prompt": parse_prompt(beginning, self._where(index, "the prompt"))}

    def _tools_of(self, index: int, prompt: Mapping[str, Any]) -> Any:
        """The tools in a prompt of OpenAI's layout, which is an object with messages and settings of its API."""
        column = f"column {self.columns['prompt'][0]}"
        for key, value in prompt.items():
            if key not in ("messages", "tools", "parallel_tool_calls") and value is not None:
                raise RmkitError(
                    f"{self._where(index, column)} has the key {key}, which rmkit does not read.",
                    "Give messages and tools; put arguments of the chat template into a column chat_template_kwargs.",
                )
        return prompt.get("tools")

    def _joined(self, index: int, texts: Sequence[Any]) -> str:
        """The text of a prompt in two columns, the second of which may be empty."""
        for column, text in zip(self.columns["prompt"], texts, strict=True):
            if not isinstance(text, str | None):
                raise RmkitError(
                    f"{self._where(index, f'column {column}')} holds {type(text).__name__}, not text.",
                    f"Give text, or one column: columns: {{prompt: {column}}}.",
                )
        return "\n".join(text for text in texts if text)

    def _check_repeated(self, index: int, prompt: Prompt, beginning: Turns) -> None:
        """Refuse responses that begin with another prompt than that of the prompt's column."""
        users = [message.content for message in beginning if message.role == "user"]
        if prompt_turns(prompt) != beginning and not (prompt in users[:1] or prompt in users[-1:]):
            raise RmkitError(
                f"{self.path}: row {index}: chosen and rejected begin with another conversation than its prompt.",
                "Correct the row, or remove the column prompt to use what the responses begin with.",
            )

    def _split_texts(self, index: int, values: Mapping[str, Any]) -> dict[str, str]:
        """The common beginning of two texts, up to a space, and what follows it in both."""
        chosen, rejected = values["chosen"], values["rejected"]
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            return {"prompt": "-"}  # parse_row names the column
        if is_transcript(chosen) and is_transcript(rejected):
            raise RmkitError(
                f"{self._where(index, 'column chosen')} is a transcript, unlike the first row.",
                "Give rows of one format only.",
            )
        templated = self.templated != "text" and KNOWN_MARKS.spelled_in(chosen)
        if templated and self.templated == "error":
            raise already_applied(self._where(index, "column chosen"))
        if templated:  # `rmkit.encoding.templated` finds the prompt
            differ = (at for at, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
            return {"prompt": chosen[: next(differ, None)]}
        pieces = [re.findall(r"\S+\s*", text) for text in (chosen, rejected)]
        common = 0
        while common < min(map(len, pieces)) - 1 and pieces[0][common] == pieces[1][common]:
            common += 1
        if not common:
            raise RmkitError(
                f"{self.path} has no column prompt, and in row {index} chosen and rejected do not begin alike.",
                f"Give {_KNOWN}; {_MAP}.",
            )
        first, second = ("".join(words[common:]) for words in pieces)
        return {"prompt": "".join(pieces[0][:common]).rstrip(), "chosen": first, "rejected": second}

    def _messages(self, index: int, field: str, value: Any) -> Turns:
        where = self._where(index, f"column {self.columns[field][0]}")
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise RmkitError(f"{where} holds {type(value).__name__}, not messages.", "Give messages in every row.")
        return parse_messages(value, where)

    def _turns(self, index: int, field: str, value: Any) -> list[tuple[str, str]]:
        """The turns of a transcript as (Human or Assistant, text); a text may be empty."""
        where = self._where(index, f"column {self.columns[field][0]}")
        turns = is_transcript(value) and _TURN.split(value)[1:]
        if not turns:
            raise RmkitError(f"{where} is not a transcript, unlike the first row.", "Give rows of one format only.")
        return [(name, text.strip()) for name, text in zip(turns[::2], turns[1::2], strict=True)]

    def _before(self, index: int, values: Mapping[str, Any]) -> Turns:
        """The turns of the columns system and history."""
        system, history = values.get("system"), values.get("history")
        turns: list[Any] = []
        if system is not None and not isinstance(system, str):
            raise RmkitError(
                f"{self._where(index, 'system')} holds {type(system).__name__}, not text.",
                "Give text, or map the fields to other columns with columns.",
            )
        if system and system.strip():
            turns.append(Message("system", system))
        if not isinstance(history, list | tuple | None):
            raise RmkitError(
                f"{self._where(index, 'history')} holds {type(history).__name__}, not a list of turns.",
                "Give a list of messages, or of pairs of user and assistant, for example in a .jsonl file.",
            )
        for turn in history or []:
            if isinstance(turn, list) and len(turn) == 2:
                turns += [
                    {"role": role, "content": text} for role, text in zip(("user", "assistant"), turn, strict=True)
                ]
            else:
                turns.append(turn)
        return parse_messages(turns, self._where(index, "system and history")) if turns else ()

    def _margin(self, index: int, values: Sequence[Any]) -> Any:
        """The margin, or the difference of two scores."""
        if self.csv:
            with contextlib.suppress(ValueError):  # then refused as any text is
                values = [float(value) for value in values]
        if len(values) == 1:
            return values[0]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RmkitError(
                    f"{self._where(index, 'margin')} is from {' and '.join(self.columns['margin'])}, and {value!r} is "
                    "not a number.",
                    "Give every row two scores, or do not map margin.",
                )
        return values[0] - values[1]


def recognise(
    path: str, rows: Any, names: Sequence[str], given: Columns, csv: bool = False, templated: Templated = "error"
) -> PairFormat:
    """The format of a source, from its columns and their types, and for texts without a prompt from the first row.

    Args:
        rows: a `datasets.Dataset` with at least the columns that `find_columns` returns.
        names: all columns of the source.
    """
    columns = find_columns(names, given, path)
    taken = {column for each in columns.values() for column in each}
    unused = find_unused(names, taken)
    schema = rows.features.arrow_schema
    kind = "standard"
    if all(holds_messages(schema.field(columns[field][0]).type) for field in ("chosen", "rejected")):
        kind = "conversational"
    elif "prompt" in columns and holds_messages(schema.field(columns["prompt"][0]).type):
        kind = "conversational prompt"
    elif "prompt" not in columns and len(rows) and is_transcript(rows[0][columns["chosen"][0]]):
        kind = "transcripts"
    transcript_prompts = (
        kind == "standard" and "prompt" in columns and len(rows) > 0 and is_transcript(rows[0][columns["prompt"][0]])
    )
    scores = next((pair for pair in _SCORES if "margin" not in columns and {*pair} <= {*names}), ())
    texts = [columns[field][0] for field in ("prompt", "chosen", "rejected", "history") if field in columns]
    first = rows[0] if len(rows) else {}
    json_messages = tuple(name for name in texts if isinstance(first.get(name), str) and _MESSAGES.match(first[name]))
    return PairFormat(path, columns, kind, unused, scores, transcript_prompts, json_messages, csv, templated)


def find_unused(names: Sequence[str], read: Container[str]) -> tuple[str, ...]:
    """The columns that may change what is meant and are not read."""
    return tuple(name for name in _MEANINGFUL if name in names and name not in read)


def is_transcript(value: Any) -> bool:
    """Whether a text is a transcript of turns."""
    return isinstance(value, str) and _TURN.match(value) is not None


def split_conversations(first: Turns, second: Turns, prompt: Prompt | None = None) -> tuple[Turns, Turns, Turns]:
    """The prompt that two conversations begin with, and what follows it in each.

    The prompt is the given one where both begin with it. Otherwise it is their longest common beginning, in whole
    messages, that leaves something of both and does not end with a message of the assistant; it is empty where a prompt
    is given and they begin with the assistant, so that they are the responses to it.
    """
    start = () if prompt is None or isinstance(prompt, str) else prompt.turns
    common = len(start)
    if not start or not all(each[:common] == start != each for each in (first, second)):
        common = 0
        while common < min(len(first), len(second)) - 1 and first[common] == second[common]:
            common += 1
        if prompt is not None and first[0].role == "assistant":
            common = 0
        while common and first[common - 1].role in ("assistant", "system"):
            common -= 1
    return first[:common], first[common:], second[common:]
