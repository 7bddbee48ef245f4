"""The math and code subsets of RewardBench: domain shifts of the paper (Appendix D.3).

Draws (see `sources.base`): a permutation of the subset's rows, of which the last 400 (math) or 900 (code) are for
testing; after the length filter, a permutation of the training rows and one of the test rows. The paper's logs count
47, 34, 34 training and 400, 279, 200 test rows for math, and 84, 84, 84 and 900, 899, 200 for code. (The released code
holds out 492 of code; the released set and its log are of a run with 900.) The whole of RewardBench is a suite
(recipes/suites).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from rmkit.data.sources.base import FilteredOptions, PairSource, Preparation, Splits
from rmkit.data.sources.sampling import sampled, split_off, within_length
from rmkit.errors import RmkitError

HUB = "allenai/reward-bench"
PAIR = ("prompt", "chosen", "rejected")


class MathOptions(FilteredOptions):
    """`held_out` rows are split off for testing, of which `test` are drawn; the others are training rows."""

    train: NonNegativeInt = 0
    held_out: PositiveInt = 400
    split_by: Literal["row", "prompt"] = "row"


class CodeOptions(MathOptions):
    """The options for math with the paper's `held_out` for code."""

    held_out: PositiveInt = 900


def splits(preparation: Preparation, subset: str) -> Splits:
    """The preparation of the paper for the subsets that match a pattern, such as hep-*."""
    found = preparation.read("filtered", (*PAIR, "subset"))
    rows = [{column: row[column] for column in PAIR} for row in found if fnmatchcase(row["subset"], subset)]
    if not rows:
        present = ", ".join(sorted(set(found["subset"]))[:12]) or "none"
        raise RmkitError(f"No row is of the subset {subset}; the subsets are {present}.", "Give a copy that has it.")
    options = preparation.options
    pairs = split_off(preparation, rows, options.held_out, options.split_by)
    preparation.count(f"subset {subset}, split by {options.split_by}", pairs)
    return sampled(preparation, within_length(preparation, pairs))


SOURCES = [
    PairSource("rewardbench_math", "RewardBench, math-prm", HUB, MathOptions, partial(splits, subset="math-prm")),
    PairSource("rewardbench_code", "RewardBench, hep-*", HUB, CodeOptions, partial(splits, subset="hep-*")),
]
