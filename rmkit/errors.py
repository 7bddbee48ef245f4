"""What rmkit says when its input is wrong: one line of cause, one of remedy, exit code 2."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

EXIT_CODE = 2


class RmkitError(Exception):
    """A mistake that the user can mend.

    Args:
        cause: what is wrong, in one line, naming the file, key, row or model.
        remedy: what to do about it, in one line.
    """

    def __init__(self, cause: str, remedy: str):
        super().__init__(f"{cause} {remedy}")
        self.cause = " ".join(cause.split())
        self.remedy = " ".join(remedy.split())

    def __reduce__(self) -> tuple[type[RmkitError], tuple[str, str]]:
        return type(self), (self.cause, self.remedy)


class Unreachable(RmkitError):
    """What is somewhere on the network cannot be had from here."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn an `RmkitError` (or Ctrl-C) into its message on stderr and an exit code; leave other errors alone."""
    try:
        yield
    except RmkitError as error:
        print(f"error: {error.cause}\n  fix: {error.remedy}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_CODE) from None
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left behind", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
