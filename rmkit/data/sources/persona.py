"""Persona: the controlled experiments on token-level shifts (Section 5.1, Appendix D.2).

Prompts ask "would you say this?" of a statement that an agreeable person would say; chosen responses agree, rejected
ones disagree. A response is a prefix and an answer; every prompt gets one of the 2 x 2 chosen and one of the 2 x 2
rejected responses at random. The other sets have all combinations for every prompt:

    train, test                             the original responses, drawn
    paraphrased_train, paraphrased_test     other prefixes and answers that mean the same
    swapped_test                            a control: the paraphrases with their prefixes exchanged
    same_prefix_test                        a control: both responses with the same prefix, for every prefix

The controls are not in the paper. The paraphrased chosen responses begin with "My", as two of the original rejected
ones do, which misleads a model that follows tokens; with exchanged prefixes the same effect helps it.

Draws, all from one generator, in the order of the released code: a permutation of the prompts, of which the first are
for training and the next for testing; then for every prompt the prefix and the answer of the chosen response, and the
prefix and the answer of the rejected one. The paper's data seed for these experiments is 875.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt

from rmkit.config.strict_yaml import StrictModel
from rmkit.data.sources.base import Options, PairDict, PairSource, Preparation, Splits
from rmkit.errors import RmkitError

HUB = "Anthropic/model-written-evals"
FILE = "persona/agreeableness.jsonl"
COLUMNS = ("question", "answer_matching_behavior")


class Replies(StrictModel):
    """Responses composed of every prefix with every answer. A plain list of responses is read as answers."""

    prefixes: Annotated[list[str], Field(min_length=1)] = [""]
    answers: Annotated[list[str], Field(min_length=1)]

    def text(self, prefix: int, answer: int) -> str:
        """The response with this prefix and this answer."""
        return join_reply(self.prefixes[prefix], self.answers[answer])

    @property
    def texts(self) -> list[str]:
        """All responses, prefix by prefix."""
        return [join_reply(prefix, answer) for prefix, answer in product(self.prefixes, self.answers)]


def join_reply(prefix: str, answer: str) -> str:
    """A response from its parts."""
    return f"{prefix} {answer}".strip()


ReplyList = Annotated[Replies, BeforeValidator(lambda given: {"answers": given} if isinstance(given, list) else given)]


class Responses(StrictModel):
    """The lists of Appendix D.2, in the order of the released experiment plan, or custom ones."""

    chosen: ReplyList = Replies(prefixes=["In my view, the answer is", "A truthful reply is"], answers=["yes", "sure"])
    rejected: ReplyList = Replies(
        prefixes=["My judgement:", "Considering the statement, I say"], answers=["no", "never"]
    )
    paraphrased_chosen: ReplyList = Replies(prefixes=["My response would be"], answers=["certainly", "absolutely"])
    paraphrased_rejected: ReplyList = Replies(prefixes=["I lean toward"], answers=["not really", "nope"])

    def paraphrased(self) -> list[tuple[str, str]]:
        """All pairs of paraphrases."""
        return list(product(self.paraphrased_chosen.texts, self.paraphrased_rejected.texts))

    def swapped(self) -> list[tuple[str, str]]:
        """All pairs of paraphrases, with the prefixes of chosen and rejected responses exchanged."""
        chosen, rejected = self.paraphrased_chosen, self.paraphrased_rejected
        return list(
            product(
                Replies(prefixes=rejected.prefixes, answers=chosen.answers).texts,
                Replies(prefixes=chosen.prefixes, answers=rejected.answers).texts,
            )
        )

    def same_prefix(self) -> list[tuple[str, str]]:
        """All pairs of the paraphrases' answers, with the same prefix on both sides, for every prefix."""
        chosen, rejected = self.paraphrased_chosen, self.paraphrased_rejected
        prefixes = dict.fromkeys([*chosen.prefixes, *rejected.prefixes])
        return [
            (join_reply(prefix, good), join_reply(prefix, bad))
            for prefix, good, bad in product(prefixes, chosen.answers, rejected.answers)
        ]


class PersonaOptions(Options, Responses):
    """`matching` is the answer that shows the trait; Yes in the paper."""

    seed: int = 875
    train: PositiveInt = 80
    test: PositiveInt = 40
    matching: str = "Yes"


def persona_pairs(
    prompts: Mapping[str, Sequence[str]], responses: Responses, draw: Callable[[int], int]
) -> dict[str, list[PairDict]]:
    """The sets that the docstring of this module describes, by name.

    Args:
        prompts: by split (train, test).
        draw: draw(n) returns a random number from 0..n-1.
    """

    def drawn(replies: Replies) -> str:
        prefix = draw(len(replies.prefixes))
        return replies.text(prefix, draw(len(replies.answers)))

    sets = {
        split: [_row(prompt, drawn(responses.chosen), drawn(responses.rejected)) for prompt in texts]
        for split, texts in prompts.items()
    }
    for split, texts in prompts.items():
        sets[f"paraphrased_{split}"] = _combine(texts, responses.paraphrased())
    if responses.paraphrased_chosen.prefixes != responses.paraphrased_rejected.prefixes:
        sets["swapped_test"] = _combine(prompts["test"], responses.swapped())
        sets["same_prefix_test"] = _combine(prompts["test"], responses.same_prefix())
    return sets


def _combine(prompts: Iterable[str], pairs: Sequence[tuple[str, str]]) -> list[PairDict]:
    return [_row(prompt, *pair) for prompt in prompts for pair in pairs]


def _row(prompt: str, chosen: str, rejected: str) -> PairDict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def splits(preparation: Preparation) -> Splits:
    """The sets on the prompts of the Persona data."""
    options = preparation.options
    found: Any = preparation.read("train", COLUMNS, file=FILE)
    matching = [
        row["question"]
        for row in found
        if str(row["answer_matching_behavior"]).strip().lower() == options.matching.strip().lower()
    ]
    preparation.count(f"answer {options.matching} shows the trait", {"prompts": matching})
    if len(matching) < options.train + options.test:
        raise RmkitError(
            f"{len(matching)} prompts have the answer {options.matching}, fewer than train {options.train} and test "
            f"{options.test}.",
            "Lower train or test, or give another file.",
        )
    order = preparation.permutation(len(matching))[: options.train + options.test]
    prompts = [matching[number] for number in order]
    by_split = {"train": prompts[: options.train], "test": prompts[options.train :]}
    return persona_pairs(by_split, options, preparation.draw)


SOURCES = [PairSource("persona", "Persona, agreeableness: controlled token-level shifts", HUB, PersonaOptions, splits)]
