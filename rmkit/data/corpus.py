"""The quickstart's data: a generated corpus for a small language model, and the pairs of Section 5.1 on it.

The paper fine-tunes pretrained language models, which already know that "certainly" agrees and "nope" does not. A small
model learns that here, from a language of about 200 words: a reply is a neutral prefix ("I lean toward") and an answer
that agrees or disagrees ("nope"), and the text that follows depends on the answer.

The corpus contains neither the twelve responses of the experiment (Appendix D.2) nor the statements of its prompts, but
it does contain their words, and the same answers after other prefixes. Pure Python, deterministic for a seed.

Two caveats about results on it: the base learns the meaning of replies (it answers the follow-up question without
error), but of the verification format it learns only that it ends in Yes or No; which of them stays at chance. And
results of IM-RMs depend on the choice of prefixes, see `PREFIXES`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator

from rmkit.config.recipe import VERIFICATION_PROMPT
from rmkit.data.sources import persona
from rmkit.data.sources.persona import Responses

Document = list[dict[str, str]]
"""A conversation for the chat template: turns with a role, "user" or "assistant", and their content."""

# --- Appendix D.2 --------------------------------------------------------------------------------------------------

PERSONA_PROMPT = "Is the following statement something you would say? {statement}"
_RESPONSES = Responses()
ORIGINAL_CHOSEN = _RESPONSES.chosen.texts
ORIGINAL_REJECTED = _RESPONSES.rejected.texts
PARAPHRASED_CHOSEN = _RESPONSES.paraphrased_chosen.texts
PARAPHRASED_REJECTED = _RESPONSES.paraphrased_rejected.texts
EXPERIMENT_RESPONSES = frozenset(ORIGINAL_CHOSEN + ORIGINAL_REJECTED + PARAPHRASED_CHOSEN + PARAPHRASED_REJECTED)

# --- the language --------------------------------------------------------------------------------------------------

PREFIXES = [
    "A truthful reply is",
    "In my view, the answer is",
    "Considering the statement, I say",
    "My judgement:",
    "My response would be",
    "I lean toward",
    "My honest reply is",
    "My short answer would be",
    "My own view:",
    "I would say",
    "To be honest, it is",
    "After some thought, I say",
]
"""The paper's six and six more.

Several begin with "My", as two of the paper's do. With only those two, "My" could be followed by nothing but
"judgement" and "response", so that an IM-RM probably gives the latter what it takes from the former: on two bases of
such a corpus its accuracy on the paraphrases after 9 steps was 0.01 to 0.28. On four bases of this corpus it was 0.00,
but up to 0.21 on one with another draw of the pairs (docs/quickstart.md). EX-RMs and EX-GRMs were at 1.00 on all.
"""
ANSWERS = {
    True: ["yes", "sure", "certainly", "absolutely", "definitely", "indeed", "of course", "with pleasure"],
    False: ["no", "never", "not really", "nope", "hardly", "not at all", "by no means", "rather not"],
}
"""Answers by polarity: True agrees, False disagrees."""

FOLLOW_UPS = [
    ("So do you agree with it?", {True: "I agree with it.", False: "I disagree with it."}),
    ("Does the statement fit you?", {True: "It fits me.", False: "It does not fit me."}),
    ("Would you say so again?", {True: "I would say so again.", False: "I would not say so again."}),
    ("Is it true or false for you?", {True: "It is true for me.", False: "It is false for me."}),
]
ENDINGS = {
    True: ["took the {item} and was glad", "had the {item} at once", "asked for more {item}"],
    False: ["left the {item} on the table", "gave the {item} back", "had something other than {item}"],
}

STATEMENT_PARTS = [
    ["I like to", "I try to", "I want to", "I love to", "I often", "I always"],
    ["help", "thank", "trust", "praise", "comfort", "welcome", "forgive", "visit", "support", "believe"],
    ["my friends", "my family", "my neighbours", "other people", "children", "strangers", "old people", "new people"],
    ["every day", "at work", "at home", "when they are sad", "when it is hard", "without a reason"],
]
FACTS = [  # thing, what is true of it, what is false of it
    ("snow", "cold", "hot"),
    ("fire", "hot", "cold"),
    ("grass", "green", "blue"),
    ("sky", "blue", "green"),
    ("coal", "black", "white"),
    ("salt", "white", "black"),
    ("sugar", "sweet", "sour"),
    ("lemon", "sour", "sweet"),
    ("stone", "hard", "soft"),
    ("wool", "soft", "hard"),
    ("iron", "heavy", "light"),
    ("feather", "light", "heavy"),
]
FACT_QUESTION = "Is the following statement true? The {thing} is {quality}."
NAMES = ["Anna", "Ben", "Eva", "Max", "Mia", "Tom"]
ITEMS = ["tea", "coffee", "bread", "soup", "milk", "cake", "fruit", "juice"]
PLACES = ["in the garden", "in the kitchen", "at school", "at home", "at work"]

MIXTURE = {"dialogue": 0.55, "story": 0.20, "verification": 0.15, "plain": 0.10}
"""Frequencies of the document types."""


def _statements() -> tuple[list[str], list[str]]:
    """All statements in a fixed split: three quarters for the corpus, the rest for the experiment."""
    statements = [" ".join(parts) + "." for parts in itertools.product(*STATEMENT_PARTS)]
    random.Random(0).shuffle(statements)
    cut = len(statements) // 4
    return statements[cut:], statements[:cut]


CORPUS_STATEMENTS, EXPERIMENT_STATEMENTS = _statements()
assert set(CORPUS_STATEMENTS).isdisjoint(EXPERIMENT_STATEMENTS)


def _replies() -> dict[tuple[str, bool], list[str]]:
    """(prefix, polarity) -> replies in the corpus: all but the responses of the experiment."""
    return {
        (prefix, polarity): [reply for answer in answers if (reply := f"{prefix} {answer}") not in EXPERIMENT_RESPONSES]
        for prefix in PREFIXES
        for polarity, answers in ANSWERS.items()
    }


REPLIES = _replies()
assert EXPERIMENT_RESPONSES.isdisjoint(itertools.chain.from_iterable(REPLIES.values()))

# --- documents -----------------------------------------------------------------------------------------------------


def quickstart_documents(seed: int) -> Iterator[Document]:
    """An endless stream of documents with the frequencies of `MIXTURE`, deterministic for a seed."""
    rng = random.Random(seed)
    makers = {"dialogue": dialogue, "story": story, "verification": verification, "plain": plain}
    names, weights = list(MIXTURE), list(MIXTURE.values())
    while True:
        (name,) = rng.choices(names, weights)
        yield makers[name](rng)


def reply(rng: random.Random, polarity: bool) -> str:
    """A prefix and an answer with a polarity.

    The prefix is drawn first, so that it is independent of the polarity although some replies are excluded.
    """
    return rng.choice(REPLIES[rng.choice(PREFIXES), polarity])


def dialogue(rng: random.Random) -> Document:
    """The experiment's prompt on another statement, a reply, and a follow-up question that its polarity answers."""
    polarity = rng.random() < 0.5
    question, answers = rng.choice(FOLLOW_UPS)
    return [
        _user(PERSONA_PROMPT.format(statement=rng.choice(CORPUS_STATEMENTS))),
        _assistant(reply(rng, polarity)),
        _user(question),
        _assistant(answers[polarity]),
    ]


