"""The formats of preference pairs: each gives the same pairs as the plain form, and what is not read is named."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import datasets
import pytest
from formats import (
    CALL,
    CONVERSATIONS,
    MULTI_TURN,
    PLAIN,
    RESPONSES,
    SEVERAL_TURNS,
    SINGLE_TURN,
    TOOL,
    assistant,
    system,
    user,
    write,
)

from rmkit.data.conversations import (
    Conversation,
    Message,
    as_json,
    as_text,
    messages,
    parse_prompt,
    prompt_columns,
)
from rmkit.data.overlap import find_overlap
from rmkit.data.preferences import PreferencePair, fingerprint, load_preferences
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
    turns = tuple(turn for turn in pair.prompt.turns if turn.role != "system")
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
        (BOTH | {"prompt": [{"role": "bot", "content": "x"}, user("c")]}, "message 0 has the role 'bot'"),
        (BOTH | {"prompt": [user(" ")]}, "message 0 has no text"),
        (BOTH | {"prompt": [user("c") | {"mood": "x"}]}, "message 0 has the key mood, which rmkit does not read"),
        (BOTH | {"prompt": [user("c") | {"tool_calls": [{"a": 1}]}]}, "message 0 has tool_calls and the role user"),
        (BOTH | {"prompt": [user("c"), assistant("") | {"tool_calls": [1]}, user("d")]}, "tool_calls holds '[1]', not"),
        (BOTH | {"prompt": [user("c")], "tools": "{"}, "the prompt, tools holds '{', not a list of objects"),
        (BOTH | {"prompt": [user("c")], "chat_template_kwargs": [{}]}, "_kwargs holds '[{}]', not an object"),
        (BOTH | {"prompt": "c", "chat_template_kwargs": {"tokenize": True}}, "has tokenize, which rmkit sets itself"),
        (
            {"chosen": [*BOTH["chosen"], user("d")], "rejected": BOTH["rejected"], "prompt": "c"},
            "chosen: the response has a message of the role user at an end",
        ),
        (
            {"chosen": [*BOTH["chosen"], system("d"), assistant("e")], "rejected": BOTH["rejected"], "prompt": "c"},
            "chosen: the response has a message of the role system",
        ),
        (
            {"chosen": [*BOTH["chosen"], assistant("e")], "rejected": BOTH["rejected"], "prompt": "c"},
            "chosen: the response has two messages of the assistant in a row",
        ),
        (BOTH | {"prompt": [user([{"type": "image", "text": None}])]}, "message 0 has a part of type image"),
        (BOTH | {"prompt": [user("c")], "chosen": [user("me")]}, "the response is a message of the role user"),
        ({"prompt": "other", **BEGUN, "rejected": [user("a"), assistant("c")]}, "begin with another conversation"),
        (BEGUN | {"rejected": [user("d"), assistant("c")]}, "do not begin alike"),
        ({side: [system("a"), user(side), assistant("b")] for side in BOTH}, "do not begin alike"),
        ({"chosen": "<|im_start|>user a b", "rejected": "<|im_start|>user a c"}, "spells turns of a chat template"),
        ({"chosen": "Yes", "rejected": "No"}, "do not begin alike"),
        (BOTH | {"prompt": "a", "images": ["x.png"]}, "has the column images; rmkit reads text only"),
        ({"system": "a", "prompt": " ", "chosen": "c", "rejected": "d"}, "the prompt, message 1 has no text"),
        ({"instruction": "a", "question": "b", "chosen": "c", "rejected": "d"}, "several that may hold it"),
        ({"instruction": 3, "input": "b", "chosen": "c", "rejected": "d"}, "column instruction holds int, not text"),
        ({"conversations": [{"from": "function_call", "value": "x"}, {"from": "human", "value": "a"}],
          "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
         "message 0 has the role 'function_call'"),
        ({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "human", "value": "a"},
          "rejected": {"from": "gpt", "value": "b"}}, "the response is a message of the role user"),
        ({"conversations": [{"from": "human", "value": ""}], "chosen": "a", "rejected": "b"}, "message 0 has no text"),
        ({"input": {"messages": [user("a")], "temperature": 1}, "preferred_output": [assistant("a")],
          "non_preferred_output": [assistant("b")]}, "row 0, column input has the key temperature"),
        ({"system": 3, "prompt": "a", "chosen": "c", "rejected": "d"}, "system holds int, not text"),
        ({"history": "[]", "prompt": "a", "chosen": "c", "rejected": "d"}, "history holds str, not a list of turns"),
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
    texts = {"chosen": "c", "rejected": "d"}
    path = write(tmp_path, [texts | {"prompt": [user("a")]}, texts | {"prompt": []}])
    assert refused(path).cause == f"{path}: row 1, the prompt is an empty conversation."


def test_rows_of_two_formats_are_named(tmp_path):
    plain = {"prompt": "p", "chosen": "c", "rejected": "r"}
    path = write(tmp_path, [plain, BOTH | {"prompt": [user("a")]}])
    assert refused(path).cause == f"{path}: row 1, column prompt holds list, unlike the rows before it."
    transcript = SINGLE_TURN["transcripts"][0][0]
    path = write(tmp_path, [transcript, {"chosen": "a b", "rejected": "a c"}])
    assert refused(path).cause == f"{path}: row 1, column chosen is not a transcript, unlike the first row."
    path = write(tmp_path, [{"chosen": "a b", "rejected": "a c"}, transcript])
    assert refused(path).cause == f"{path}: row 1, column chosen is a transcript, unlike the first row."


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


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_tools_of_openai_and_sharegpt(tmp_path, suffix):
    function = {"name": "now", "arguments": {"zone": "UTC"}}
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
    asked = [user("When?"), call, {"role": "tool", "content": "12:00"}]
    plain = {"prompt": asked, "tools": [TOOL], "chosen": [assistant("Noon.")], "rejected": [call]}
    wanted = load_preferences(str(write(tmp_path, [plain]))).pairs[0]
    assert wanted.prompt.tools
    openai = {
        "input": {"messages": asked, "tools": [TOOL], "parallel_tool_calls": True},
        "preferred_output": plain["chosen"],
        "non_preferred_output": plain["rejected"],
    }
    called = {"from": "function_call", "value": json.dumps(function)}
    sharegpt = {
        "conversations": [{"from": "human", "value": "When?"}, called, {"from": "observation", "value": "12:00"}],
        "tools": json.dumps([TOOL]),
        "chosen": {"from": "gpt", "value": "Noon."},
        "rejected": called | {"value": json.dumps([function])},
    }
    for row in (openai, sharegpt):
        assert load_preferences(str(write(tmp_path, [row], suffix))).pairs[0] == wanted


def test_messages_that_are_written_as_text_are_said(tmp_path):
    printed = str([assistant("c")])
    row = {"prompt": json.dumps([user("a")]), "chosen": printed, "rejected": "[{x}]"}
    data = load_preferences(str(write(tmp_path, [row])))
    assert data.format == "standard, lists of messages that are written as text are read as text: prompt, chosen"
    assert data.pairs[0].chosen == printed


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


@pytest.mark.parametrize("name", RESPONSES)
def test_every_format_of_responses_of_several_turns(tmp_path, name):
    rows, columns, description = RESPONSES[name]
    chosen, rejected = (tuple(Message(**turn) for turn in turns) for turns in SEVERAL_TURNS)
    wanted = [PreferencePair(CONVERSATIONS[0].prompt, chosen, rejected)]
    for suffix in ("jsonl", "parquet"):
        data = load_preferences(str(write(tmp_path, rows, suffix)), columns=columns)
        assert list(data) == data.pairs[:1] == wanted
        assert data.format == description
        assert data.fingerprint == load_preferences(str(write(tmp_path, RESPONSES["conversational"][0]))).fingerprint


def test_a_response_starts_after_the_last_common_message_that_is_not_the_assistants(tmp_path):
    """Also where both begin with the same turn of the assistant; texts and turns may stand in one set."""
    shared = [user("a"), assistant("b")]
    long = {"chosen": [*shared, user("c"), assistant("d")], "rejected": [*shared, user("e"), assistant("f")]}
    shorter = {"chosen": [*shared, user("c"), assistant("d")], "rejected": shared}
    good = {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    pairs = list(load_preferences(str(write(tmp_path, [long, shorter, good]))))
    assert [pair.prompt for pair in pairs] == ["a"] * 3
    assert [messages(pair.rejected) for pair in pairs[:1]] == [[assistant("b"), user("e"), assistant("f")]]
    assert [messages(pair.chosen) for pair in pairs[:2]] == [[assistant("b"), user("c"), assistant("d")]] * 2
    assert [pair.rejected for pair in pairs[1:]] == ["b", "c"]
    given = [
        {"prompt": [user("a")], **{side: turns[1:] for side, turns in long.items()}},
        long | {"prompt": [user("a")]},
    ]
    for row in given:
        (pair,) = load_preferences(str(write(tmp_path, [row])))
        assert (pair.prompt, pair.chosen, pair.rejected) == (pairs[0].prompt, pairs[0].chosen, pairs[0].rejected)


def test_transcripts_have_responses_of_several_turns(tmp_path):
    beginning = "\n\nHuman: a\n\nAssistant: "
    good = {"chosen": f"{beginning}b\n\nHuman: c\n\nAssistant: d", "rejected": f"{beginning}e"}
    bad = {"chosen": f"{beginning}b\n\nHuman: c", "rejected": f"{beginning}e"}
    data = load_preferences(str(write(tmp_path, [good, bad])))
    (pair,) = data
    assert messages(pair.chosen) == [assistant("b"), user("c"), assistant("d")]
    assert (pair.prompt, pair.rejected) == ("a", "e")
    assert data.dropped == {"turns out of order": 1}


def test_tools_and_template_options(tmp_path):
    """As lists and mappings or as JSON texts, in every kind of file, with nulls or without: the same pair."""
    prompt = [
        user("Heat it."),
        assistant(None) | {"tool_calls": [CALL]},
        {"role": "tool", "content": "ok", "name": "oven"},
    ]
    row = {"prompt": prompt, "chosen": "Done.", "rejected": "No."}
    given = {"tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    texts = {key: json.dumps(value) for key, value in given.items()}
    called = [turn | ({"tool_calls": json.dumps([CALL])} if "tool_calls" in turn else {}) for turn in prompt]
    other = {**TOOL, "function": TOOL["function"] | {"strict": True}}
    plain = {"prompt": [user("a")], "chosen": "b", "rejected": "c"}
    turns = (
        Message("user", "Heat it."),
        Message("assistant", "", json.dumps({"tool_calls": [CALL]})),
        Message("tool", "ok", json.dumps({"name": "oven"})),
    )
    wanted = Conversation(turns, json.dumps([TOOL]), json.dumps(given["chat_template_kwargs"]))
    for rows in ([row | given], [row | texts | {"prompt": called}], [row | given, plain | {"tools": [other]}]):
        for suffix in ("jsonl", "parquet"):
            data = load_preferences(str(write(tmp_path, rows, suffix)))
            assert data.pairs[0].prompt == wanted
            assert data.format == "conversational prompt, with tools, with chat_template_kwargs"
    assert data.pairs[1].prompt.template_options == {"tools": [other]}
    assert parse_prompt(as_json(wanted), "x") == wanted
    written = prompt_columns([wanted, "Hi"])
    (back, second) = (
        parse_prompt(each, "x", tools, options)
        for each, tools, options in zip(
            written["prompt"], written["tools"], written["chat_template_kwargs"], strict=True
        )
    )
    assert (back, second) == (wanted, "Hi")
    assert as_text(wanted) == (
        f"Tools: {json.dumps([TOOL])}\n\nUser: Heat it.\n\nAssistant:\ntool_calls: {json.dumps([CALL])}\n\n"
        "Tool: ok\nname: oven"
    )


@pytest.mark.parametrize("field", ["tools", "options"])
def test_tools_and_options_are_part_of_the_prompt(field):
    plain = Conversation((Message("user", "Hi"),))
    value = {"tools": json.dumps([TOOL]), "options": json.dumps({"a": 1})}[field]
    pairs = [PreferencePair(prompt, "b", "c") for prompt in (plain, replace(plain, **{field: value}))]
    assert pairs[0].prompt != pairs[1].prompt
    assert fingerprint(pairs[:1]) != fingerprint(pairs[1:])
    # With other options of the template it is still a known prompt.
    assert find_overlap(pairs[:1], pairs[1:]).prompt.any() == (field == "options")
    assert find_overlap(pairs[1:], pairs[1:]).pair.all()


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
    row = {"prompt": "a", "chosen": "c", "rejected": "d", "context": "x", "messages": [user("a")], "id": 1}
    data = load_preferences(str(write(tmp_path, [row])))
    assert data.format == "standard, not used: messages, context"
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "c", "rejected": "d"}
    data = load_preferences(str(write(tmp_path, [row])))
    assert data.pairs[0].prompt == row["prompt"]
    assert data.format == "standard, prompts that look like transcripts are read as one user turn"


# --- prompts -------------------------------------------------------------------------------------------------------


def test_prompts_in_their_forms():
    turns = Conversation((Message("system", "Be brief."), Message("user", "Hi")))
    assert parse_prompt(messages(turns), "x") == turns
    assert parse_prompt([user("Hi")], "x") == parse_prompt("Hi", "x") == "Hi"
    assert as_text("Hi") == "Hi"
    assert as_text(turns) == "System: Be brief.\n\nUser: Hi"
    assert prompt_columns(["a", "b"]) == {"prompt": ["a", "b"]}
    assert prompt_columns(["Hi", turns]) == {"prompt": [[user("Hi")], messages(turns)]}


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
