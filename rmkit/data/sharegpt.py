"""Messages in the spellings of other tools, as messages with role and content.

- ShareGPT (LLaMA-Factory, Axolotl): `{"from": "human", "value": "Hi"}`; a `function_call` holds its name and arguments
  as JSON text, an `observation` what the tool returned;
- one message in place of a list, as LLaMA-Factory and Axolotl store chosen and rejected responses;
- a mapping with `messages`, as OpenAI's preference files store the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}
_KEYS = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})


def plain_messages(value: Any) -> Any:
    """Messages as a list of mappings with role and content; any other value is returned as it is.

    Unknown roles and other keys stay, for `rmkit.data.conversations.parse_messages` to refuse.
    """
    if isinstance(value, Mapping):
        if _is_message(value):
            return [_plain(value)]
        if isinstance(value.get("messages"), list):
            return plain_messages(value["messages"])
    if isinstance(value, list) and any(isinstance(each, Mapping) and "from" in each for each in value):
        return [_plain(each) for each in value]
    return value


def holds_messages(kind: Any) -> bool:
    """Whether an Arrow type is that of messages, or of one message."""
    import pyarrow as pa

    if is_list(kind):
        kind = kind.value_type
    return pa.types.is_struct(kind) and any(keys <= {field.name for field in kind} for keys in _KEYS)


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is one of lists."""
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_message(value: Mapping[str, Any]) -> bool:
    return any(keys <= value.keys() for keys in _KEYS)


def _plain(message: Any) -> Any:
    """A message with role and content; rows of both spellings have the keys of the other as null."""
    if not isinstance(message, Mapping) or message.get("from") is None:
        return message
    others = {key: value for key, value in message.items() if key not in ("from", "value", "role", "content")}
    calls = _calls(message.get("value")) if message["from"] == "function_call" else None
    if calls:
        return {"role": "assistant", "content": "", "tool_calls": calls, **others}
    return {"role": _ROLES.get(message["from"], message["from"]), "content": message.get("value"), **others}


def _calls(value: Any) -> list[dict[str, Any]] | None:
    """The calls of a `function_call`, one or a list of them; None if it is not JSON with names."""
    try:
        found = json.loads(value)
    except (TypeError, ValueError):
        return None
    calls = found if isinstance(found, list) else [found]
    if not all(isinstance(each, dict) and "name" in each for each in calls):
        return None
    return [{"type": "function", "function": each} for each in calls]
