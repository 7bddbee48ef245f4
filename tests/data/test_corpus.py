"""The generated corpus: held-out texts, independence of prefix and polarity, and the pairs of Section 5.1."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter

import pytest

from rmkit.config.recipe import VERIFICATION_PROMPT
from rmkit.data import corpus

DOCUMENTS = list(itertools.islice(corpus.quickstart_documents(seed=0), 6000))
VERIFICATION = re.compile(
    re.escape(VERIFICATION_PROMPT).replace(r"\{prompt\}", "(?P<prompt>.*)").replace(r"\{response\}", "(?P<response>.*)")
)


def kind(document):
    if len(document) == 4:
        return "dialogue"
    if len(document) == 2:
        return "verification"
    return "story" if "asked" in document[0]["content"] else "plain"


def polarity(reply):
    return reply.removeprefix(prefix(reply) + " ") in corpus.ANSWERS[True]


def prefix(reply):
    return next(each for each in corpus.PREFIXES if reply.startswith(each + " "))


def of_kind(name):
    return [document for document in DOCUMENTS if kind(document) == name]


def dialogue_replies():
    return [document[1]["content"] for document in of_kind("dialogue")]


def test_the_experiment_is_held_out():
    text = json.dumps(DOCUMENTS)
    for response in corpus.EXPERIMENT_RESPONSES:
        assert not re.search(re.escape(response) + r"\b", text), response
    prompts = {document[0]["content"] for document in of_kind("dialogue")}
    pairs = itertools.chain.from_iterable(corpus.persona_pairs(seed=0).values())
    assert prompts.isdisjoint(pair["prompt"] for pair in pairs)


def test_the_corpus_has_the_words_of_the_experiment():
    assert {prefix(reply) for reply in dialogue_replies()} == set(corpus.PREFIXES)
    assert {reply.removeprefix(prefix(reply) + " ") for reply in dialogue_replies()} == {
        answer for answers in corpus.ANSWERS.values() for answer in answers
    }


def test_proportions():
    counts = Counter(map(kind, DOCUMENTS))
    for name, share in corpus.MIXTURE.items():
        assert counts[name] / len(DOCUMENTS) == pytest.approx(share, abs=0.02)


def test_prefixes_are_independent_of_the_polarity():
    counts = Counter((prefix(reply), polarity(reply)) for reply in dialogue_replies())
    total = sum(counts.values())
    agreeing = sum(counts[each, True] for each in corpus.PREFIXES) / total
    chi_square = 0.0
    for each in corpus.PREFIXES:
        for agrees, share in ((True, agreeing), (False, 1 - agreeing)):
            expected = (counts[each, True] + counts[each, False]) * share
            chi_square += (counts[each, agrees] - expected) ** 2 / expected
    assert chi_square < 24.7  # the 99 % quantile at 11 degrees of freedom
    assert agreeing == pytest.approx(0.5, abs=0.03)


def test_follow_up_answers_depend_only_on_the_polarity():
    answers = {}
    for _, reply, question, answer in of_kind("dialogue"):
        key = question["content"], polarity(reply["content"])
        answers.setdefault(key, set()).add(answer["content"])
    assert len(answers) == 2 * len(corpus.FOLLOW_UPS)
    assert all(len(each) == 1 for each in answers.values())


def test_verification_is_right_and_balanced():
    truth = {
        corpus.FACT_QUESTION.format(thing=thing, quality=quality): quality == right
        for thing, right, wrong in corpus.FACTS
        for quality in (right, wrong)
    }
    verdicts = Counter()
    for question, verdict in of_kind("verification"):
        asked = VERIFICATION.fullmatch(question["content"])
        true, agreed = truth[asked["prompt"]], polarity(asked["response"])
        assert verdict["content"] == ("Yes" if true == agreed else "No")
        verdicts[true, agreed] += 1
    total = sum(verdicts.values())
    assert all(
        verdicts[cell] / total == pytest.approx(0.25, abs=0.04) for cell in itertools.product([True, False], repeat=2)
    )


def test_the_corpus_is_deterministic_for_a_seed():
    again = list(itertools.islice(corpus.quickstart_documents(seed=0), 50))
    assert again == DOCUMENTS[:50]
    assert again != list(itertools.islice(corpus.quickstart_documents(seed=1), 50))
    assert corpus.corpus_fingerprint(0, 50) == corpus.corpus_fingerprint(0, 50) != corpus.corpus_fingerprint(1, 50)


def test_persona_pairs():
    pairs = corpus.persona_pairs(seed=3)
    assert {name: len(rows) for name, rows in pairs.items()} == {
        "original_train": 80,
        "original_test": 40,
        "paraphrased_train": 4 * 80,
        "paraphrased_test": 4 * 40,
        "swapped_test": 4 * 40,
        "same_prefix_test": 8 * 40,
    }
    prompts = {name: {row["prompt"] for row in rows} for name, rows in pairs.items()}
    assert prompts["original_train"] == prompts["paraphrased_train"]
    assert (
        prompts["original_test"]
        == prompts["paraphrased_test"]
        == prompts["swapped_test"]
        == prompts["same_prefix_test"]
    )
    assert prompts["original_train"].isdisjoint(prompts["original_test"])
    for split, count in (("train", 80), ("test", 40)):
        assert len(prompts[f"original_{split}"]) == count
        assert {row["chosen"] for row in pairs[f"original_{split}"]} == set(corpus.ORIGINAL_CHOSEN)
        assert {row["rejected"] for row in pairs[f"original_{split}"]} == set(corpus.ORIGINAL_REJECTED)
        assert {row["chosen"] for row in pairs[f"paraphrased_{split}"]} == set(corpus.PARAPHRASED_CHOSEN)
        assert {row["rejected"] for row in pairs[f"paraphrased_{split}"]} == set(corpus.PARAPHRASED_REJECTED)
    for row in itertools.chain.from_iterable(pairs.values()):
        assert polarity(row["chosen"])
        assert not polarity(row["rejected"])
    for row in pairs["swapped_test"]:
        assert (prefix(row["chosen"]), prefix(row["rejected"])) == ("I lean toward", "My response would be")
    for row in pairs["same_prefix_test"]:
        assert prefix(row["chosen"]) == prefix(row["rejected"])


def test_original_and_paraphrased_responses_share_no_answer():
    def answers(responses):
        return {response.removeprefix(prefix(response) + " ") for response in responses}

    original = answers(corpus.ORIGINAL_CHOSEN + corpus.ORIGINAL_REJECTED)
    assert original.isdisjoint(answers(corpus.PARAPHRASED_CHOSEN + corpus.PARAPHRASED_REJECTED))


def test_vocabulary_words_occur_in_the_corpus():
    def split(text):
        return re.findall(r"\w+|[^\w\s]|\n", text)

    seen = {word for document in DOCUMENTS for message in document for word in split(message["content"])}
    pairs = itertools.chain.from_iterable(corpus.persona_pairs(seed=0).values())
    asked = {word for pair in pairs for text in pair.values() for word in split(text)}
    assert set(corpus.vocabulary_words()) == seen
    assert asked <= seen
