"""Texts to which a chat template was already applied: recognised by their structure in every column, and refused."""

from __future__ import annotations

import datasets
import pytest
from formats import assistant, user, write

from rmkit.data.preferences import load_preferences
from rmkit.data.templated import KNOWN_MARKS, literal_marks
from rmkit.errors import RmkitError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


APPLIED = [
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nBe brief.<|im_end|>\n",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "<s>[INST] Hi [/INST]",
    "  [INST] Hi [/INST] Yes</s>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<|user|>\nHi</s>\n<|assistant|>\n",
    "Yes.<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\nNo.<|im_end|>\n",
]
PROSE = [
    "What does <|im_start|>user mean?",
    "ChatML: <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|> is how a turn looks.",
    "Yes.<|im_end|>",
    "<|im_start|>",
    "<|im_start|>usermode",
    "No.<|im_end|>\n<|im_start|>user\nSay Yes.",
    "[INSTALL] it",
    "<|endoftext|> is a token",
    "User: Hi\n\nAssistant: Hello",
]


def test_turns_are_told_from_prose():
    assert [text for text in APPLIED if not KNOWN_MARKS.spelled_in(text)] == []
    assert [text for text in PROSE if KNOWN_MARKS.spelled_in(text)] == []
    marks = literal_marks(["<|a|>", "<|a|>b"], ["<|e|>"])
    assert marks.spelled_in("<|a|>b x")
    assert marks.spelled_in("x<|a|>y<|e|><|a|>z<|e|>\n")
    assert not marks.spelled_in("x<|a|>y")
    assert literal_marks([], ["<|e|>"]) is None


ROW = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}


@pytest.mark.parametrize("column", ROW)
@pytest.mark.parametrize("text", [APPLIED[0], APPLIED[-1]])
def test_every_column_is_checked(tmp_path, column, text):
    path = str(write(tmp_path, [ROW, ROW | {column: text}]))
    with pytest.raises(RmkitError) as error:
        load_preferences(path)
    assert error.value.cause == (
        f"{path}: row 1, column {column} spells turns of a chat template, which was already applied."
    )
    assert "templated: read (turns) or text in the set (--templated)" in error.value.remedy
    data = load_preferences(path, templated="text")
    assert getattr(data.pairs[1], column) == text
    assert data.format is None
    read = load_preferences(path, templated="read")
    assert (read.templated, read.format) == ("read", "standard, texts with a chat template are read back into turns")


def test_prose_is_not_refused(tmp_path):
    rows = [{"prompt": text, "chosen": text, "rejected": f"{text} "} for text in PROSE]
    assert len(load_preferences(str(write(tmp_path, rows)))) == len(PROSE)


def test_messages_are_checked_too(tmp_path):
    row = {"prompt": [user(APPLIED[0])], "chosen": [assistant("Yes")], "rejected": [assistant("No")]}
    with pytest.raises(RmkitError, match="row 0, column prompt spells turns"):
        load_preferences(str(write(tmp_path, [row])))


def test_texts_without_a_prompt_are_checked_before_they_are_split(tmp_path):
    row = {"chosen": f"{APPLIED[0]}Yes, sir", "rejected": f"{APPLIED[0]}Yes, no"}
    path = str(write(tmp_path, [row]))
    with pytest.raises(RmkitError, match="row 0, column chosen spells turns"):
        load_preferences(path)
    (as_text,) = load_preferences(path, templated="text")
    assert as_text.chosen == "sir"


def test_prose_without_a_prompt_column_is_not_refused(tmp_path):
    question = "What does <|endoftext|> mean, and [INST] or <|fim_prefix|>?"
    row = {"chosen": f"{question} It ends a text.", "rejected": f"{question} Nothing."}
    (pair,) = load_preferences(str(write(tmp_path, [row])))
    assert (pair.prompt, pair.chosen, pair.rejected) == (question, "It ends a text.", "Nothing.")
