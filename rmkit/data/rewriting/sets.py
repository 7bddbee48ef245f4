"""Rewritten sets: requesting rewrites, assembling pairs from them, writing the folder."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmkit.data.conversations import (
    assistant_texts,
    parse_response,
    prompt_columns,
    response_columns,
    with_assistant_texts,
)
from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.data.rewriting.checks import Bounds, problem
from rmkit.data.rewriting.client import Request, Unanswered
from rmkit.data.rewriting.journal import Answer, Journal
from rmkit.data.rewriting.local import rewrite_locally
from rmkit.data.rewriting.styles import Style
from rmkit.data.rewriting.token_overlap import Tokenize, mean_overlap
from rmkit.data.rows import quiet_datasets
from rmkit.errors import RmkitError
from rmkit.files import replacing, write_json

FORMAT = 1
CARD = "rewrite.json"
COLUMNS = ("orig_index", "prompt", "chosen", "rejected", "orig_chosen", "orig_rejected")

Ask = Callable[[Mapping[str, Request]], Unanswered]


@dataclass(frozen=True)
class Rewrites:
    """Rewrites and problems, by original text. A text without an answer has a problem and no rewrite."""

    texts: Mapping[str, str]
    problems: Mapping[str, str] = field(default_factory=dict)


def distinct_responses(data: PreferenceData) -> list[str]:
    """The distinct texts of a set's responses, in order of first occurrence: those of every turn of the assistant."""
    responses = (response for pair in data for response in (pair.chosen, pair.rejected))
    return list(dict.fromkeys(text for response in responses for text in assistant_texts(response)))


def ask_for_rewrites(
    requests: Mapping[str, Request],
    style: Style,
    journal: Journal,
    ask: Ask,
    *,
    attempts: int = 1,
    bounds: Bounds | None = None,
) -> Rewrites:
    """Rewrites of texts, from the journal or, if it has none, from the model.

    Args:
        requests: original text -> request.
        attempts: the maximum number of answers per text, requested until one passes the checks.

    Raises:
        RmkitError: as `ask`.
    """
    unanswered: Unanswered = {}

    def is_pending(text: str, request: Request) -> bool:
        answers = journal.answers_to([request.key])
        if request.key in unanswered or len(answers) >= attempts:
            return False
        return not answers or _best_answer(text, answers, style, bounds)[1] is not None

    while pending := {request.key: request for text, request in requests.items() if is_pending(text, request)}:
        unanswered |= ask(pending)

    texts: dict[str, str] = {}
    problems: dict[str, str] = {}
    for text, request in requests.items():
        answers = journal.answers_to([request.key])
        if not answers:
            problems[text] = f"no answer ({unanswered[request.key]})"
            continue
        answer, found = _best_answer(text, answers, style, bounds)
        texts[text] = answer.text
        if found is not None:
            problems[text] = found
    return Rewrites(texts, problems)


def _best_answer(
    text: str, answers: Sequence[Answer], style: Style, bounds: Bounds | None
) -> tuple[Answer, str | None]:
    """The first answer that passes the checks, else the last one; and its problem."""
    checked = [(answer, problem(text, answer, style, bounds)) for answer in answers]
    return next((pair for pair in checked if pair[1] is None), checked[-1])


def rewrite_all_locally(texts: Iterable[str], style: str, seed: int) -> Rewrites:
    """Rewrites by a local rewriter. A text that it leaves unchanged is not a problem."""
    rewrites = {text: rewrite_locally(style, text, seed) for text in texts}
    return Rewrites(rewrites, {text: "empty" for text, rewrite in rewrites.items() if not rewrite.strip()})


