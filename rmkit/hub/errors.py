"""Errors of the Hub and of the connection to it, in one line."""

from __future__ import annotations

import re

from huggingface_hub.errors import LocalEntryNotFoundError


def error_message(error: BaseException) -> str:
    """The first line of an error and of its cause, without the query strings of URLs, which may hold signatures."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the Hub refuses the access token (401); `hf auth login` sets another."
    if status == 403:
        return "the access token may not write there (403)."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = re.sub(r"\?\S+", "", lines[0]).rstrip(".") + "."
    if isinstance(error, LocalEntryNotFoundError) or error.__cause__ is None:
        return text
    return f"{text} {error_message(error.__cause__)}"
