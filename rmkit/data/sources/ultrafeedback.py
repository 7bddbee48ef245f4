"""UltraFeedback, binarised: the paper's general chat setting (Appendix D.3).

Pairs with equal scores are dropped (and those whose "chosen" response has the lower one); the answer is the second
message. Then come the length filter, the filter of prompts about translation, and the draws (see `sources.base`): first
the training rows are permuted, then the test rows. The paper's log counts 53748, 39022, 35936, 2000 training and 1728,
1246, 1145, 200 test rows after these steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rmkit.data.sources.base import FilteredOptions, PairSource, Preparation, Splits
from rmkit.data.sources.sampling import sampled, within_length
from rmkit.errors import RmkitError

HUB = "HuggingFaceH4/ultrafeedback_binarized"
COLUMNS = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")


class Options(FilteredOptions):
    """`without_translation` drops prompts with "translate" or "translation", whose answers cannot be translated."""

    without_translation: bool = True


def splits(preparation: Preparation) -> Splits:
    """The preparation of the paper."""
    found = {split: preparation.read(f"{split}_prefs", COLUMNS) for split in ("train", "test")}
    preparation.count("in the source", found)
    pairs = {
        split: [_pair(row, f"{split}_prefs: row {number}") for number, row in enumerate(rows) if _is_decided(row)]
        for split, rows in found.items()
    }
    preparation.count("score_chosen > score_rejected", pairs)
    pairs = within_length(preparation, pairs)
    if preparation.options.without_translation:
        pairs = {split: [row for row in rows if not _translates(row["prompt"])] for split, rows in pairs.items()}
        preparation.count("no translation asked for", pairs)
    return sampled(preparation, pairs)


def _is_decided(row: Mapping[str, Any]) -> bool:
    return bool(row["score_chosen"] > row["score_rejected"])


def _translates(prompt: str) -> bool:
    return "translate" in prompt.lower() or "translation" in prompt.lower()


def _pair(row: Mapping[str, Any], where: str) -> dict[str, str]:
    return {
        "prompt": row["prompt"],
        "chosen": _answer(row, "chosen", where),
        "rejected": _answer(row, "rejected", where),
    }


def _answer(row: Mapping[str, Any], column: str, where: str) -> str:
    try:
        return str(row[column][1]["content"])
    except (IndexError, KeyError, TypeError):
        raise RmkitError(
            f"{where}: {column} holds {str(row[column])[:40]!r}, not a question and an answer.",
            "It should be a list of two messages, each with a role and a content.",
        ) from None


SOURCES = [PairSource("ultrafeedback", "UltraFeedback, binarised: general chat", HUB, Options, splits)]
