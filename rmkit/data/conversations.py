"""Prompts: a plain text, or a conversation that ends with a user turn.

A plain text is the short form of a conversation with one user turn and nothing else: `parse_messages` gives that form
wherever it fits, so both ways of writing such a prompt are the same prompt. A response is a text, the assistant's turn
that follows the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rmkit.errors import RmkitError

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is one of `ROLES`."""

    role: str
    content: str


Conversation = tuple[Message, ...]
Prompt = str | Conversation
"""A text (a single user turn) or the turns up to the last user turn."""


def messages(prompt: Prompt) -> list[dict[str, str]]:
    """The prompt as chat templates take it."""
    return [asdict(message) for message in ((Message("user", prompt),) if isinstance(prompt, str) else prompt)]


def contents(prompt: Prompt) -> tuple[str, ...]:
    """The texts of the prompt's turns."""
    return (prompt,) if isinstance(prompt, str) else tuple(message.content for message in prompt)


def with_contents(prompt: Prompt, texts: Sequence[str]) -> Prompt:
    """A prompt of the same roles with other texts [turns]."""
    if isinstance(prompt, str):
        return texts[0]
    return tuple(Message(message.role, text) for message, text in zip(prompt, texts, strict=True))


def as_text(prompt: Prompt) -> str:
    """The prompt as one text, for verification prompts, comparisons and pages.

    A single user turn is its text. Other conversations are their turns with names ("System: ...", "User: ...",
    "Assistant: ..."), with an empty line between turns.
    """
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in prompt)


def as_json(prompt: Prompt) -> str | list[dict[str, str]]:
    """A text as it is, a conversation as a list of messages."""
    return prompt if isinstance(prompt, str) else messages(prompt)


def json_column(prompts: Sequence[Prompt]) -> list[Any]:
    """Prompts [rows] for a column of one type: texts, or lists of messages if there is a conversation."""
    return list(prompts) if all(isinstance(prompt, str) for prompt in prompts) else [messages(each) for each in prompts]


def parse_messages(value: Sequence[Any], where: str) -> Conversation:
    """Messages in any order of roles; see `parse_prompt` for the order.

    Args:
        value: mappings with the keys role and content; other keys may be null.
        where: what holds them, for errors.

    Raises:
        RmkitError: if there is none, one has another role, another key, no text, or an image.
    """
    if not len(value):
        raise RmkitError(f"{where} is an empty conversation.", "Remove the row or fill it in.")
    return tuple(_parse_message(each, f"{where}, message {number}") for number, each in enumerate(value))


def _parse_message(value: Any, where: str) -> Message:
    if isinstance(value, Message):
        value = asdict(value)
    if not isinstance(value, Mapping) or not {"role", "content"} <= value.keys():
        raise RmkitError(f"{where} is {str(value)[:40]!r}, not a message.", "Give messages with role and content.")
    others = [key for key, each in value.items() if key not in ("role", "content") and each not in (None, [], {}, "")]
    if others:
        raise RmkitError(
            f"{where} has the key {others[0]}, which rmkit does not read.", "Give messages with role and content only."
        )
    role, content = value["role"], value["content"]
    if role not in ROLES:
        raise RmkitError(f"{where} has the role {role!r}.", f"Use {', '.join(ROLES[:-1])} and {ROLES[-1]}.")
    if isinstance(content, list):
        content = _join_parts(content, where)
    if not isinstance(content, str) or not content.strip():
        raise RmkitError(f"{where} has no text.", "Remove the row or fill it in.")
    return Message(role, content)


def _join_parts(parts: Sequence[Any], where: str) -> str:
    """The text of a content that is a list of parts."""
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            name = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RmkitError(
                f"{where} has a part of type {name}; rmkit reads text only.", "Remove such rows, or their images."
            )
    return "".join(part["text"] for part in parts)


def parse_prompt(value: Any, where: str) -> Prompt:
    """A text, or messages that end with a user turn; a single user turn becomes its text.

    Raises:
        RmkitError: naming `where`, if it is neither, a text is empty, a system turn is not the first turn, or the last
            turn is not the user's.
    """
    if isinstance(value, str):
        if not value.strip():
            raise RmkitError(f"{where} is empty.", "Remove the row or fill it in.")
        return value
    if not isinstance(value, Sequence):
        raise RmkitError(f"{where} is {type(value).__name__}.", "Give a text, or a list of messages.")
    conversation = parse_messages(value, where)
    if any(message.role == "system" for message in conversation[1:]):
        raise RmkitError(f"{where} has a system message after the first message.", "Put one first, or none.")
    if conversation[-1].role != "user":
        raise RmkitError(
            f"{where} ends with a message of the role {conversation[-1].role}.",
            "End a prompt with the user's message; what follows is the response.",
        )
    return conversation[0].content if len(conversation) == 1 else conversation
