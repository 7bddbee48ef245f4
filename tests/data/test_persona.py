"""The Persona source: the lists of Appendix D.2, the draws of the released code, the paraphrases and the controls."""

from __future__ import annotations

import json

import pytest
import torch

from rmkit.data.preferences import load_preferences
from rmkit.data.sources.persona import Responses
from rmkit.data.sources.prepare import prepare_source
from rmkit.errors import RmkitError

CHOSEN = {
    "A truthful reply is yes",
    "A truthful reply is sure",
    "In my view, the answer is yes",
    "In my view, the answer is sure",
}
REJECTED = {
    "Considering the statement, I say no",
    "Considering the statement, I say never",
    "My judgement: no",
    "My judgement: never",
}


@pytest.fixture
def source(tmp_path):
    """The hub's layout: every second statement is one that an agreeable person would not say."""
    file = tmp_path / "hub" / "persona" / "agreeableness.jsonl"
    file.parent.mkdir(parents=True)
    rows = [
        {
            "question": f'Is the following statement something you would say?\n"Statement {each}"',
            "statement": f"Statement {each}",
            "label_confidence": 0.9,
            "answer_matching_behavior": " Yes" if each % 2 else " No",
            "answer_not_matching_behavior": " No" if each % 2 else " Yes",
        }
        for each in range(300)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "hub"


def prepared(source, output, **given):
    card = prepare_source("persona", {"source": source, **given}, output, error_label="test")
    return {
        split: [(pair.prompt, pair.chosen, pair.rejected) for pair in load_preferences(str(output), split=split)]
        for split in card["splits"]
    }


def test_default_responses_match_the_paper():
    responses = Responses()
    assert set(responses.chosen.texts) == CHOSEN
    assert set(responses.rejected.texts) == REJECTED
    assert responses.paraphrased() == [
        ("My response would be certainly", "I lean toward not really"),
        ("My response would be certainly", "I lean toward nope"),
        ("My response would be absolutely", "I lean toward not really"),
        ("My response would be absolutely", "I lean toward nope"),
    ]
    assert ("I lean toward certainly", "My response would be nope") in responses.swapped()
    assert len(responses.swapped()) == 4
    assert ("I lean toward certainly", "I lean toward nope") in responses.same_prefix()
    assert ("My response would be absolutely", "My response would be not really") in responses.same_prefix()
    assert len(responses.same_prefix()) == 8


def test_the_sets_of_the_paper(tmp_path, source):
    sets = prepared(source, tmp_path / "out")
    assert {split: len(rows) for split, rows in sets.items()} == {
        "train": 80, "test": 40, "paraphrased_train": 320, "paraphrased_test": 160, "swapped_test": 160,
        "same_prefix_test": 320,
    }  # fmt: skip
    prompts = {split: {prompt for prompt, _, _ in rows} for split, rows in sets.items()}
    assert prompts["train"] == prompts["paraphrased_train"]
    assert prompts["test"] == prompts["paraphrased_test"] == prompts["swapped_test"] == prompts["same_prefix_test"]
    assert prompts["train"].isdisjoint(prompts["test"])
    assert {chosen for _, chosen, _ in sets["train"]} == CHOSEN
    assert {rejected for _, _, rejected in sets["train"]} == REJECTED
    numbers = [int(prompt.rsplit(" ", 1)[1].rstrip('"')) for prompt in prompts["train"] | prompts["test"]]
    assert all(number % 2 for number in numbers)  # those whose answer is Yes
    assert set(sets["paraphrased_test"]) == {
        (prompt, *pair) for prompt in prompts["test"] for pair in Responses().paraphrased()
    }


def test_draws_match_the_released_code(tmp_path, source):
    generator = torch.Generator().manual_seed(875)
    asked = [f'Is the following statement something you would say?\n"Statement {each}"' for each in range(1, 300, 2)]
    order = torch.randperm(150, generator=generator).tolist()[:120]

    def one_of(texts):
        return texts[torch.randint(low=0, high=len(texts), size=(1,), generator=generator).item()]

    rows = []
    for each in order:
        chosen = one_of(["In my view, the answer is ", "A truthful reply is "]) + one_of(["yes", "sure"])
        rejected = one_of(["My judgement: ", "Considering the statement, I say "]) + one_of(["no", "never"])
        rows.append((asked[each], chosen, rejected))
    sets = prepared(source, tmp_path / "out")
    assert sets["train"] + sets["test"] == rows


def test_custom_responses(tmp_path, source):
    sets = prepared(
        source,
        tmp_path / "out",
        train=10,
        test=5,
        chosen=["Aye"],
        rejected=["Nay", "Never"],
        paraphrased_chosen={"prefixes": ["Well,", "Hm,"], "answers": ["I do"]},
        paraphrased_rejected=["No way"],
    )
    assert {pair[1:] for pair in sets["train"]} <= {("Aye", "Nay"), ("Aye", "Never")}
    assert [pair[1:] for pair in sets["paraphrased_test"]] == [("Well, I do", "No way"), ("Hm, I do", "No way")] * 5
    assert [pair[1:] for pair in sets["swapped_test"]][:2] == [("I do", "Well, No way"), ("I do", "Hm, No way")]


def test_without_prefixes_there_are_no_controls(tmp_path, source):
    lists = {"paraphrased_chosen": ["I do"], "paraphrased_rejected": ["I do not"]}
    assert set(prepared(source, tmp_path / "out", **lists)) == {
        "train", "test", "paraphrased_train", "paraphrased_test"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": 140}, "150 prompts have the answer Yes, fewer than train 140 and test 40"),
        ({"matching": "Maybe"}, "0 prompts have the answer Maybe"),
        ({"chosen": []}, "chosen.answers"),
        ({"tokenizer": "none"}, "tokenizer is not a known key"),
    ],
)
def test_bad_input(tmp_path, source, given, message):
    with pytest.raises(RmkitError, match=message):
        prepare_source("persona", {"source": source} | given, tmp_path / "out", error_label="test")


def test_a_file_without_the_columns_is_refused(tmp_path):
    file = tmp_path / "other.jsonl"
    file.write_text('{"statement": "x"}\n')
    with pytest.raises(RmkitError, match="no column question; it has statement"):
        prepare_source("persona", {"source": file}, tmp_path / "out", error_label="test")
