"""An endpoint that speaks OpenAI's protocol on loopback and fails as real ones do, on demand."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = {"429": 0.10, "500": 0.05, "drop": 0.02, "malformed": 0.005, "truncated": 0.005}


def reversed_words(text: str) -> str:
    """The endpoint's idea of a paraphrase."""
    return " ".join(reversed(text.split()))


class Endpoint(ThreadingHTTPServer):
    """Answers the text within a paraphrase prompt with its words reversed.

    Attributes:
        requests: number of requests for a completion, by text.
        delivered: number of whole answers sent, by text.
        faults: number of faults, by kind.
        other: the requests for anything else.
        answer: text -> content, or (content, finish_reason), or (status, message); None in a batch: expired before it.
        hold_after: from that many answers on, requests are held until `abandon_held`.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, faults: dict[str, float] | None = None, seed: int = 0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault_rates = faults or {}
        self.random = random.Random(seed)
        self.lock = threading.Condition()
        self.requests: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.other: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.answer: Callable[[str], Any] = reversed_words
        self.hold_after: int | None = None
        self.held = 0
        self.abandon = False
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.polls_to_completion = 2
        self.batch_outcome = "completed"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def wait_until_held(self, number: int) -> None:
        with self.lock:
            assert self.lock.wait_for(lambda: self.held >= number, timeout=60), self.held

    def abandon_held(self) -> None:
        """Close the connections of the requests that are held, and hold no more."""
        with self.lock:
            self.abandon = True
            self.lock.notify_all()
            assert self.lock.wait_for(lambda: self.held == 0, timeout=60)
            self.hold_after, self.abandon = None, False

    def handle_error(self, *_: Any) -> None:
        """A client that is gone is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Endpoint
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = self.server
        if self.path.endswith("/models"):
            return self.send({"object": "list", "data": []})
        server.other.append(f"GET {self.path}")
        if "/batches/" in self.path:
            return self.send(self.polled(self.path.rsplit("/", 1)[1]))
        if "/batches" in self.path:
            return self.send({"object": "list", "data": list(server.batches.values()), "has_more": False})
        return self.send_bytes(server.files[self.path.split("/")[-2]], "application/octet-stream")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/chat/completions"):
            return self.complete(json.loads(body))
        self.server.other.append(f"POST {self.path}")
        if self.path.endswith("/files"):
            return self.upload(body)
        made = {key: json.loads(body)[key] for key in ("endpoint", "input_file_id", "completion_window", "metadata")}
        number = f"batch_{len(self.server.batches)}"
        state = {"object": "batch", "created_at": 0, "status": "validating", "polls": 0}
        self.server.batches[number] = {"id": number, **made, **state}
        return self.send(self.server.batches[number])

    def complete(self, body: dict[str, Any]) -> None:
        server = self.server
        text = text_of(body)
        with server.lock:
            server.bodies.append(body)
            server.requests[text] += 1
            if server.hold_after is not None and server.delivered.total() >= server.hold_after:
                server.held += 1
                server.lock.notify_all()
                server.lock.wait_for(lambda: server.abandon)
                server.held -= 1
                server.lock.notify_all()
                self.close_connection = True
                return
            rates = server.fault_rates
            fault = server.random.choices([*rates, None], [*rates.values(), 1 - sum(rates.values())])[0]
            if fault is None:
                server.delivered[text] += 1
            else:
                server.faults[fault] += 1
        match fault:
            case "429":
                self.send({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.02"})
            case "500":
                self.send({"error": {"message": "oops"}}, 500)
            case "drop":  # before the answer, or within it
                self.close_connection = True
                if server.faults["drop"] % 2:
                    self.send_bytes(json.dumps(completion(reversed_words(text))).encode(), cut=40)
            case "malformed":
                self.send({"choices": []})
            case "truncated":
                self.send_bytes(json.dumps(completion(reversed_words(text))).encode()[:70])
            case _:
                status, content = reply(server.answer(text))
                self.send(content, status)

    def upload(self, body: bytes) -> None:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        name = f"file-{len(self.server.files)}"
        for part in BytesParser(policy=HTTP).parsebytes(head + body).iter_parts():
            if part.get_param("name", header="content-disposition") == "file":
                self.server.files[name] = part.get_payload(decode=True)
        self.send({"id": name, "object": "file", "bytes": 1, "created_at": 0, "filename": "f", "purpose": "batch"})

    def polled(self, number: str) -> dict[str, Any]:
        """A batch, one poll nearer to its end."""
        server, batch = self.server, self.server.batches[number]
        batch["polls"] += 1
        if "output_file_id" in batch:
            return batch
        if batch["polls"] < server.polls_to_completion:
            batch["status"] = "in_progress"
            return batch
        batch["status"] = server.batch_outcome
        good, bad = [], []
        for line in server.files[batch["input_file_id"]].splitlines():
            request = json.loads(line)
            assert (request["method"], request["url"]) == ("POST", batch["endpoint"])
            text = text_of(request["body"])
            server.requests[text] += 1
            answer = server.answer(text)
            if answer is None:
                continue
            status, content = reply(answer)
            server.delivered[text] += status == 200
            entry = {
                "custom_id": request["custom_id"],
                "response": {"status_code": status, "body": content},
                "error": None,
            }
            (good if status == 200 else bad).append(json.dumps(entry))
        for key, lines in (("output_file_id", good), ("error_file_id", bad)):
            batch[key] = f"{number}-{key}"
            server.files[batch[key]] = "\n".join(lines).encode()
        batch["request_counts"] = {"total": len(good) + len(bad), "completed": len(good), "failed": len(bad)}
        return batch

    def send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(json.dumps(content).encode(), "application/json", status, headers)

    def send_bytes(
        self,
        content: bytes,
        kind: str = "application/json",
        status: int = 200,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[:cut])

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def text_of(body: dict[str, Any]) -> str:
    """The text that a paraphrase prompt holds."""
    content = body["messages"][0]["content"]
    return content.partition("original text:\n")[2].rpartition("\nRewritten version:\n")[0]


def reply(answer: Any) -> tuple[int, dict[str, Any]]:
    if isinstance(answer, tuple) and isinstance(answer[0], int):
        return answer[0], {"error": {"message": answer[1]}}
    return 200, completion(*answer) if isinstance(answer, tuple) else completion(answer)


def completion(content: str, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


@contextmanager
def serving(**options: Any) -> Iterator[Endpoint]:
    with Endpoint(**options) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
