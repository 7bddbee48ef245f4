"""The formats of preference pairs: each gives the same pairs as the plain form, and what is not read is named."""

from __future__ import annotations

import csv
import json

import datasets
import pytest
from formats import CONVERSATIONS, MULTI_TURN, PLAIN, SINGLE_TURN, assistant, system, user, write

from rmkit.data.conversations import Message, as_text, json_column, messages, parse_prompt
from rmkit.data.overlap import find_overlap
from rmkit.data.preferences import PreferencePair, load_preferences
from rmkit.data.sources.use import reading_notes
from rmkit.errors import RmkitError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", SINGLE_TURN)
def test_every_format_of_a_single_turn_gives_plain_texts(tmp_path, name):
    rows, columns, description = SINGLE_TURN[name]
    data = load_preferences(str(write(tmp_path, rows)), columns=columns)
    assert list(data) == PLAIN
    assert data.format == description
    assert list(load_preferences(str(write(tmp_path, rows, "parquet")), columns=columns)) == PLAIN
    assert data.fingerprint == load_preferences(str(write(tmp_path, SINGLE_TURN["standard"][0]))).fingerprint


@pytest.mark.parametrize("name", MULTI_TURN)
def test_every_format_of_several_turns_gives_conversations(tmp_path, name):
    rows, columns, description = MULTI_TURN[name]
    data = load_preferences(str(write(tmp_path, rows)), columns=columns)
    wanted = (
        CONVERSATIONS if rows != MULTI_TURN["transcripts"][0] else [_without_system(pair) for pair in CONVERSATIONS]
    )
    assert list(data) == wanted
    assert [data.pairs[1]] == data.pairs[1:] == wanted[1:]
    assert data.format == description
    assert list(load_preferences(str(write(tmp_path, rows, "parquet")), columns=columns)) == wanted


def _without_system(pair):
    turns = tuple(turn for turn in pair.prompt if turn.role != "system")
    return PreferencePair(parse_prompt(turns, "x"), pair.chosen, pair.rejected, pair.index)


def test_a_csv_file_holds_texts(tmp_path):
    path = tmp_path / "pairs.csv"
    rows = [
        ["question", "chosen", "rejected", "a", "b", "note"],
        ["1,5\n", "007", "null", "2", "0.5", "n"],
        ["x", '"', "NaN", "1", "3", "n"],
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    pairs = [PreferencePair("1,5\n", "007", "null", 0), PreferencePair("x", '"', "NaN", 1)]
    assert list(load_preferences(str(path))) == pairs
    scored = load_preferences(str(path), columns={"margin": ["a", "b"]})
    assert [pair.margin for pair in scored] == [1.5, -2.0]
    assert "margin from a - b" in scored.format
    assert "is not a number" in refused(path, columns={"margin": ["a", "note"]}).cause
    path.write_text("chosen,rejected,chosen\na,b,c\n")
    assert refused(path).cause == f"{path} has two columns chosen."
    path.write_text("prompt,chosen,rejected\na,b,c\nd,e\n")
    assert f"{path} cannot be read" in refused(path).cause
    path.write_text("")
    assert refused(path).cause == f"{path} holds no rows."


def test_scores_are_a_margin_only_where_asked(tmp_path):
    path = write(tmp_path, [{"prompt": "p", "chosen": "c", "rejected": "r", "chosen_score": 8, "rejected_score": 2.5}])
    assert load_preferences(str(path)).pairs[0].margin is None
    data = load_preferences(str(path), columns={"margin": ["chosen_score", "rejected_score"]})
    assert data.pairs[0].margin == 5.5
    assert data.format == "standard, margin from chosen_score - rejected_score"


# --- rows that cannot be used --------------------------------------------------------------------------------------


def refused(path, **options):
    with pytest.raises(RmkitError) as error:
        load_preferences(str(path), **options)
    assert "\n" not in error.value.cause + error.value.remedy
    return error.value


BEGUN = {"chosen": [user("a"), assistant("b")]}
BOTH = {"chosen": [assistant("Yes")], "rejected": [assistant("No")]}


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (BOTH | {"prompt": [assistant("Hi")]}, "the prompt ends with a message of the role assistant"),
        (BOTH | {"prompt": [user("a"), system("b"), user("c")]}, "a system message after the first message"),
        (BOTH | {"prompt": [system("a"), system("b"), user("c")]}, "a system message after the first message"),
        (BOTH | {"prompt": [{"role": "tool", "content": "x"}, user("c")]}, "message 0 has the role 'tool'"),
        (BOTH | {"prompt": [user(" ")]}, "message 0 has no text"),
        (BOTH | {"prompt": [user("c") | {"name": "Eva"}]}, "message 0 has the key name"),
        (BOTH | {"prompt": [user([{"type": "image", "text": None}])]}, "message 0 has a part of type image"),
        (BOTH | {"prompt": [user("c")], "chosen": [user("me")]}, "the response is a message of the role user"),
        ({"prompt": "other", **BEGUN, "rejected": [user("a"), assistant("c")]}, "begin with another conversation"),
        (BEGUN | {"rejected": [user("d"), assistant("c")]}, "do not begin alike"),
        ({"chosen": "<|im_start|>user a b", "rejected": "<|im_start|>user a c"}, "spells turns of a chat template"),
        ({"chosen": "Yes", "rejected": "No"}, "do not begin alike"),
        (BOTH | {"prompt": "a", "images": ["x.png"]}, "has the column images; rmkit reads text only"),
        ({"instruction": "a", "question": "b", "chosen": "c", "rejected": "d"}, "several that may hold it"),
        ({"instruction": 3, "input": "b", "chosen": "c", "rejected": "d"}, "column instruction holds int, not text"),
        ({"conversations": [{"from": "function_call", "value": "x"}, {"from": "human", "value": "a"}],
          "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
         "message 0 has the role 'function_call'"),
        ({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "human", "value": "a"},
          "rejected": {"from": "gpt", "value": "b"}}, "the response is a message of the role user"),
        ({"conversations": [{"from": "human", "value": ""}], "chosen": "a", "rejected": "b"}, "message 0 has no text"),
        ({"input": {"messages": [user("a")], "tools": [{"name": "f"}]}, "preferred_output": [assistant("a")],
          "non_preferred_output": [assistant("b")]}, "row 0, column prompt holds dict"),
        ({"system": 3, "prompt": "a", "chosen": "c", "rejected": "d"}, "system holds int, not text"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_well_formed_is_named(tmp_path, row, cause):
    path = write(tmp_path, [row])
    error = refused(path)
    assert error.cause.startswith(str(path))
    assert cause in error.cause


def test_parts_of_text_are_joined(tmp_path):
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "so?"}]
    path = write(tmp_path, [BOTH | {"prompt": [user(parts)]}])
    assert load_preferences(str(path)).pairs[0].prompt == "How so?"


