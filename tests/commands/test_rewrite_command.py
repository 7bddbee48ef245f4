"""`rmkit rewrite` against an endpoint on loopback: faults, a kill, the Batch API, and every error."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import typer
from endpoint import FAULTS, Endpoint, reversed_words, serving
from typer.testing import CliRunner, Result

from rmkit.commands.rewrite import rewrite
from rmkit.data.rewriting.batch import ask_in_batches
from rmkit.data.rewriting.client import Endpoint as ClientEndpoint
from rmkit.data.rewriting.client import Request
from rmkit.data.rewriting.journal import BatchEnded, BatchJob, open_journal
from rmkit.errors import RmkitError

PAIRS = 200
SUBJECTS = ("the teacher", "my neighbour", "that old sailor", "our new doctor", "a young farmer", "the tired judge")
VERBS = ("carefully explained", "never understood", "quietly accepted", "suddenly remembered", "slowly repaired")
OBJECTS = ("why the bridge had closed", "what the letter said", "how the engine worked", "where the river began")
COMMAND = "import typer; from rmkit.commands.rewrite import rewrite; typer.run(rewrite)"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as server:
        yield server


def write_pairs(path: Path, number: int = 3) -> Path:
    sentences = (
        " ".join(parts) for parts in itertools.product(SUBJECTS, VERBS, OBJECTS, ("", "today", "at last", "again"))
    )
    pairs = list(itertools.islice(zip(sentences, sentences, strict=False), number))
    lines = [
        {"prompt": f"Who did what ({row})?", "chosen": chosen.strip(), "rejected": rejected.strip()}
        for row, (chosen, rejected) in enumerate(pairs)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(lines) == number
    return path


def arguments(data: Path, output: Path, endpoint: Endpoint | None, *more: str, style: str = "paraphrase") -> list[str]:
    url = ["--base-url", endpoint.url] if endpoint else []
    return [str(data), "--style", style, "--model", "m", "--output", str(output), *url, *more]


def run(*options: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(rewrite)
    result = CliRunner().invoke(app, list(options))
    assert "sk-very-secret-key" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def one_line(result: Result) -> str:
    """The message of a command that failed as it should."""
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    return line


def rows_of(output: Path) -> list[dict[str, Any]]:
    return list(datasets.load_from_disk(str(output))["test"])


# --- one request per text -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_faults_and_a_kill_lose_no_answer_and_repeat_no_request(tmp_path: Path) -> None:
    data, output = write_pairs(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "out"
    originals = [json.loads(line) for line in data.read_text().splitlines()]
    with serving(faults=FAULTS, seed=3) as endpoint:
        command = [sys.executable, "-c", COMMAND, *arguments(data, output, endpoint, "--concurrency", "16")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        endpoint.hold_after = 170
        # Requests are held from then on. A worker asks again only once its last answer is in the journal: when all
        # sixteen wait, every answer is on disk, and sixteen requests are cut off by the kill.
        killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        endpoint.wait_until_held(16)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        endpoint.abandon_held()
        before = endpoint.delivered.total()
        assert 170 <= before < 190
        assert not output.exists()

        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        assert f"400 answers for 400 texts: {before} from the journal, {400 - before} new." in finished.stdout
        assert set(endpoint.faults) == set(FAULTS)  # every kind of fault occurred
        assert endpoint.faults.total() > 40
        assert endpoint.delivered == dict.fromkeys(
            [text for pair in originals for text in (pair["chosen"], pair["rejected"])], 1
        )

        requests = endpoint.requests.total()
        content = sorted((path.name, path.read_bytes()) for path in output.rglob("*") if path.is_file())
        again = run(*arguments(data, output, endpoint, "--concurrency", "16"))
        assert again.exit_code == 0
        assert "finished: no requests were made" in again.output
        assert endpoint.requests.total() == requests
        assert sorted((path.name, path.read_bytes()) for path in output.rglob("*") if path.is_file()) == content

    rows = rows_of(output)
    assert [row["orig_index"] for row in rows] == list(range(PAIRS))
    for row, pair in zip(rows, originals, strict=True):
        assert (row["prompt"], row["orig_chosen"], row["orig_rejected"]) == (
            pair["prompt"],
            pair["chosen"],
            pair["rejected"],
        )
        assert row["chosen"] == reversed_words(pair["chosen"])
        assert row["rejected"] == reversed_words(pair["rejected"])


def test_equal_texts_are_requested_once(tmp_path: Path, endpoint: Endpoint) -> None:
    data = tmp_path / "pairs.jsonl"
    texts = ("the judge never understood the letter", "my neighbour repaired the engine", "a sailor closed the bridge")
    pairs = [(texts[0], texts[1]), (texts[0], texts[2]), (texts[2], texts[1])]
    data.write_text("".join(json.dumps({"prompt": "q", "chosen": a, "rejected": b}) + "\n" for a, b in pairs))
    result = run(*arguments(data, tmp_path / "out", endpoint, "--input-price", "2", "--output-price", "8"))
    assert endpoint.requests == dict.fromkeys(texts, 1)
    assert len(rows_of(tmp_path / "out")) == 3
    # 3 answers of 100 and 10 tokens: (300 * 2 + 30 * 8) / 1e6
    assert "3 answers: 300 input tokens, 30 output tokens, 0.0008 at the given prices." in result.output


def test_requests_have_the_given_options(tmp_path: Path, endpoint: Endpoint) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", 1)
    run(*arguments(data, tmp_path / "out", endpoint, "--temperature", "0", "--max-tokens", "50"))
    body = endpoint.bodies[0]
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "m",
        "temperature": 0,
        "max_completion_tokens": 50,
    }
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith("I will provide a text. Please rewrite it")


@pytest.mark.parametrize("on_bad", ["keep-out", "retry", "keep", "error"])
def test_bad_rewrites_are_reported_and_handled_as_requested(tmp_path: Path, endpoint: Endpoint, on_bad: str) -> None:
    data, output = write_pairs(tmp_path / "pairs.jsonl", 4), tmp_path / "out"
    bad = json.loads(data.read_text().splitlines()[1])["rejected"]
    worse = json.loads(data.read_text().splitlines()[2])["chosen"]
    # `bad` is cut at first and whole the second time; `worse` is refused every time.
    endpoint.answer = lambda text: (
        "I'm sorry, but I cannot help with that."
        if text == worse
        else (reversed_words(text), "length" if text == bad and endpoint.requests[text] < 2 else "stop")
    )
    options = arguments(data, output, endpoint, "--on-bad", on_bad)
    result = run(*options)
    expected = {"keep-out": (1, 1), "retry": (2, 3), "keep": (1, 1), "error": (1, 1)}[on_bad]
    assert (endpoint.requests[bad], endpoint.requests[worse]) == expected
    assert endpoint.requests.total() == 8 - 2 + sum(expected)
    if on_bad == "error":
        assert "Bad rewrites: 1 cut by length, 1 refusal; the first is the rejected response of row 1." in one_line(
            result
        )
        assert not output.exists()
    else:
        kept = {"keep-out": [0, 3], "retry": [0, 1, 3], "keep": [0, 1, 2, 3]}[on_bad]
        assert [row["orig_index"] for row in rows_of(output)] == kept
        assert "row 2, chosen: refusal" in result.output
    run(*options)  # no request repeats an answer of the journal, even a bad one
    assert endpoint.requests.total() == 8 - 2 + sum(expected)


def test_a_text_that_the_endpoint_rejects(tmp_path: Path, endpoint: Endpoint) -> None:
    data, output = write_pairs(tmp_path / "pairs.jsonl", 3), tmp_path / "out"
    long = json.loads(data.read_text().splitlines()[0])["chosen"]
    endpoint.answer = lambda text: (400, "too many tokens") if text == long else reversed_words(text)
    result = run(*arguments(data, output, endpoint))
    assert result.exit_code == 0
    assert "1 no answer (HTTP 400: " in result.output
    assert [row["orig_index"] for row in rows_of(output)] == [1, 2]


# --- what a user can get wrong -------------------------------------------------------------------------------------


def test_no_api_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    result = run(*arguments(write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "out", None))
    assert one_line(result) == "error: There is no API key in the environment variable OPENAI_API_KEY."
    assert not (tmp_path / "out").exists()


def test_an_endpoint_that_is_not_there(tmp_path: Path, endpoint: Endpoint) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    gone = ["--base-url", "http://user:password@127.0.0.1:9/v1"]
    line = one_line(run(*arguments(data, tmp_path / "out", None, *gone)))
    assert line == "error: http://127.0.0.1:9/v1 cannot be reached (ConnectError)."
    assert run(*arguments(data, tmp_path / "out", endpoint)).exit_code == 0


def test_finished_work_is_kept_when_the_endpoint_starts_to_fail(tmp_path: Path, endpoint: Endpoint) -> None:
    data, output = write_pairs(tmp_path / "pairs.jsonl", 5), tmp_path / "out"
    endpoint.answer = lambda text: (
        reversed_words(text) if len(endpoint.requests) <= 4 else (401, "no: sk-very-secret-key")
    )
    line = one_line(run(*arguments(data, output, endpoint, "--concurrency", "1")))
    assert "does not accept the API key (HTTP 401)" in line
    assert endpoint.requests.total() == 5
    endpoint.answer = reversed_words
    assert run(*arguments(data, output, endpoint)).exit_code == 0
    assert endpoint.requests.total() == 5 + 6
    assert len(rows_of(output)) == 5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, "no model m; your key is sk-very-secret-key"), "no model m; your key is ***"),
        ((403, "sk-very-secret-key"), "does not accept the API key (HTTP 403)"),
        ((400, "unknown parameter"), "unknown parameter"),
    ],
)
def test_an_endpoint_that_refuses(tmp_path: Path, endpoint: Endpoint, answer: Any, message: str) -> None:
    endpoint.answer = lambda _: answer
    assert message in one_line(run(*arguments(write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "out", endpoint)))


def test_an_output_folder_with_other_content(tmp_path: Path, endpoint: Endpoint) -> None:
    data, output = write_pairs(tmp_path / "pairs.jsonl"), tmp_path / "out"
    output.mkdir()
    (output / "thesis.tex").write_text("years of work")
    for more in ([], ["--overwrite"]):
        assert "not a rewritten set" in one_line(run(*arguments(data, output, endpoint, *more)))
    (output / "thesis.tex").unlink()
    assert run(*arguments(data, output, endpoint)).exit_code == 0
    other = arguments(data, output, endpoint, "--temperature", "0.5")
    assert "with other settings" in one_line(run(*other))
    assert run(*other, "--overwrite").exit_code == 0
    assert endpoint.requests.total() == 12


def test_a_style_needs_a_model_and_a_prompt_file_its_field(tmp_path: Path) -> None:
    data = str(write_pairs(tmp_path / "pairs.jsonl"))
    assert "needs a --model" in one_line(run(data, "--style", "french", "--output", str(tmp_path / "out")))
    assert "not a style, a language or a file" in one_line(
        run(data, "--style", "frensh", "--output", str(tmp_path / "out"))
    )
    assert "is unknown" in one_line(run(data, "--style", "local:x", "--output", str(tmp_path / "out")))
    missing = run("nowhere.jsonl", "--style", "local:typos", "--output", str(tmp_path / "out"))
    assert "nowhere.jsonl does not exist" in one_line(missing)


def test_local_styles_need_no_endpoint(tmp_path: Path) -> None:
    data, output = write_pairs(tmp_path / "pairs.jsonl", 5), tmp_path / "out"
    options = [str(data), "--style", "local:casing", "--output", str(output), "--seed", "3"]
    result = run(*options)
    assert result.exit_code == 0
    assert "Token overlap (words and marks" in result.output
    rows = rows_of(output)
    assert [row["orig_index"] for row in rows] == list(range(5))
    assert all(row["chosen"] in (row["orig_chosen"].upper(), row["orig_chosen"].lower()) for row in rows)
    assert "is finished" in run(*options).output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pairs.jsonl"]


def test_a_slice_is_rewritten_into_a_split_without_it(tmp_path: Path) -> None:
    data, output = write_pairs(tmp_path / "pairs.jsonl", 5), tmp_path / "out"
    result = run(str(data), "--style", "local:casing", "--output", str(output), "--split", "test[1:3]")
    assert result.exit_code == 0
    assert [row["orig_index"] for row in rows_of(output)] == [1, 2]


# --- the Batch API -------------------------------------------------------------------------------------------------


def batch(data: Path, output: Path, endpoint: Endpoint, *more: str) -> Result:
    return run(*arguments(data, output, endpoint, "--batch-api", "--poll-seconds", "0", *more))


def test_the_batch_api(tmp_path: Path, endpoint: Endpoint) -> None:
    data, output = write_pairs(tmp_path / "pairs.jsonl", 5), tmp_path / "out"
    refused = json.loads(data.read_text().splitlines()[4])["rejected"]
    endpoint.answer = lambda text: (400, "too long") if text == refused else reversed_words(text)
    result = batch(data, output, endpoint)
    assert result.exit_code == 0, result.output
    assert [row["orig_index"] for row in rows_of(output)] == [0, 1, 2, 3]
    assert rows_of(output)[2]["chosen"] == reversed_words(rows_of(output)[2]["orig_chosen"])
    assert "1 no answer (HTTP 400: too long)" in result.output
    assert endpoint.other.count("POST /v1/batches") == 1
    before = list(endpoint.other)
    assert "is finished" in batch(data, output, endpoint).output
    assert endpoint.other == before


def test_bad_answers_of_a_batch_are_retried_in_another(tmp_path: Path, endpoint: Endpoint) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", 2)
    endpoint.answer = lambda text: reversed_words(text) if endpoint.requests[text] > 1 else " "
    batch(data, tmp_path / "out", endpoint, "--on-bad", "retry")
    assert len(rows_of(tmp_path / "out")) == 2
    assert endpoint.other.count("POST /v1/batches") == 2
    assert set(endpoint.requests.values()) == {2}


def batch_requests() -> dict[str, Request]:
    prompts = [f"original text:\n{text}\nRewritten version:\n" for text in ("one text", "another text")]
    requests = [Request("m", prompt) for prompt in prompts]
    return {request.key: request for request in requests}


def test_a_restarted_command_waits_for_its_open_batch(tmp_path: Path, endpoint: Endpoint) -> None:
    requests, client = batch_requests(), ClientEndpoint(endpoint.url)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with open_journal(tmp_path / "j") as journal, pytest.raises(KeyboardInterrupt):
        ask_in_batches(client, requests, journal, lambda _: None, sleep=interrupted)
    waited: list[float] = []
    endpoint.polls_to_completion = 4
    with open_journal(tmp_path / "j") as journal:
        unanswered = ask_in_batches(client, requests, journal, lambda _: None, poll_seconds=7, sleep=waited.append)
        assert (unanswered, waited) == ({}, [7, 7])
        assert {journal.answers[key][0].text for key in requests} == {"text one", "text another"}
        assert not journal.open_batches
    assert endpoint.other.count("POST /v1/batches") == 1


def test_a_batch_created_just_before_a_kill_is_found_by_its_tag(tmp_path: Path, endpoint: Endpoint) -> None:
    requests, client = batch_requests(), ClientEndpoint(endpoint.url)
    with open_journal(tmp_path / "j") as journal:
        ask_in_batches(client, requests, journal, lambda _: None, sleep=lambda _: None)
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    assert json.loads(lines[0])["id"] is None
    (tmp_path / "j").write_text(lines[0])  # killed between the request for a batch and its answer
    with open_journal(tmp_path / "j") as journal:
        ask_in_batches(client, requests, journal, lambda _: None, sleep=lambda _: None)
        assert len(journal.answers_to(requests)) == 2
    assert endpoint.other.count("POST /v1/batches") == 1
    (tmp_path / "j").write_text(BatchJob(tag="never made").model_dump_json() + "\n")
    with open_journal(tmp_path / "j") as journal:
        ask_in_batches(client, requests, journal, lambda _: None, sleep=lambda _: None)
        assert len(journal.answers_to(requests)) == 2
    assert endpoint.other.count("POST /v1/batches") == 2


def test_answers_of_a_batch_are_journaled_once(tmp_path: Path, endpoint: Endpoint) -> None:
    requests, client = batch_requests(), ClientEndpoint(endpoint.url)
    with open_journal(tmp_path / "j") as journal:
        ask_in_batches(client, requests, journal, lambda _: None, sleep=lambda _: None)
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["kind"] == BatchEnded(tag="x").kind
    (tmp_path / "j").write_text("".join(lines[:-2]))  # killed after the first answer of the two
    with open_journal(tmp_path / "j") as journal:
        ask_in_batches(client, requests, journal, lambda _: None, sleep=lambda _: None)
        assert [len(journal.answers[key]) for key in requests] == [1, 1]


def test_an_expired_batch_keeps_its_answers(tmp_path: Path, endpoint: Endpoint) -> None:
    requests, client = batch_requests(), ClientEndpoint(endpoint.url)
    endpoint.batch_outcome = "expired"
    endpoint.answer = lambda text: None if text == "one text" else reversed_words(text)
    with open_journal(tmp_path / "j") as journal, pytest.raises(RmkitError, match="batch_0 expired"):
        ask_in_batches(client, requests, journal, lambda _: None, sleep=lambda _: None)
    endpoint.batch_outcome, endpoint.answer = "completed", reversed_words
    with open_journal(tmp_path / "j") as journal:
        (left,) = (key for key in requests if key not in journal.answers)
        ask_in_batches(client, {left: requests[left]}, journal, lambda _: None, sleep=lambda _: None)
        assert [len(journal.answers[key]) for key in requests] == [1, 1]


def test_a_set_with_other_columns_is_rewritten(tmp_path: Path) -> None:
    rows = [{"q": "Who?", "answers": ["the cat", "a dog", "my fox"], "ratings": [1, 2, 3]}]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [str(tmp_path / "rated.jsonl"), "--style", "local:typos", "--split", "test", "--column", "prompt=q"]
    result = run(*options, "--pairing", "adjacent", "--output", str(tmp_path / "out"))
    assert "answers by ratings, pairing adjacent (index = 2 * row + number), standard, prompt from q" in result.output
    written = datasets.load_from_disk(str(tmp_path / "out"))["test"]
    assert written["orig_index"] == [0, 1]
    assert written["orig_chosen"] == ["my fox", "a dog"]
    templated = [{"prompt": "<|im_start|>user\nHi<|im_end|>\n", "chosen": "a", "rejected": "b"}]
    (tmp_path / "templated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in templated))
    options = [str(tmp_path / "templated.jsonl"), "--style", "local:typos", "--output", str(tmp_path / "text")]
    for mode, cause in (("error", "spells turns of a chat template"), ("read", "needs a model's chat template")):
        failed = run(*options, "--templated", mode)
        assert failed.exit_code == 2
        assert cause in failed.output
    run(*options, "--templated", "text")
