"""Turn errors of libraries on a damaged or hostile model folder into one `RmkitError`.

Use these contexts only around calls into libraries (transformers, PEFT, tokenizers, safetensors, Jinja): an error in
rmkit's own code must stay a traceback.
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

from rmkit.errors import RmkitError, first_line

TEMPLATE_SECONDS = 30.0
"""Normally a chat template renders a few words in milliseconds."""


@contextlib.contextmanager
def library_errors(cause: str, remedy: str) -> Iterator[None]:
    """Raise `RmkitError(cause: first line of the error, remedy)` for any error inside.

    The Rust parts of tokenizers panic with a `BaseException` that is not an `Exception`.
    """
    try:
        yield
    except (RmkitError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise RmkitError(f"{cause}: {first_line(error)}", remedy) from None


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        RmkitError: if the file cannot be read or contains something other than an object.
    """
    with library_errors(f"{file} cannot be read", remedy):
        content = json.loads(file.read_bytes())
    if not isinstance(content, dict):
        raise RmkitError(f"{file} does not contain a JSON object.", remedy)
    return content


@contextlib.contextmanager
def time_limit(seconds: float, cause: str, remedy: str) -> Iterator[None]:
    """Raise `RmkitError` inside after this many seconds: a chat template is a program and may loop.

    Only the main thread can be interrupted; other threads have no limit.
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
    """A time limit for the first renderings of a model's chat template."""
    cause = f"The chat template of {name} takes more than {TEMPLATE_SECONDS:g} seconds to render a few words."
    return time_limit(
        TEMPLATE_SECONDS, cause, "Set another base.chat_template, or use tokenizer files from another source."
    )
