"""Concurrent requests to a language model at any endpoint with OpenAI's protocol.

The `openai` client retries transient errors (429 with its Retry-After, 5xx, lost connections); answers that are not
valid completions are requested again too. Answers in the journal are not paid for again; a kill costs at most the
`concurrency` requests in flight.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field, ValidationError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from rmkit.data.rewriting.journal import Answer, Journal
from rmkit.errors import RmkitError

MAX_RETRIES = 10  # with the client's backoff of at most 8 seconds, about a minute
_MALFORMED_ANSWERS = 6
_REFUSED_REQUESTS = 8

Client = TypeVar("Client", OpenAI, AsyncOpenAI)
Unanswered = dict[str, str]
"""Key of a request -> the reason why the endpoint does not answer it."""


@dataclass(frozen=True)
class Request:
    """The request for one text, with everything that the answer may depend on; equal requests share their answers."""

    model: str
    content: str
    temperature: float | None = None
    max_tokens: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The body of the request in OpenAI's protocol."""
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": self.content}]}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.max_tokens is not None:
            body["max_completion_tokens"] = self.max_tokens
        return body

    @cached_property
    def key(self) -> str:
        """sha256 over the body."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Endpoint:
    """Access to a model: OpenAI, or a compatible server at `base_url`."""

    base_url: str | None = None
    api_key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 600.0

    def client(self) -> AsyncOpenAI:
        """A client for concurrent requests.

        Raises:
            RmkitError: if there is no API key and no base_url.
        """
        return self._create(AsyncOpenAI)

    def batch_client(self) -> OpenAI:
        """A client for the Batch API.

        Raises:
            RmkitError: as `client`.
        """
        return self._create(OpenAI)

    def _create(self, client: type[Client]) -> Client:
        if not self.api_key and self.location is None:
            raise RmkitError(
                f"There is no API key in the environment variable {self.api_key_variable}.",
                "Set it, or give --base-url for a server that needs no key.",
            )
        try:
            return client(
                base_url=self.location,
                api_key=self.api_key or "none",
                max_retries=MAX_RETRIES,
                timeout=openai.Timeout(self.timeout, connect=10.0),
            )
        except (openai.OpenAIError, ValueError) as error:
            raise RmkitError(
                f"--base-url {self.shown}: {error}.", "Give a URL such as http://localhost:8000/v1."
            ) from None

    @property
    def api_key(self) -> str | None:
        return os.environ.get(self.api_key_variable) or None

    @property
    def location(self) -> str | None:
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or None

    @property
    def shown(self) -> str:
        """The location of the endpoint, without passwords and keys that a URL may contain."""
        if self.location is None:
            return "the OpenAI API"
        parts = urlsplit(self.location)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class MalformedAnswer(Exception):
    """A body that is not a chat completion."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    """The fields of a chat completion that rmkit reads; servers differ in the others."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def parse_answer(key: str, body: str | bytes) -> Answer:
    """The answer in the JSON of a chat completion.

    Raises:
        MalformedAnswer: if the JSON is not a chat completion.
    """
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        raise MalformedAnswer(str(error)) from None
    choice, usage = completion.choices[0], completion.usage or _Usage()
    return Answer(
        key=key,
        text=(choice.message.content or "").strip(),
        finish_reason="refusal" if choice.message.refusal else choice.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def ask(
    endpoint: Endpoint, requests: Mapping[str, Request], journal: Journal, advance: Callable[[int], None]
) -> Unanswered:
    """Send every request once, and write every answer to the journal when it arrives.

    Args:
        requests: by key.
        advance: called with the number of finished requests.

    Returns:
        The requests that the endpoint rejects because of their content (HTTP 400, 413, 422), with its reason.

    Raises:
        RmkitError: if the endpoint cannot be reached, rejects the key or the model, or keeps failing. Requests in
            flight are completed first, and their answers are kept.
    """
    return asyncio.run(_ask(endpoint, requests, journal, advance))


async def _ask(
    endpoint: Endpoint, requests: Mapping[str, Request], journal: Journal, advance: Callable[[int], None]
) -> Unanswered:
    unanswered: Unanswered = {}
    waiting = deque(requests.items())
    answered = 0

    async def work(client: AsyncOpenAI) -> None:
        nonlocal answered
        while waiting:
            key, request = waiting.popleft()
            try:
                journal.add(await _completion(client, key, request))
                answered += 1
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                unanswered[key] = error_message(error, endpoint)
                if not answered and len(unanswered) >= min(_REFUSED_REQUESTS, len(requests)):
                    waiting.clear()
                    raise
            except BaseException:
                waiting.clear()  # the other workers finish their requests and start no more
                raise
            advance(1)

    try:
        async with endpoint.client() as client:
            await _check_reachable(client)
            workers = (work(client) for _ in range(min(endpoint.concurrency, len(requests))))
            outcomes = await asyncio.gather(*workers, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            raise failures[0]
    except (openai.OpenAIError, MalformedAnswer) as error:
        raise explained(error, endpoint) from None
    return unanswered


@retry(
    retry=retry_if_exception_type(MalformedAnswer),
    stop=stop_after_attempt(_MALFORMED_ANSWERS),
    wait=wait_random_exponential(multiplier=0.5, max=8),
    reraise=True,
)
async def _completion(client: AsyncOpenAI, key: str, request: Request) -> Answer:
    response = await client.chat.completions.with_raw_response.create(**request.body)
    return parse_answer(key, response.http_response.content)


async def _check_reachable(client: AsyncOpenAI) -> None:
    """Report a wrong address or key at once: other requests are retried for a minute."""
    try:
        await client.with_options(max_retries=2).models.list()
    except (openai.APIConnectionError, openai.AuthenticationError):
        raise
    except (openai.OpenAIError, ValueError):
        pass  # some servers do not list their models


def explained(error: Exception, endpoint: Endpoint) -> RmkitError:
    """An error of the endpoint in two lines, without text that could contain the API key."""
    again = "Answers so far are kept: run the command again to resume."
    match error:
        case openai.APITimeoutError():
            return RmkitError(f"{endpoint.shown} did not answer within {endpoint.timeout:g} s.", again)
        case openai.APIConnectionError():
            reason = type(error.__cause__).__name__ if error.__cause__ else "no connection"
            return RmkitError(f"{endpoint.shown} cannot be reached ({reason}).", f"Check --base-url. {again}")
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return RmkitError(
                f"{endpoint.shown} does not accept the API key (HTTP {error.status_code}).",
                f"Check {endpoint.api_key_variable}. {again}",
            )
        case openai.NotFoundError():
            return RmkitError(
                f"{endpoint.shown} says: {error_message(error, endpoint)}", f"Check --model and --base-url. {again}"
            )
        case openai.APIStatusError():
            return RmkitError(f"{endpoint.shown} says: {error_message(error, endpoint)}", again)
        case MalformedAnswer():
            return RmkitError(
                f"{endpoint.shown} returns answers that are not chat completions.", f"Check --base-url. {again}"
            )
        case _:
            return RmkitError(f"{endpoint.shown} failed: {type(error).__name__}.", again)


def error_message(error: openai.APIStatusError, endpoint: Endpoint) -> str:
    """The status and the message of an error, with the API key masked: some servers repeat it."""
    message = " ".join(error.message.split())[:300]
    return f"HTTP {error.status_code}: {message.replace(endpoint.api_key or 'none', '***')}"
