"""A set of pairs with rewritten responses: which texts are asked for, which pairs are kept, what is written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rmkit.data.preferences import PreferenceData
from rmkit.data.rewriting.checks import Bounds, problem
from rmkit.data.rewriting.client import Request, Unanswered
from rmkit.data.rewriting.journal import Answer, Journal
from rmkit.data.rewriting.local import rewrite_locally
from rmkit.data.rewriting.overlap import Tokenize, mean_overlap
from rmkit.data.rewriting.styles import Style
from rmkit.data.rows import quiet_datasets
from rmkit.errors import RmkitError
from rmkit.files import replacing, write_json

FORMAT = 1
CARD = "rewrite.json"
COLUMNS = ("orig_index", "prompt", "chosen", "rejected", "orig_chosen", "orig_rejected")

Ask = Callable[[Mapping[str, Request]], Unanswered]


@dataclass(frozen=True)
class Rewrites:
    """What became of each text: its rewrite, and what is wrong with it. A text without an answer has no rewrite."""

    texts: Mapping[str, str]
    problems: Mapping[str, str] = field(default_factory=dict)


def distinct_responses(data: PreferenceData) -> list[str]:
    """Every response of a set once, in the order in which they first stand there."""
    return list(dict.fromkeys(text for pair in data for text in (pair.chosen, pair.rejected)))


def ask_for_rewrites(
    requests: Mapping[str, Request],
    style: Style,
    journal: Journal,
    ask: Ask,
    *,
    attempts: int = 1,
    bounds: Bounds | None = None,
) -> Rewrites:
    """The rewrites of texts, from the journal where it has them and from the model where not.

    Args:
        requests: by the text that each is for.
        attempts: how often a model may be asked for a text, until the checks find nothing wrong.

    Raises:
        RmkitError: as `ask`.
    """
    unanswered: Unanswered = {}

    def best(text: str) -> tuple[Answer | None, str | None]:
        answers = journal.answers_to([requests[text].key])
        judged = [(answer, problem(text, answer, style, bounds)) for answer in answers]
        return next((each for each in judged if each[1] is None), judged[-1] if judged else (None, None))

    def pending() -> dict[str, Request]:
        waiting = {}
        for text, request in requests.items():
            asked = len(journal.answers_to([request.key]))
            if request.key not in unanswered and asked < attempts and (asked == 0 or best(text)[1] is not None):
                waiting[request.key] = request
        return waiting

    while waiting := pending():
        unanswered |= ask(waiting)

    texts: dict[str, str] = {}
    problems: dict[str, str] = {}
    for text, request in requests.items():
        answer, wrong = best(text)
        if answer is not None:
            texts[text] = answer.text
        wrong = f"no answer ({unanswered[request.key]})" if answer is None else wrong
        if wrong is not None:
            problems[text] = wrong
    return Rewrites(texts, problems)


def rewrite_all_locally(texts: Iterable[str], style: str, seed: int) -> Rewrites:
    """The rewrites of a local rewriter. That it leaves a text without its kind of form as it is, is no mistake."""
    rewrites = {text: rewrite_locally(style, text, seed) for text in texts}
    return Rewrites(rewrites, {text: "empty" for text, rewrite in rewrites.items() if not rewrite.strip()})


def assemble(
    data: PreferenceData, rewrites: Rewrites, keep_bad: bool = False
) -> tuple[dict[str, list[Any]], Counter[str]]:
    """The columns of the rewritten set in the order of `data`, and how many pairs were left out for which reason.

    A pair is left out if one of its rewrites is bad (with `keep_bad`, only if there is none or it is empty), or if both
    are the same text.

    Raises:
        RmkitError: if no pair is left.
    """
    rows: dict[str, list[Any]] = {column: [] for column in COLUMNS}
    left_out: Counter[str] = Counter()
    for pair in data:
        responses = (pair.chosen, pair.rejected)
        chosen, rejected = (rewrites.texts.get(text, "") for text in responses)
        usable = keep_bad and chosen.strip() and rejected.strip()
        reasons = [] if usable else [rewrites.problems[text] for text in responses if text in rewrites.problems]
        if reasons:
            left_out[reasons[0]] += 1
        elif chosen == rejected:
            left_out["identical responses"] += 1
        else:
            row = (pair.index, pair.prompt, chosen, rejected, pair.chosen, pair.rejected)
            for column, value in zip(COLUMNS, row, strict=True):
                rows[column].append(value)
    if not rows["prompt"]:
        reason, count = left_out.most_common(1)[0]
        raise RmkitError(
            f"{data.name}: no pair is left, {count} of {len(data)} for: {reason}.",
            "Look at the answers in the journal; --on-bad keep takes them as they are.",
        )
    return rows, left_out


def overlaps(rows: Mapping[str, Sequence[str]], tokenize: Tokenize) -> tuple[float, float]:
    """Mean token overlap over all responses: of originals with themselves, and of originals with their rewrites."""
    originals = [*rows["orig_chosen"], *rows["orig_rejected"]]
    rewrites = [*rows["chosen"], *rows["rejected"]]
    return (
        mean_overlap(zip(originals, originals, strict=True), tokenize),
        mean_overlap(zip(originals, rewrites, strict=True), tokenize),
    )


# --- the folder ----------------------------------------------------------------------------------------------------


def identity(fingerprint: str, settings: Mapping[str, Any]) -> str:
    """sha256 over the pairs and everything else that decides what a rewritten set holds."""
    decisive = {key: value for key, value in settings.items() if key != "source"}
    return hashlib.sha256(json.dumps([fingerprint, decisive], sort_keys=True).encode()).hexdigest()


def read_finished(output: Path, wanted: str, overwrite: bool = False) -> dict[str, Any] | None:
    """The card of the rewritten set in `output` if a command like this one has finished it; None if it is to be made.

    Raises:
        RmkitError: if something else is there: another rewritten set (unless `overwrite` is on), or no such set.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        card: dict[str, Any] = json.loads((output / CARD).read_text(encoding="utf-8"))
        found = card["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RmkitError(
            f"{output} holds something that is no rewritten set.", "Give another --output; this one is left alone."
        ) from None
    if found != wanted and not overwrite:
        raise RmkitError(
            f"{output} holds a set rewritten from other pairs or with other settings (see {CARD}).",
            "Give another --output, or --overwrite to replace it.",
        )
    return card if found == wanted else None


def write_set(output: Path, split: str, rows: Mapping[str, list[Any]], card: Mapping[str, Any]) -> None:
    """A save_to_disk folder with one split and the card beside it, whole or not at all."""
    import datasets

    try:
        with quiet_datasets(), replacing(output) as temporary:
            datasets.DatasetDict({split: datasets.Dataset.from_dict(dict(rows))}).save_to_disk(str(temporary))
            write_json(temporary / CARD, {"format": FORMAT, **card})
    except OSError as error:
        raise RmkitError(f"{output} cannot be written: {error}.", "Give another --output.") from None


def read_set(output: Path, split: str) -> dict[str, list[Any]]:
    """The columns of a rewritten set."""
    import datasets

    loaded = datasets.load_from_disk(str(output))[split]
    return {column: list(loaded[column]) for column in COLUMNS}