def test_an_empty_conversation_is_named(tmp_path):
    good = BOTH | {"prompt": [user("a")]}
    path = write(tmp_path, [good, good | {"prompt": []}])
    assert f"{path}: row 1" in refused(path).cause
    path = write(tmp_path, [good, good | {"chosen": []}])
    assert refused(path).cause == f"{path}: row 1, column chosen is an empty conversation."
    path = write(tmp_path, [good, {"prompt": [user("a")], "chosen": [assistant("a")]}])
    assert refused(path).cause == f"{path}: row 1, column rejected holds NoneType, not messages."


def test_rows_of_two_formats_are_named(tmp_path):
    plain = {"prompt": "p", "chosen": "c", "rejected": "r"}
    path = write(tmp_path, [plain, BOTH | {"prompt": [user("a")]}])
    assert refused(path).cause == f"{path}: row 1, column prompt holds list, unlike the rows before it."
    transcript = SINGLE_TURN["transcripts"][0][0]
    path = write(tmp_path, [transcript, {"chosen": "a b", "rejected": "a c"}])
    assert refused(path).cause == f"{path}: row 1, column chosen is not a transcript, unlike the first row."


@pytest.mark.parametrize(
    ("other", "cause"),
    [
        ({"question": "q", "chosen": "c", "rejected": "r"}, "row 6, column prompt holds NoneType, not text"),
        ({"prompt": "q", "responses": ["c", "r"], "scores": [2, 1]}, "row 6, column chosen holds NoneType, not text"),
        ({"prompt": "q", **BOTH}, "row 6, column chosen holds list, unlike the rows before it"),
        ({"chosen": "a b", "rejected": "a c"}, "row 6, column prompt holds NoneType, not text"),
    ],
)
def test_a_file_half_of_which_has_another_format_names_the_first_row(tmp_path, other, cause):
    plain = {"prompt": "p", "chosen": "c", "rejected": "r"}
    assert cause in refused(write(tmp_path, [plain] * 6 + [other] * 6)).cause


def test_rows_of_both_spellings_of_messages_are_read(tmp_path):
    shared = {"prompt": "p", "chosen": {"from": "gpt", "value": "c"}, "rejected": {"from": "gpt", "value": "r"}}
    plain = {"prompt": "p", "chosen": assistant("c"), "rejected": assistant("r")}
    assert [pair.chosen for pair in load_preferences(str(write(tmp_path, [shared, plain])))] == ["c", "c"]


def test_an_unknown_layout_lists_its_columns_and_the_formats(tmp_path):
    error = refused(write(tmp_path, [{"text": "a", "label": 1}]))
    assert error.cause.endswith("has no column chosen; it has text, label.")
    for known in (
        "prompt, chosen and rejected as text or messages",
        "responses with scores, ranks or a winner",
        "columns",
    ):
        assert known in error.remedy


def test_instruction_and_input_are_one_prompt(tmp_path):
    rows = [{"instruction": "Add.", "input": each, "chosen": "c", "rejected": "r"} for each in ("1 + 1", "", None)]
    data = load_preferences(str(write(tmp_path, rows)))
    assert [pair.prompt for pair in data] == ["Add.\n1 + 1", "Add.", "Add."]
    chosen = load_preferences(str(write(tmp_path, rows)), columns={"prompt": "instruction"})
    assert chosen.format == "standard, prompt from instruction, not used: input"


