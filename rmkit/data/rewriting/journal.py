"""A log of the answers of a language model, so that a command killed at any moment can resume.

One JSON object per line, written to disk before the next request is sent. An incomplete last line is ignored.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rmkit.errors import RmkitError


class Entry(BaseModel):
    """A line of the journal."""

    model_config = ConfigDict(frozen=True)


class Answer(Entry):
    """The answer to a request (`key`, see `client.Request`), sent alone or in a batch."""

    kind: Literal["answer"] = "answer"
    key: str
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    batch: str | None = None


class BatchJob(Entry):
    """A batch of requests, identified by our `tag` and the endpoint's `id`.

    It is first written without an id, before it is sent: after a kill the endpoint may have the batch or not.
    """

    kind: Literal["batch"] = "batch"
    tag: str
    id: str | None = None


class BatchEnded(Entry):
    """All answers of a batch have been written."""

    kind: Literal["batch ended"] = "batch ended"
    tag: str


_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Answer | BatchJob | BatchEnded, Field(discriminator="kind")])


@dataclass
class Journal:
    """The entries of a journal file, open for appending. Use `open_journal`."""

    path: Path
    file: IO[bytes]
    answers: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    open_batches: dict[str, str | None] = field(default_factory=dict)
    """tag -> id; None if the endpoint has not returned it."""

    def add(self, *entries: Entry) -> None:
        """Append entries and wait until they are on disk.

        Raises:
            RmkitError: if it cannot be written.
        """
        try:
            self.file.write(b"".join(entry.model_dump_json().encode() + b"\n" for entry in entries))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise RmkitError(
                f"{self.path} cannot be written: {error}.", "Free disk space and run the command again."
            ) from None
        for entry in entries:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        """Update `answers` and `open_batches` from an entry of the file."""
        match entry:
            case Answer():
                self.answers[entry.key].append(entry)
            case BatchJob():
                self.open_batches[entry.tag] = entry.id
            case BatchEnded():
                self.open_batches.pop(entry.tag, None)

    def answers_to(self, keys: Iterable[str]) -> Sequence[Answer]:
        """All answers to these requests, including repeated attempts."""
        return [answer for key in keys for answer in self.answers.get(key, ())]


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """The journal at `path`, created if needed and locked for this process. An incomplete last line is removed.

    Raises:
        RmkitError: if another process has it open, it cannot be written, or a complete line is invalid.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_name(f".{path.name}.lock"), timeout=0))
            journal = Journal(path, stack.enter_context(path.open("a+b")))
            _read(journal)
        except Timeout:
            raise RmkitError(
                f"Another rmkit rewrite is writing {path}.", "Wait for it to end, or give another --output."
            ) from None
        except OSError as error:
            raise RmkitError(f"{path} cannot be opened: {error}.", "Give another --output.") from None
        try:
            yield journal
        finally:
            if not path.stat().st_size:
                path.unlink()


def _read(journal: Journal) -> None:
    journal.file.seek(0)
    complete = 0
    for number, line in enumerate(journal.file, 1):
        if not line.endswith(b"\n"):
            break
        try:
            journal.apply(_ENTRY.validate_json(line))
        except ValidationError:
            raise RmkitError(
                f"Line {number} of {journal.path} is invalid.", "Remove that line; its request is then sent again."
            ) from None
        complete += len(line)
    journal.file.truncate(complete)
