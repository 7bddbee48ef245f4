"""The card of a prepared set: origin, rows after each step, lengths, and overlap of test with train.

Written next to the data as card.json for programs and README.md for people.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

import rmkit
from rmkit.data.overlap import find_overlap
from rmkit.data.preferences import dataset_pairs, fingerprint
from rmkit.data.sources.lengths import length_tokenizer, token_counts
from rmkit.errors import RmkitError
from rmkit.files import write_json, write_text

Card = dict[str, Any]
CARD = "card.json"
FORMAT = 1


def describe(
    splits: Mapping[str, Any],
    name: str,
    source: str,
    revision: str | None,
    options: Any,
    steps: Sequence[Mapping[str, Any]],
) -> Card:
    """The card of prepared splits (`datasets.Dataset`s with prompt, chosen and rejected)."""
    chosen = options.model_dump(mode="json")
    pairs = {split: dataset_pairs(rows) for split, rows in splits.items()}
    return {
        "format": FORMAT,
        "rmkit_version": rmkit.__version__,
        "name": name,
        "source": source,
        "revision": revision,
        "seed": chosen.get("seed"),
        "options": chosen,
        "steps": list(steps),
        "splits": {
            split: {"rows": len(rows), "fingerprint": fingerprint(pairs[split]), "lengths": lengths(rows, options)}
            for split, rows in splits.items()
        },
        "overlap": {
            split: find_overlap(pairs["train"], pairs[split]).counts()
            for split in splits
            if "train" in splits and not split.endswith("train")
        },
    }


def lengths(rows: Any, options: Any) -> dict[str, Any]:
    """Mean, median and maximum length per column, in tokens if there is a tokenizer, else in characters.

    `longer_wins` and `shorter_wins` are the accuracies of these rules; a tie counts 1/2.
    """
    counts = _tokens if getattr(options, "tokenizer", None) is not None else _characters
    by_column = {column: counts(rows[column], options) for column in ("prompt", "chosen", "rejected")}
    difference = by_column["chosen"] - by_column["rejected"]
    longer = float(np.mean((difference > 0) + 0.5 * (difference == 0)))
    summary: dict[str, Any] = {"unit": "tokens" if counts is _tokens else "characters"}
    for column, values in by_column.items():
        summary[column] = {
            "mean": round(float(values.mean()), 3),
            "median": float(np.median(values)),
            "max": int(values.max()),
        }
    return summary | {"longer_wins": round(longer, 4), "shorter_wins": round(1 - longer, 4)}


def _characters(texts: Iterable[str], options: Any) -> np.ndarray:
    return np.fromiter(map(len, texts), dtype=np.int64)


def _tokens(texts: Iterable[str], options: Any) -> np.ndarray:
    return np.asarray(token_counts(length_tokenizer(options.tokenizer), list(texts), "lengths"), dtype=np.int64)


README = """\
# {{ card.name }}

Preference pairs (prompt, chosen, rejected) prepared by rmkit {{ card.rmkit_version }} from {{ card.source }}
{%- if card.revision %}, revision {{ card.revision }}{% endif %}
{%- if card.seed is not none %}, seed {{ card.seed }}{% endif %}.

{% set splits = card.splits | list -%}
{% if card.steps -%}
| step | {{ card.steps[0].rows | join(" | ") }} |
| --- |{% for _ in card.steps[0].rows %} ---: |{% endfor %}
{% for step in card.steps -%}
| {{ step.step }} | {{ step.rows.values() | join(" | ") }} |
{% endfor %}
{% endif -%}
| split | pairs | prompt | chosen | rejected | longest response | longer wins |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{% for name, split in card.splits.items() -%}
{% set length = split.lengths -%}
| {{ name }} | {{ split.rows }} | {{ "%.1f" | format(length.prompt.mean) }} \
| {{ "%.1f" | format(length.chosen.mean) }} | {{ "%.1f" | format(length.rejected.mean) }} \
| {{ [length.chosen.max, length.rejected.max] | max }} | {{ length.longer_wins }} |
{% endfor %}
Lengths are means in {{ card.splits[splits[0]].lengths.unit }}.
{% for name, shared in card.overlap.items() %}
Of the {{ shared.pairs }} pairs of {{ name }}, {{ shared.prompt }} have their prompt, {{ shared.chosen }} their chosen
response and {{ shared.prompt_and_chosen }} both in one pair of the training set.
{% endfor %}
{% for name, number in (card.cut or {}).items() -%}
{{ number }} of the {{ card.splits[name].rows }} pairs of {{ name }} have a response that ends in a letter or digit, \
unlike its original: it was probably cut.
{% endfor %}
Options: `{{ card.options | tojson }}`
"""


def write_card(card: Card, folder: Path) -> None:
    """Write card.json and README.md."""
    write_json(folder / CARD, card)
    # No escaping: only names and counts, no text of the data.
    write_text(folder / "README.md", Environment(keep_trailing_newline=True).from_string(README).render(card=card))


def read_card(folder: Path) -> Card | None:
    """The card of a prepared set; None if the folder has no card.

    Raises:
        RmkitError: if it cannot be read.
    """
    try:
        return dict(json.loads((folder / CARD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RmkitError(f"{folder / CARD} cannot be read: {error}.", "Prepare the set again.") from None


def refuse_to_replace(output: Path, overwrite: bool) -> None:
    """Check that preparing into `output` loses nothing.

    Raises:
        RmkitError: if `output` exists and is not empty, unless it is a prepared set and `overwrite` is on.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / CARD).exists():
        raise RmkitError(f"{output} exists and is not a prepared set.", "Give another --output.")
    if not overwrite:
        raise RmkitError(f"{output} holds a prepared set.", "Give another --output, or --overwrite to replace it.")
