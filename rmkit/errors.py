"""Errors that users can fix: one line of cause, one of remedy, exit code 2.

Of several processes only one reports. They agree through the launcher's key-value store (of torchrun's agent, which
`accelerate launch` uses too), so this needs no process group and works while others hang in a collective.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NoReturn

EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130

_MAX_CAUSE = 300  # characters of a library's message
_REPORTERS, _EXIT = "rmkit/reporters", "rmkit/exit_code"  # keys of the store
_POLL_SECONDS = 1.0
_REPORT_TIMEOUT = timedelta(seconds=10)  # for the reporting process to finish
_LAUNCHER_TIMEOUT = timedelta(seconds=30)  # for the launcher to end this process after another one has died


class RmkitError(Exception):
    """A mistake that the user can fix.

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

    @property
    def message(self) -> str:
        """The two lines that are printed."""
        return f"error: {self.cause}\n  fix: {self.remedy}"


class Unreachable(RmkitError):
    """Something on the network cannot be reached from here."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, KeyError):
        text = f"no entry {text}"
    return text if len(text) <= _MAX_CAUSE else text[:_MAX_CAUSE] + "..."


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn an `RmkitError` (or Ctrl-C) into its message on stderr and an exit code; leave other errors alone.

    Under a launcher of several processes the first one that fails prints its message (for a bug, the traceback); all
    others end silently, whatever they are doing, with the same exit code.
    """
    store = _launcher_store()
    try:
        with _ending_with_others(store):
            yield
    except RmkitError as error:
        _exit(store, error.message, EXIT_CODE, error)
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal and a launcher may both send it
        _exit(store, "interrupted: nothing half-written was left behind", INTERRUPTED_EXIT_CODE, error)
    except Exception as error:
        if store is None:
            raise
        _exit(store, traceback.format_exc().rstrip(), 1, error)


def _launcher_store() -> Any:
    """The store that the processes of this launch share; None for a single process and for launchers without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return _connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def _connect(host: str, port: int) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(host, port, is_master=False, timeout=_LAUNCHER_TIMEOUT, wait_for_workers=False)


@contextlib.contextmanager
def _ending_with_others(store: Any) -> Iterator[None]:
    """End this process once another one has reported an error, even if this one hangs in a collective."""
    if store is None:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(store, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(store: Any, done: threading.Event) -> None:
    while not done.wait(_POLL_SECONDS):
        try:
            if store.check([_EXIT]):
                os._exit(int(store.get(_EXIT)))
        except RuntimeError:  # the connection broke
            try:
                store = _connect(store.host, store.port)
            except RuntimeError:  # the launcher with the store, perhaps on another machine, has ended
                os._exit(1)


def _exit(store: Any, message: str, code: int, error: BaseException) -> NoReturn:
    if store is None:
        _print(message)
        raise SystemExit(code) from None
    reported = _reported_code(store, error)
    if reported is None:
        # Another process may have left a progress bar in this line.
        _print(("\r\033[K" if sys.stderr.isatty() else "\r") + message)
        with contextlib.suppress(RuntimeError):
            store.set(_EXIT, str(code))
    sys.stdout.flush()
    # A normal exit would wait for process groups that are gone, or abort.
    os._exit(code if reported is None else reported)


def _print(message: str) -> None:
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)  # keeps the progress bars of this process intact
    sys.stderr.flush()


def _reported_code(store: Any, error: BaseException) -> int | None:
    """The exit code of the process that has reported an error; None if this process must report."""
    from torch.distributed import DistStoreError

    # A collective broke because another process ended: that process, or its launcher, reports the cause.
    lost = any(words in str(error) for words in ("closed by peer", "reset by peer", "remote process exited"))
    try:
        if lost:
            with contextlib.suppress(DistStoreError):  # no report in time
                store.wait([_EXIT], _LAUNCHER_TIMEOUT)
                return int(store.get(_EXIT))
        if store.add(_REPORTERS, 1) == 1:
            return None
        store.wait([_EXIT], _REPORT_TIMEOUT)
        return int(store.get(_EXIT))
    except RuntimeError:  # the reporting process or the store is gone
        return 1 if lost else None
