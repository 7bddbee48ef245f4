"""The steps of the paper's preparation: split, filter by length, draw. See `sources.base` for their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rmkit.errors import RmkitError

if TYPE_CHECKING:
    from rmkit.data.sources.base import Preparation, Row, Splits

EMPTY = "no text empty"
_AT_ONCE = 1000


def split_off(
    preparation: Preparation, rows: Sequence[Row], held_out: int, by: Literal["row", "prompt"] = "row"
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
    of_prompt: dict[str, list[Row]] = {}
    for row in rows:
        of_prompt.setdefault(row["prompt"], []).append(row)
    ordered = [of_prompt[prompts[each]] for each in preparation.permutation(len(prompts))]
    test: list[Row] = []
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


def length_tokenizer(name: str) -> Any:
    """The tokenizer that lengths are counted with.

    Raises:
        RmkitError: if there is none of that name.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise RmkitError(
            f"The tokenizer {name} for the length filter could not be loaded: {cause}",
            "Give as tokenizer a folder or hub id that this machine can reach, or none for no length filter.",
        ) from None


def token_counts(tokenizer: Any, texts: Sequence[str], description: str) -> list[int]:
    """Tokens of each text, with the special ones that the tokenizer adds."""
    from tqdm.auto import tqdm

    counts: list[int] = []
    for start in tqdm(range(0, len(texts), _AT_ONCE), desc=description, unit="k", leave=False):
        counts += map(len, tokenizer(list(texts[start : start + _AT_ONCE]), verbose=False)["input_ids"])
    return counts
