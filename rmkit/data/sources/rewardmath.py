"""RewardMATH in pairs: the paper's math setting (Appendix D.3).

Draws (see `sources.base`): a permutation of all rows, of which the last 1000 are for testing; after the length filter,
a permutation of the training rows and one of the test rows. The paper's log counts 3347, 2959, 2000 training and 1000,
878, 200 test rows, and it trains on 1000 of the 2000, drawn with seed 517
(`limit: 1000, limit_seed: 517`).

A chosen response is paired with several rejected ones, so nearly every test prompt and its chosen response are also in
the training rows. `split_by: prompt` splits the prompts instead, so that no prompt is in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import PositiveInt

from rmkit.data.sources.base import FilteredOptions, PairSource, Preparation, Splits
from rmkit.data.sources.sampling import sampled, split_off, within_length
from rmkit.errors import RmkitError

HUB = "RewardMATH/RewardMATH_pairwise"
COLUMNS = ("problem", "eval_solution_A", "eval_solution_B", "chosen_position")


class Options(FilteredOptions):
    """`held_out` rows are split off for testing, of which `test` are drawn."""

    held_out: PositiveInt = 1000
    split_by: Literal["row", "prompt"] = "row"


def splits(preparation: Preparation) -> Splits:
    """The preparation of the paper."""
    rows = [_pair(row, f"row {number}") for number, row in enumerate(preparation.read("test", COLUMNS))]
    options = preparation.options
    pairs = split_off(preparation, rows, options.held_out, options.split_by)
    preparation.count(f"split by {options.split_by}", pairs)
    return sampled(preparation, within_length(preparation, pairs))


def _pair(row: Mapping[str, Any], where: str) -> dict[str, str]:
    position = row["chosen_position"]
    if position not in ("A", "B"):
        raise RmkitError(f"{where}: chosen_position is {position!r}.", "It should be A or B.")
    other = "B" if position == "A" else "A"
    return {
        "prompt": row["problem"],
        "chosen": _solution(row, position, where),
        "rejected": _solution(row, other, where),
    }


def _solution(row: Mapping[str, Any], position: str, where: str) -> str:
    steps = row[f"eval_solution_{position}"]
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise RmkitError(
            f"{where}: eval_solution_{position} holds {str(steps)[:40]!r}.", "It should be a list of steps."
        )
    return " ".join(steps)


SOURCES = [PairSource("rewardmath", "RewardMATH in pairs: math", HUB, Options, splits)]
