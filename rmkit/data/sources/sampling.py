"""The steps of the paper's preparation: split, filter by length, draw. See `sources.base` for their order."""

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
    """Permute once, the last `held_out` rows for testing. By prompt: permuted prompts, the last ones that hold as many.

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
        return {"train": [rows[each] for each in order[:cut]], "test": [rows[each] for each in order[cut:]]}
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    of_prompt: dict[str, list[PairDict]] = {}
    for row in rows:
        of_prompt.setdefault(row["prompt"], []).append(row)
    ordered = [of_prompt[prompts[each]] for each in preparation.permutation(len(prompts))]
    test: list[PairDict] = []
    while len(test) < held_out:
        test = [*ordered.pop(), *test]
    return {"train": [row for group in ordered for row in group], "test": test}


def within_length(preparation: Preparation, splits: Splits) -> Splits:
    """Without the pairs whose prompt or one of whose responses is too long."""
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
    """Each split permuted, and the first `train` and `test` rows of it; then without pairs of which a text is empty.

    Empty texts are left out last, although nothing can be done with them, so that the draws are the paper's.
    """
    taken: Splits = {}
    for split, rows in splits.items():
        order = preparation.permutation(len(rows))
        taken[split] = [rows[each] for each in order[: getattr(preparation.options, split) or len(rows)]]
    preparation.count("drawn", taken)
    usable = {split: [row for row in rows if all(map(str.strip, row.values()))] for split, rows in taken.items()}
    if usable != taken:
        preparation.count(EMPTY, usable)
    return usable
