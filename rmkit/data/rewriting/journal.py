"""What a language model has answered, kept as it comes: a command killed at any moment can go on.

One JSON object a line, each on disk before the next request goes out. A line that a kill cut short counts for nothing.
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
    """A line."""

    model_config = ConfigDict(frozen=True)


class Answer(Entry):
    """What the model answered to a request (`key`, see `client.Request`), on its own or in a batch."""

    kind: Literal["answer"] = "answer"
    key: str
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    batch: str | None = None


class BatchJob(Entry):
    """A batch of requests, known to the endpoint by `tag` (ours) and `id` (its own).

    First written without an id, before the endpoint is asked: if no more is known, it may hold the batch all the same.
    """

    kind: Literal["batch"] = "batch"
    tag: str
    id: str | None = None


class BatchEnded(Entry):
    """All that a batch gave stands above."""

    kind: Literal["batch ended"] = "batch ended"
    tag: str


_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Answer | BatchJob | BatchEnded, Field(discriminator="kind")])


@dataclass
class Journal:
    """The entries of a file, and the file open for more. Made by `open_journal`."""

    path: Path
    file: IO[bytes]
    answers: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    open_batches: dict[str, str | None] = field(default_factory=dict)
    """tag -> id, or None if the endpoint has not said it."""

    def add(self, *entries: Entry) -> None:
        """Write lines and wait until they are on disk.

        Raises:
            RmkitError: if it cannot be written.
        """
        try:
            self.file.write(b"".join(entry.model_dump_json().encode() + b"\n" for entry in entries))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise RmkitError(
                f"{self.path} cannot be written: {error}.", "Make room and run the command again."
            ) from None
        for entry in entries:
            self.take(entry)

    def take(self, entry: Entry) -> None:
        """Count an entry that stands in the file."""
        match entry:
            case Answer():
                self.answers[entry.key].append(entry)
            case BatchJob():
                self.open_batches[entry.tag] = entry.id
            case BatchEnded():
                self.open_batches.pop(entry.tag, None)

    def answers_to(self, keys: Iterable[str]) -> Sequence[Answer]:
        """Every answer to these requests, also those that were asked again."""
        return [answer for key in keys for answer in self.answers.get(key, ())]


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """The journal at `path`, made if there is none, for one process at a time. A cut last line is removed.

    Raises:
        RmkitError: if another process holds it, it cannot be written, or a line within it is broken.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_name(f".{path.name}.lock"), timeout=0))
            journal = Journal(path, stack.enter_context(path.open("a+b")))
            _read(journal)
        except Timeout:
            raise RmkitError(
                f"Another rmkit rewrite writes {path}.", "Wait for it to end, or give another --output."
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
    whole = 0
    for number, line in enumerate(journal.file, 1):
        if not line.endswith(b"\n"):
            break
        try:
            journal.take(_ENTRY.validate_json(line))
        except ValidationError:
            raise RmkitError(
                f"Line {number} of {journal.path} is broken.", "Remove that line: what it held is asked for again."
            ) from None
        whole += len(line)
    journal.file.truncate(whole)
