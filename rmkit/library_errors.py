"""Turn what a library raises on a damaged or hostile model folder into one `RmkitError`.

Only calls into libraries (transformers, PEFT, tokenizers, safetensors, Jinja) belong inside: an error in rmkit's own
code must stay a traceback.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rmkit.errors import RmkitError

_LONGEST_CAUSE = 300
TEMPLATE_SECONDS = 30.0
"""A chat template renders a few words in milliseconds."""


@contextlib.contextmanager
def library_errors(cause: str, remedy: str) -> Iterator[None]:
    """Raise `RmkitError(cause: first line of the error, remedy)` for whatever is raised inside.

    The Rust parts of tokenizers panic with an exception that is no `Exception`, hence `BaseException`.
    """
    try:
        yield
    except (RmkitError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise RmkitError(f"{cause}: {first_line(error)}", remedy) from None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, KeyError):
        text = f"no entry {text}"
    return text if len(text) <= _LONGEST_CAUSE else text[:_LONGEST_CAUSE] + "..."


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        RmkitError: if the file cannot be read or holds no object.
    """
    with library_errors(f"{file} cannot be read", remedy):
        content = json.loads(file.read_bytes())
    if not isinstance(content, dict):
        raise RmkitError(f"{file} holds no JSON object.", remedy)
    return content


@contextlib.contextmanager
def time_limit(seconds: float, cause: str, remedy: str) -> Iterator[None]:
    """Raise `RmkitError` inside after this long: a chat template is a program and may loop.

    Only the main thread can be interrupted; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise RmkitError(cause, remedy)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def template_limit(name: str) -> contextlib.AbstractContextManager[None]:
    """The time limit for the first renderings of the chat template of a model."""
    cause = f"The chat template of {name} takes more than {TEMPLATE_SECONDS:g} seconds for a few words."
    return time_limit(TEMPLATE_SECONDS, cause, "Give another base.chat_template, or tokenizer files of another source.")
