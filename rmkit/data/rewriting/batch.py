"""Requests through the Batch API, as in the paper: half the price, answers within a day.

The id of every batch is in the journal, so that a restarted command waits for the same batch.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import openai
from openai import OpenAI
from openai.types import Batch as EndpointBatch
from pydantic import BaseModel, ValidationError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from rmkit.data.rewriting.client import Endpoint, MalformedAnswer, Request, Unanswered, explained, parse_answer
from rmkit.data.rewriting.journal import Answer, BatchEnded, BatchJob, Journal
from rmkit.errors import RmkitError

MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
"""The limits of one batch."""

_URL: Final = "/v1/chat/completions"
_TAG = "rmkit"
_ENDED = {"completed", "failed", "expired", "cancelled"}
_REFUSED = {400, 413, 422}


def ask_in_batches(
    endpoint: Endpoint,
    requests: Mapping[str, Request],
    journal: Journal,
    advance: Callable[[int], None],
    *,
    poll_seconds: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Unanswered:
    """Wait for the batches of an earlier command; if there are none, submit batches and wait for them.

    A request may still have no answer when this returns: call it again. Args and returns as `client.ask`;
    `poll_seconds` is the time between two polls.

    Raises:
        RmkitError: as `ask`; also if a batch failed, expired or was cancelled. Its answers are kept.
    """
    try:
        with endpoint.batch_client() as client:
            _find_announced(client, journal)
            if not journal.open_batches:
                for lines in _chunks(requests):
                    _submit(client, lines, journal)
            unanswered: Unanswered = {}
            failures: list[str] = []
            for tag, number in list(journal.open_batches.items()):
                batch = _wait(client, str(number), advance, poll_seconds, sleep)
                failures += _collect(client, batch, tag, journal, unanswered)
    except (openai.OpenAIError, MalformedAnswer) as error:
        raise explained(error, endpoint) from None
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise RmkitError(f"{failures[0]}{more}.", "Answers so far are kept: run the command again to request the rest.")
    return unanswered


def _chunks(requests: Mapping[str, Request]) -> Iterator[list[bytes]]:
    """The lines of batch files that are within the limits."""
    lines: list[bytes] = []
    size = 0
    for key, request in requests.items():
        content = {"custom_id": key, "method": "POST", "url": _URL, "body": request.body}
        line = json.dumps(content, ensure_ascii=False).encode() + b"\n"
        if lines and (len(lines) == MAX_REQUESTS or size + len(line) > MAX_BYTES):
            yield lines
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    yield lines


def _submit(client: OpenAI, lines: list[bytes], journal: Journal) -> None:
    file = client.files.create(file=("rmkit.jsonl", b"".join(lines)), purpose="batch")
    tag = uuid.uuid4().hex
    journal.add(BatchJob(tag=tag))
    batch = client.batches.create(input_file_id=file.id, endpoint=_URL, completion_window="24h", metadata={_TAG: tag})
    journal.add(BatchJob(tag=tag, id=batch.id))


def _find_announced(client: OpenAI, journal: Journal) -> None:
    """Find the ids of batches that were submitted just before a kill, by their tags."""
    announced = {tag for tag, number in journal.open_batches.items() if number is None}
    if not announced:
        return
    for batch in client.batches.list(limit=100):
        tag = (batch.metadata or {}).get(_TAG)
        if tag in announced:
            announced.discard(tag)
            journal.add(BatchJob(tag=tag, id=batch.id))
    for tag in announced:  # killed before it was submitted
        journal.add(BatchEnded(tag=tag))


def _wait(
    client: OpenAI, number: str, advance: Callable[[int], None], poll_seconds: float, sleep: Callable[[float], None]
) -> EndpointBatch:
    done = 0
    while True:
        batch = client.batches.retrieve(number)
        counts = batch.request_counts
        ended = counts.completed + counts.failed if counts else 0
        advance(ended - done)
        done = ended
        if batch.status in _ENDED:
            return batch
        sleep(poll_seconds)


def _collect(client: OpenAI, batch: EndpointBatch, tag: str, journal: Journal, unanswered: Unanswered) -> list[str]:
    """Write the answers of an ended batch to the journal; returns failures that may succeed another time."""
    answers: list[Answer] = []
    failures = []
    for line in [*_lines(client, batch.output_file_id), *_lines(client, batch.error_file_id)]:
        if line.response is not None and line.response.status_code == 200:
            if any(answer.batch == tag for answer in journal.answers.get(line.custom_id, ())):
                continue  # killed while this batch was written
            try:
                answer = parse_answer(line.custom_id, json.dumps(line.response.body))
            except MalformedAnswer:
                failures.append(f"Batch {batch.id} holds an answer that is not a chat completion")
            else:
                answers.append(answer.model_copy(update={"batch": tag}))
        elif line.response is not None and line.response.status_code in _REFUSED:
            unanswered[line.custom_id] = f"HTTP {line.response.status_code}: {_message(line.response.body)}"
        else:
            failures.append(f"A request of batch {batch.id} failed: {_message(line.error or line.response)}")
    if batch.status != "completed":
        reasons = [error.message or "" for error in (batch.errors.data or [])] if batch.errors else []
        failures.append(f"Batch {batch.id} {batch.status}" + "".join(f": {reason}" for reason in reasons[:1]))
    journal.add(*answers, BatchEnded(tag=tag))
    return failures


class _Response(BaseModel):
    status_code: int
    body: Any = None


class _Line(BaseModel):
    """A line of the output file of a batch."""

    custom_id: str
    response: _Response | None = None
    error: Any = None


@retry(
    retry=retry_if_exception_type(MalformedAnswer),
    stop=stop_after_attempt(4),
    wait=wait_random_exponential(multiplier=0.5, max=8),
    reraise=True,
)
def _lines(client: OpenAI, file: str | None) -> Iterable[_Line]:
    if file is None:
        return []
    try:
        return [_Line.model_validate_json(line) for line in client.files.content(file).content.splitlines() if line]
    except ValidationError as error:  # an incomplete download
        raise MalformedAnswer(str(error)) from None


def _message(content: Any) -> str:
    """The message of an error, wherever the endpoint puts it; at most 200 characters."""
    if isinstance(content, BaseModel):
        content = content.model_dump()
    while isinstance(content, dict):
        content = content.get("message") or content.get("error") or content.get("body") or content.get("status_code")
    return " ".join(str(content).split())[:200]