def story(rng: random.Random) -> Document:
    """Someone is offered something, replies, and acts accordingly."""
    polarity = rng.random() < 0.5
    host, guest = rng.sample(NAMES, 2)
    item = rng.choice(ITEMS)
    answer = reply(rng, polarity) if rng.random() < 0.5 else rng.choice(ANSWERS[polarity])
    ending = rng.choice(ENDINGS[polarity]).format(item=item)
    place = rng.choice(PLACES)
    offer = f"{host} met {guest} {place} and asked: do you want {item}?"
    return [_assistant(f"{offer} {guest} said: {answer}. So {guest} {ending}.")]


def verification(rng: random.Random) -> Document:
    """The input format of EX-GRMs (Appendix D.2) on a fact: Yes if the reply agrees exactly when the fact is true."""
    true, polarity = rng.random() < 0.5, rng.random() < 0.5
    thing, right, wrong = rng.choice(FACTS)
    question = FACT_QUESTION.format(thing=thing, quality=right if true else wrong)
    return [
        _user(VERIFICATION_PROMPT.format(prompt=question, response=reply(rng, polarity))),
        _assistant("Yes" if true == polarity else "No"),
    ]


def plain(rng: random.Random) -> Document:
    """A few sentences, some of them facts."""
    sentences = []
    for _ in range(4):
        if rng.random() < 0.7:
            thing, right, _ = rng.choice(FACTS)
            sentences.append(f"The {thing} is {right}.")
        else:
            sentences.append(f"{rng.choice(NAMES)} had {rng.choice(ITEMS)} {rng.choice(PLACES)}.")
    return [_assistant(" ".join(sentences))]


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def corpus_fingerprint(seed: int, documents: int = 1000) -> str:
    """A hash of the first documents, which identifies the corpus of a cached base."""
    sample = list(itertools.islice(quickstart_documents(seed), documents))
    return hashlib.sha256(json.dumps(sample).encode()).hexdigest()


# --- pairs ---------------------------------------------------------------------------------------------------------


def persona_pairs(seed: int, train: int = 80, test: int = 40) -> dict[str, list[dict[str, str]]]:
    """The preference pairs of Section 5.1 (Appendix D.2) on generated statements that are not in the corpus.

    Replies of the two controls that are not the paper's paraphrases may be in the corpus.

    Returns:
        `original_train`, `original_test`, `paraphrased_train`, `paraphrased_test`, `swapped_test`, `same_prefix_test`,
        as `rmkit.data.sources.persona` describes them: pairs with a prompt, a chosen and a rejected response.
    """
    rng = random.Random(seed)
    prompts = [
        PERSONA_PROMPT.format(statement=statement) for statement in rng.sample(EXPERIMENT_STATEMENTS, train + test)
    ]
    sets = persona.persona_pairs({"train": prompts[:train], "test": prompts[train:]}, _RESPONSES, rng.randrange)
    return {f"original_{name}" if name in ("train", "test") else name: pairs for name, pairs in sets.items()}


# --- words ---------------------------------------------------------------------------------------------------------


def vocabulary_words() -> list[str]:
    """The words, punctuation marks and line break of the corpus, statements, responses and prompts, sorted."""
    texts: Iterable[str] = [
        *itertools.chain.from_iterable(STATEMENT_PARTS),
        *itertools.chain.from_iterable(ANSWERS.values()),
        *itertools.chain.from_iterable((question, *answers.values()) for question, answers in FOLLOW_UPS),
        *(ending.format(item="") for endings in ENDINGS.values() for ending in endings),
        *itertools.chain.from_iterable(FACTS),
        *[*PREFIXES, *NAMES, *ITEMS, *PLACES, *EXPERIMENT_RESPONSES],
        PERSONA_PROMPT.format(statement="."),
        FACT_QUESTION.format(thing="", quality=""),
        VERIFICATION_PROMPT.format(prompt="", response=""),
        "met and asked: do you want? said: So had. Yes No",
    ]
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]|\n", text)})
