"""Prompts and responses: plain texts, or conversations.

A plain text is the short form of a single turn and nothing else: the user's in a prompt, the assistant's in a response.
`parse_prompt` and `parse_response` give that form wherever it fits, so both ways of writing a text are the same text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar, cast

from rmkit.errors import RmkitError

ROLES = ("system", "user", "assistant", "tool")
TEMPLATE_FIELDS = ("tools", "chat_template_kwargs")
"""What a chat template gets besides the messages of a conversation."""
MESSAGE_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""What a message may hold besides role and content; chat templates get it as it is."""

WRITTEN_FIELDS = ("tool_calls", "reasoning_content", "thinking")
"""Those that a chat template must write; the others only say which call a result belongs to."""

# Arguments of transformers' `apply_chat_template` that rmkit sets.
_RESERVED = {
    *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "padding", "truncation", "max_length", "tokenizer_kwargs"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is one of `ROLES`, `fields` a JSON object of `MESSAGE_FIELDS` or empty."""

    role: str
    content: str
    fields: str = ""


Turns = tuple[Message, ...]


@dataclass(frozen=True)
class Conversation:
    """The turns of a prompt, up to the last message of the user or of a tool, and what its template gets besides.

    Attributes:
        tools: a JSON list of the tools that the model may call, or empty.
        options: a JSON object of further arguments of the chat template (`chat_template_kwargs`), or empty.
    """

    turns: Turns
    tools: str = ""
    options: str = ""

    @property
    def template_options(self) -> dict[str, Any]:
        """The keyword arguments of the chat template."""
        tools: dict[str, Any] = {"tools": json.loads(self.tools)} if self.tools else {}
        return tools | (json.loads(self.options) if self.options else {})


Prompt = str | Conversation
"""A text (a single user turn) or a conversation."""

Response = str | Turns
"""A text (a single assistant turn) or turns that start and end with the assistant's."""

AnyTexts = TypeVar("AnyTexts", bound=str | Conversation | Turns)


def as_conversation(prompt: Prompt) -> Conversation:
    """The long form of a prompt."""
    return Conversation((Message("user", prompt),)) if isinstance(prompt, str) else prompt


def prompt_turns(prompt: Prompt) -> Turns:
    """The turns of a prompt."""
    return as_conversation(prompt).turns


def response_turns(response: Response) -> Turns:
    """The turns of a response."""
    return (Message("assistant", response),) if isinstance(response, str) else response


def messages(turns: Turns | Prompt) -> list[dict[str, Any]]:
    """Turns, or those of a prompt, as chat templates take them."""
    given = turns if isinstance(turns, tuple) else prompt_turns(turns)
    return [
        {"role": each.role, "content": each.content, **(json.loads(each.fields) if each.fields else {})}
        for each in given
    ]


def contents(value: Prompt | Response) -> tuple[str, ...]:
    """The texts of the turns."""
    if isinstance(value, str):
        return (value,)
    return tuple(message.content for message in (value.turns if isinstance(value, Conversation) else value))


def with_contents(value: AnyTexts, texts: Sequence[str]) -> AnyTexts:
    """The same with other texts [turns]."""
    if isinstance(value, str):
        return cast(AnyTexts, texts[0])
    if isinstance(value, Conversation):
        return cast(AnyTexts, replace(value, turns=with_contents(value.turns, texts)))
    changed = tuple(replace(each, content=text) for each, text in zip(value, texts, strict=True))
    return cast(AnyTexts, changed)


def as_text(value: Prompt | Response) -> str:
    """A prompt or response as one text, for verification prompts, comparisons and pages.

    The short form is its text. Other conversations are their turns with names ("System: ...", "User: ...",
    "Assistant: ...", "Tool: ..."), with an empty line between turns. Tools stand before them ("Tools: [...]"), and tool
    calls, thoughts and names of a message on lines of their own after its text ("tool_calls: [...]").
    """
    if isinstance(value, str):
        return value
    turns, tools = (value.turns, value.tools) if isinstance(value, Conversation) else (value, "")
    paragraphs = [f"Tools: {tools}"] if tools else []
    for turn in turns:
        fields = json.loads(turn.fields or "{}").items()
        lines = [f"{key}: {each if isinstance(each, str) else _to_json(each)}" for key, each in fields]
        name = f"{turn.role.capitalize()}:"
        paragraphs.append("\n".join([f"{name} {turn.content}" if turn.content else name, *lines]))
    return "\n\n".join(paragraphs)


def as_json(value: Prompt | Response) -> Any:
    """A text as it is, turns as a list of messages; with tools or options, an object that `parse_prompt` reads."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple) or not (value.tools or value.options):
        return messages(value)
    fields = {"tools": value.tools, "chat_template_kwargs": value.options}
    return {"messages": messages(value), **{key: json.loads(text) for key, text in fields.items() if text}}


def assistant_texts(response: Response) -> list[str]:
    """The texts of the assistant's turns; a turn that only calls tools has none."""
    return [turn.content for turn in response_turns(response) if turn.role == "assistant" and turn.content]


def with_assistant_texts(response: Response, texts: Mapping[str, str]) -> Response:
    """The response with other texts, by text, in the assistant's turns; one that is missing becomes empty."""
    if isinstance(response, str):
        return texts.get(response, "")
    return tuple(
        replace(turn, content=texts.get(turn.content, "") if turn.role == "assistant" else turn.content)
        for turn in response
    )


def response_columns(columns: Mapping[str, Sequence[Response]]) -> dict[str, list[Any]]:
    """Columns of one type that hold responses [rows] by name: texts, or lists of messages if one has several turns."""
    if all(isinstance(response, str) for column in columns.values() for response in column):
        return {name: list(column) for name, column in columns.items()}
    return {name: _message_lists(map(response_turns, column)) for name, column in columns.items()}


def prompt_columns(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """Columns of one type each that hold prompts [rows], for a file.

    prompt holds texts, or lists of messages if there is a conversation; tools and chat_template_kwargs JSON texts, if
    there are some. Tool calls are JSON texts as well, because their arguments may have any type.
    """
    if all(isinstance(prompt, str) for prompt in prompts):
        return {"prompt": list(prompts)}
    conversations = list(map(as_conversation, prompts))
    columns = {"prompt": _message_lists(each.turns for each in conversations)}
    given = {
        "tools": [each.tools for each in conversations],
        "chat_template_kwargs": [each.options for each in conversations],
    }
    return columns | {name: texts for name, texts in given.items() if any(texts)}


def _message_lists(rows: Iterable[Turns]) -> list[list[dict[str, Any]]]:
    """Messages [rows, turns] with tool calls as JSON texts."""
    lists = [messages(turns) for turns in rows]
    for message in (message for each in lists for message in each if "tool_calls" in message):
        message["tool_calls"] = _to_json(message["tool_calls"])
    return lists


def parse_messages(value: Sequence[Any], where: str) -> Turns:
    """Messages in any order of roles; see `parse_prompt` and `parse_response` for the order.

    Args:
        value: mappings with the keys role and content, and possibly `MESSAGE_FIELDS`; other keys may be null.
        where: what holds them, for errors.

    Raises:
        RmkitError: if there is none, one has another role, another key, no text, or an image.
    """
    if not len(value):
        raise RmkitError(f"{where} is an empty conversation.", "Remove the row or fill it in.")
    return tuple(_parse_message(each, f"{where}, message {number}") for number, each in enumerate(value))


def _parse_message(value: Any, where: str) -> Message:
    if isinstance(value, Message):
        (value,) = messages((value,))
    if not isinstance(value, Mapping) or "role" not in value or not {"content", "tool_calls"} & value.keys():
        raise RmkitError(f"{where} is {str(value)[:40]!r}, not a message.", "Give messages with role and content.")
    others = {
        key: each for key, each in value.items() if key not in ("role", "content") and each not in (None, [], {}, "")
    }
    for key in others:
        if key not in MESSAGE_FIELDS:
            raise RmkitError(
                f"{where} has the key {key}, which rmkit does not read.",
                f"Give messages with role and content, and {', '.join(MESSAGE_FIELDS[:-1])} or {MESSAGE_FIELDS[-1]}.",
            )
    role, content = value["role"], value.get("content")
    if role not in ROLES:
        raise RmkitError(f"{where} has the role {role!r}.", f"Use {', '.join(ROLES[:-1])} and {ROLES[-1]}.")
    if "tool_calls" in others:
        if role != "assistant":
            raise RmkitError(f"{where} has tool_calls and the role {role}.", "Only the assistant calls tools.")
        others["tool_calls"] = json.loads(_parse_json(others["tool_calls"], list, f"{where}, tool_calls"))
    if isinstance(content, list):
        content = _join_parts(content, where)
    if content is None and others.get("tool_calls"):
        content = ""
    if not isinstance(content, str) or not (content.strip() or others.get("tool_calls")):
        raise RmkitError(f"{where} has no text.", "Remove the row or fill it in.")
    return Message(role, content, _parse_json(others, dict, where) if others else "")


def _join_parts(parts: Sequence[Any], where: str) -> str:
    """The text of a content that is a list of parts."""
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            name = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RmkitError(
                f"{where} has a part of type {name}; rmkit reads text only.", "Remove such rows, or their images."
            )
    return "".join(part["text"] for part in parts)


def _parse_json(value: Any, kind: type[list[Any]] | type[dict[str, Any]], where: str) -> str:
    """The JSON text of a list of objects or of an object, which may be given as such a text; empty if it is empty.

    Keys whose value is null are left out, as TRL does: `datasets` adds them to rows that do not have them.
    """
    try:
        found = json.loads(value or "null") if isinstance(value, str) else value
        if found is None:
            return ""
        if not isinstance(found, kind) or not all(isinstance(each, dict) for each in found if kind is list):
            raise TypeError
        return _to_json(_without_nulls(found)) if found else ""
    except (TypeError, ValueError):
        what = "a list of objects" if kind is list else "an object"
        raise RmkitError(f"{where} holds {str(value)[:40]!r}, not {what}.", f"Give {what}, or its JSON text.") from None


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def parse_prompt(value: Any, where: str, tools: Any = None, chat_template_kwargs: Any = None) -> Prompt:
    """A text, or messages that end with a message of the user or of a tool; a single user turn becomes its text.

    Args:
        value: a text, messages, a `Conversation`, or a mapping with messages, tools and chat_template_kwargs.
        where: what holds it, for errors.
        tools: the tools that the model may call: a list of JSON schemas, or its JSON text.
        chat_template_kwargs: further arguments of the chat template: a mapping, or its JSON text.

    Raises:
        RmkitError: naming `where`, if it is none of them, a text is empty, a system turn is not the first turn, or the
            last turn is another one.
    """
    if isinstance(value, Mapping) and "messages" in value and value.keys() <= {"messages", *TEMPLATE_FIELDS}:
        tools, chat_template_kwargs = (
            value.get("tools") or tools,
            value.get("chat_template_kwargs") or chat_template_kwargs,
        )
        value = value["messages"]
    if isinstance(value, Conversation):
        tools, chat_template_kwargs = tools or value.tools, chat_template_kwargs or value.options
        value = value.turns
    written = _parse_json(tools, list, f"{where}, tools")
    options = _parse_json(chat_template_kwargs, dict, f"{where}, chat_template_kwargs")
    reserved = [key for key in json.loads(options or "{}") if key in _RESERVED]
    if reserved:
        raise RmkitError(
            f"{where}, chat_template_kwargs has {reserved[0]}, which rmkit sets itself.", f"Remove {reserved[0]}."
        )
    if isinstance(value, str):
        if not value.strip():
            raise RmkitError(f"{where} is empty.", "Remove the row or fill it in.")
        return Conversation((Message("user", value),), written, options) if written or options else value
    if not isinstance(value, Sequence):
        raise RmkitError(f"{where} is {type(value).__name__}.", "Give a text, or a list of messages.")
    turns = parse_messages(value, where)
    if any(message.role == "system" for message in turns[1:]):
        raise RmkitError(f"{where} has a system message after the first message.", "Put one first, or none.")
    if turns[-1].role not in ("user", "tool"):
        raise RmkitError(
            f"{where} ends with a message of the role {turns[-1].role}.",
            "End a prompt with the user's message; what follows is the response.",
        )
    conversation = Conversation(turns, written, options)
    return turns[0].content if conversation == Conversation((Message("user", turns[0].content),)) else conversation


def parse_response(value: Any, where: str) -> Response:
    """A text, or messages that start and end with the assistant's; a single one without fields becomes its text.

    Raises:
        RmkitError: naming `where`, if it is neither, a text is empty, it starts or ends with another role, or has a
            system message or two messages of the assistant in a row.
    """
    if isinstance(value, str):
        if not value.strip():
            raise RmkitError(f"{where} is empty.", "Remove the row or fill it in.")
        return value
    if not isinstance(value, Sequence):
        raise RmkitError(f"{where} is {type(value).__name__}.", "Give a text, or a list of messages.")
    turns = parse_messages(value, where)
    for each in (turns[0], turns[-1], *(turn for turn in turns if turn.role == "system")):
        if each.role != "assistant":
            raise RmkitError(
                f"{where}: the response {'has' if len(turns) > 1 else 'is'} a message of the role {each.role}"
                f"{' at an end' if len(turns) > 1 and each.role != 'system' else ''}.",
                "End both conversations with the assistant's message.",
            )
    if any(first.role == second.role == "assistant" for first, second in pairwise(turns)):
        raise RmkitError(f"{where}: the response has two messages of the assistant in a row.", "Join them into one.")
    return turns[0].content if turns == (Message("assistant", turns[0].content),) else turns
