"""The steps of the paper's preparation: split, filter by length, sample. See `sources.base` for their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rmkit.data.sources.base import PairDict, Preparation, Splits
from rmkit.data.sources.lengths import length_tokenizer, token_counts
from rmkit.errors import RmkitError

EMPTY = "no text empty"


def split_off(
    preparation: Preparation, rows: Sequence[PairDict], held_out: int, by: Literal["row", "prompt"] = "row"
) -> Splits:
    """Permute the rows and split off the last `held_out` for testing; by prompt, the last prompts with as many rows.

    Raises:
        RmkitError: if no row would be left for training.
    """
    if len(rows) <= held_out:
        raise RmkitError(
            f"There are {len(rows)} rows, of which held_out={held_out} are for testing.", "Give a smaller held_out."
        )
    if by == "row":
        order = preparation.permutation(len(rows))
        cut = len(rows) - held_out
        return {"train": [rows[number] for number in order[:cut]], "test": [rows[number] for number in order[cut:]]}
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    by_prompt: dict[str, list[PairDict]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    ordered = [by_prompt[prompts[number]] for number in preparation.permutation(len(prompts))]
    test: list[PairDict] = []
    while len(test) < held_out:
        test = [*ordered.pop(), *test]
    return {"train": [row for group in ordered for row in group], "test": test}


def within_length(preparation: Preparation, splits: Splits) -> Splits:
    """The pairs without too long a prompt or response."""
    options = preparation.options
    if options.tokenizer is None:
        return splits
    limits = {"prompt": options.max_prompt, "chosen": options.max_response, "rejected": options.max_response}
    tokenizer = length_tokenizer(options.tokenizer)
    kept: Splits = {}
    for split, rows in splits.items():
        fits = [True] * len(rows)
        for column, limit in limits.items():
            lengths = token_counts(tokenizer, [row[column] for row in rows], f"length of {split} {column}")
            fits = [fit and length <= limit for fit, length in zip(fits, lengths, strict=True)]
        kept[split] = [row for row, fit in zip(rows, fits, strict=True) if fit]
    preparation.count(f"prompt <= {options.max_prompt}, responses <= {options.max_response} tokens", kept)
    return kept


def sampled(preparation: Preparation, splits: Splits) -> Splits:
    """Permute every split and use its first `train` or `test` rows; then drop pairs with an empty text.

    Empty texts are dropped last, so that the draws are the paper's.
    """
    drawn: Splits = {}
    for split, rows in splits.items():
        order = preparation.permutation(len(rows))
        drawn[split] = [rows[number] for number in order[: getattr(preparation.options, split) or len(rows)]]
    preparation.count("drawn", drawn)
    usable = {split: [row for row in rows if all(map(str.strip, row.values()))] for split, rows in drawn.items()}
    if usable != drawn:
        preparation.count(EMPTY, usable)
    return usable
