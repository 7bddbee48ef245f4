"""The quickstart's pairs: the experiment of Section 5.1 on generated statements, for the base of its own corpus.

Splits: `original_train`, `original_test`, `paraphrased_train`, `paraphrased_test`, `swapped_test`, `same_prefix_test`,
as `rmkit.data.sources.persona` describes them.
"""

from __future__ import annotations

from pydantic import PositiveInt

from rmkit.data.sources.base import Options, PairSource, Preparation, Splits


class QuickstartOptions(Options):
    """The defaults of `rmkit quickstart`."""

    seed: int = 0
    train: PositiveInt = 80
    test: PositiveInt = 40


def splits(preparation: Preparation) -> Splits:
    """The pairs, drawn with Python's own random generator."""
    from rmkit.data.corpus import persona_pairs

    options = preparation.options
    sets = persona_pairs(options.seed, options.train, options.test)
    preparation.count("pairs", sets)
    return sets


SOURCES = [PairSource("quickstart", "The quickstart's pairs, generated", "generated", QuickstartOptions, splits)]