def assemble(
    data: PreferenceData, rewrites: Rewrites, keep_bad: bool = False
) -> tuple[dict[str, list[Any]], Counter[str]]:
    """The columns of the rewritten set in the order of `data`, and the number of pairs left out by reason.

    A pair is left out if one of its rewrites has a problem (with `keep_bad`, only if it is missing or empty), or if
    both rewrites are the same text. In a response of several turns, the assistant's texts are rewritten.

    Raises:
        RmkitError: if no pair is left.
    """
    rows: dict[str, list[Any]] = {column: [] for column in COLUMNS}
    kept: list[PreferencePair] = []
    left_out: Counter[str] = Counter()
    for pair in data:
        responses = (pair.chosen, pair.rejected)
        texts = [text for response in responses for text in assistant_texts(response)]
        chosen, rejected = (with_assistant_texts(response, rewrites.texts) for response in responses)
        usable = keep_bad and all(rewrites.texts.get(text, "").strip() for text in texts)
        reasons = [] if usable else [rewrites.problems[text] for text in texts if text in rewrites.problems]
        if reasons:
            left_out[reasons[0]] += 1
        elif chosen == rejected:
            left_out["identical responses"] += 1
        else:
            kept.append(pair)
            row = (pair.index, pair.prompt, chosen, rejected, pair.chosen, pair.rejected)
            for column, value in zip(COLUMNS, row, strict=True):
                rows[column].append(value)
    if not rows["prompt"]:
        reason, count = left_out.most_common(1)[0]
        raise RmkitError(
            f"{data.name}: no pair is left, {count} of {len(data)} for: {reason}.",
            "Look at the answers in the journal; --on-bad keep accepts them unchanged.",
        )
    margins = [pair.margin for pair in kept]
    if any(margin is not None for margin in margins):
        rows["margin"] = margins
    rows |= prompt_columns(rows["prompt"])
    for names in (COLUMNS[2:4], COLUMNS[4:]):
        rows |= response_columns({name: rows[name] for name in names})
    return rows, left_out


def overlaps(rows: Mapping[str, Sequence[Any]], tokenize: Tokenize) -> tuple[float, float]:
    """Mean token overlap over all responses, of originals with themselves and of originals with their rewrites."""
    originals, rewrites = (
        ["\n".join(assistant_texts(parse_response(each, name))) for name in names for each in rows[name]]
        for names in (("orig_chosen", "orig_rejected"), ("chosen", "rejected"))
    )
    return (
        mean_overlap(zip(originals, originals, strict=True), tokenize),
        mean_overlap(zip(originals, rewrites, strict=True), tokenize),
    )


# --- the folder ----------------------------------------------------------------------------------------------------


def identity(fingerprint: str, settings: Mapping[str, Any]) -> str:
    """sha256 over the pairs and all settings that determine the content of a rewritten set."""
    relevant = {key: value for key, value in settings.items() if key != "source"}
    return hashlib.sha256(json.dumps([fingerprint, relevant], sort_keys=True).encode()).hexdigest()


def read_finished(output: Path, wanted: str, overwrite: bool = False) -> dict[str, Any] | None:
    """The card of the rewritten set in `output` if an equal command has finished it; None if it must be written.

    Raises:
        RmkitError: if `output` holds another rewritten set (unless `overwrite` is on) or anything else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        card: dict[str, Any] = json.loads((output / CARD).read_text(encoding="utf-8"))
        found = card["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RmkitError(f"{output} is not empty and not a rewritten set.", "Give another --output.") from None
    if found != wanted and not overwrite:
        raise RmkitError(
            f"{output} holds a set rewritten from other pairs or with other settings (see {CARD}).",
            "Give another --output, or --overwrite to replace it.",
        )
    return card if found == wanted else None


def write_set(output: Path, split: str, rows: Mapping[str, list[Any]], card: Mapping[str, Any]) -> None:
    """Write a save_to_disk folder with one split and the card, complete or not at all."""
    import datasets

    try:
        with quiet_datasets(), replacing(output) as temporary:
            datasets.DatasetDict({split: datasets.Dataset.from_dict(dict(rows))}).save_to_disk(str(temporary))
            write_json(temporary / CARD, {"format": FORMAT, **card})
    except OSError as error:
        raise RmkitError(f"{output} cannot be written: {error}.", "Give another --output.") from None


def read_set(output: Path, split: str) -> dict[str, list[Any]]:
    """Read the columns of a rewritten set."""
    import datasets

    loaded = datasets.load_from_disk(str(output))[split]
    return {column: list(loaded[column]) for column in COLUMNS}