def test_margins_that_are_available_are_named(tmp_path):
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": 8, "score_rejected": 2.5}
    path = write(tmp_path, [row])
    assert load_preferences(str(path)).format == "standard, available as margin: [score_chosen, score_rejected]"
    data = load_preferences(str(path), columns={"margin": ["score_chosen", "score_rejected"]})
    assert data.format == "standard, margin from score_chosen - score_rejected"


def test_responses_of_several_turns_are_counted(tmp_path):
    """The reward of several turns is not defined here: such a pair is dropped, and a set of nothing else refused."""
    shared = [user("a"), assistant("b")]
    long = {"chosen": [*shared, user("c"), assistant("d")], "rejected": [*shared, user("e"), assistant("f")]}
    good = {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    data = load_preferences(str(write(tmp_path, [long, good])))
    assert [pair.index for pair in data] == [1]
    assert data.dropped == {"responses of several turns": 1}
    assert "(1 have responses of several turns)" in refused(write(tmp_path, [long])).cause


def test_identical_conversations_are_dropped(tmp_path):
    same = {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]}
    good = same | {"rejected": [user("a"), assistant("c")]}
    assert load_preferences(str(write(tmp_path, [same, good]))).dropped == {"identical responses": 1}


def test_remedies_about_columns_work(tmp_path):
    path = write(tmp_path, [{"instruction": "a", "question": "b", "chosen": "c", "rejected": "d"}])
    assert refused(path).remedy == (
        "Choose one with columns: {prompt: question} in the set (rmkit score: --column prompt=question)."
    )
    data = load_preferences(str(path), columns={"prompt": "question"})
    assert list(data) == [PreferencePair("b", "c", "d")]
    assert data.format == "standard, prompt from question, not used: instruction"
    path = write(tmp_path, [{"question": "a", "good": "c", "bad": "d"}])
    assert f"{path} has no column chosen; it has question, good, bad." in refused(path).cause
    assert "columns: {prompt: question}" in refused(path).remedy
    given = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert list(load_preferences(str(path), columns=given)) == [PreferencePair("a", "c", "d")]
    assert "no column best; it has" in refused(path, columns={"chosen": "best"}).cause
    assert "which is not a field with its column" in refused(path, columns={"better": "good"}).cause
    assert "which is not a field with its column" in refused(path, columns=given | {"chosen": ["good", "bad"]}).cause


def test_columns_that_may_matter_are_named(tmp_path):
    row = {"prompt": "a", "chosen": "c", "rejected": "d", "tools": "[]", "messages": [user("a")], "id": 1}
    data = load_preferences(str(write(tmp_path, [row])))
    assert data.format == "standard, not used: messages, tools"
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "c", "rejected": "d"}
    data = load_preferences(str(write(tmp_path, [row])))
    assert data.pairs[0].prompt == row["prompt"]
    assert data.format == "standard, prompts that look like transcripts are read as one user turn"


# --- prompts -------------------------------------------------------------------------------------------------------


def test_prompts_in_their_forms():
    turns = (Message("system", "Be brief."), Message("user", "Hi"))
    assert parse_prompt(messages(turns), "x") == turns
    assert parse_prompt([user("Hi")], "x") == parse_prompt("Hi", "x") == "Hi"
    assert as_text("Hi") == "Hi"
    assert as_text(turns) == "System: Be brief.\n\nUser: Hi"
    assert json_column(["a", "b"]) == ["a", "b"]
    assert json_column(["Hi", turns]) == [[user("Hi")], messages(turns)]


def test_overlap_compares_conversations():
    training, other = CONVERSATIONS, [PreferencePair("How do I bake bread?", "Mix flour.", "No.")]
    assert find_overlap(training, training).pair.all()
    assert not find_overlap(training, other).prompt.any()
    assert find_overlap(training, other).chosen.all()


def test_the_format_is_reported(tmp_path):
    from rmkit.config.recipe import PreferenceSet
    from rmkit.data.sources.use import load_set

    path = write(tmp_path, MULTI_TURN["conversational implicit"][0])
    settings = PreferenceSet(name="mine", path=str(path))
    assert reading_notes(settings, load_set(settings, root=None)) == ["mine: conversational, prompt extracted"]
    settings = PreferenceSet(name="mine", path=str(path), columns={"prompt": "chosen"})
    with pytest.raises(RmkitError):
        load_set(settings, root=None)
    plain = PreferenceSet(name="mine", path=str(write(tmp_path, SINGLE_TURN["standard"][0])))
    assert reading_notes(plain, load_set(plain, root=None)) == []


@pytest.mark.released
def test_released_transcripts_load(released):
    """Of hh-rlhf as released, chosen and rejected are transcripts."""
    path = released / "hh_rlhf" / "harmless_base_test_200.jsonl"
    data = load_preferences(str(path))
    assert data.format == "transcripts, prompt extracted"
    assert data.dropped == {"empty turns": 1}
    assert len(data) + sum(data.dropped.values()) == 200
    row = json.loads(path.read_text().splitlines()[data.pairs[0].index])
    assert row["chosen"].endswith(data.pairs[0].chosen)
