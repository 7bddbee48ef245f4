"""What an evaluation set has in common with the training set, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rmkit.data.preferences import PreferencePair


@dataclass(frozen=True)
class TrainingOverlap:
    """How many of an evaluation set's `size` pairs have a prompt of the training set, and how many are training pairs.

    Texts are compared but for spaces at their ends.
    """

    size: int
    prompts: int
    pairs: int

    def warning(self, name: str) -> str | None:
        """A line on what it means for the accuracy on the set `name`; None where nothing is shared."""
        if self.pairs == self.size:
            return f"WARNING: {name}: ALL {self.size} PAIRS ARE TRAINING PAIRS. Its accuracy is not about new pairs."
        if self.prompts:
            whole = f", {self.pairs} with both responses" if self.pairs else ""
            return f"warning: {name}: {self.prompts} of {self.size} pairs have their prompt in the training set{whole}"
        return None


def training_overlap(training: Sequence[PreferencePair], evaluation: Sequence[PreferencePair]) -> TrainingOverlap:
    """The overlap of an evaluation set with the training set."""
    own = {_pair(pair) for pair in evaluation}
    prompts = {prompt for prompt, *_ in own}
    shared_prompts, shared = set(), set()
    for pair in training:  # only what both have is held
        texts = _pair(pair)
        if texts[0] in prompts:
            shared_prompts.add(texts[0])
        if texts in own:
            shared.add(texts)
    return TrainingOverlap(
        size=len(evaluation),
        prompts=sum(_pair(pair)[0] in shared_prompts for pair in evaluation),
        pairs=sum(_pair(pair) in shared for pair in evaluation),
    )


def _pair(pair: PreferencePair) -> tuple[str, str, str]:
    return pair.prompt.strip(), pair.chosen.strip(), pair.rejected.strip()
