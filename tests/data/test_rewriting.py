"""Rewriting: styles, checks, local rewriters and the overlap statistic."""

from __future__ import annotations

import re
from pathlib import Path

import datasets
import pytest

from rmkit.data.preferences import PreferenceData, PreferencePair
from rmkit.data.rewriting.checks import Bounds, language_is_checked, problem
from rmkit.data.rewriting.journal import Answer, BatchEnded, BatchJob, open_journal
from rmkit.data.rewriting.local import REWRITERS, formatting, rewrite_locally
from rmkit.data.rewriting.sets import Rewrites, assemble, distinct_responses
from rmkit.data.rewriting.styles import load_local_style, load_style
from rmkit.data.rewriting.token_overlap import load_tokenize, mean_overlap, token_overlap, words_and_marks
from rmkit.errors import RmkitError

ENGLISH = "The committee will meet again on Thursday to decide whether the old bridge should be repaired."
FRENCH = "Le comité se réunira de nouveau jeudi afin de décider si le vieux pont doit être réparé."
OTHER_ENGLISH = "On Thursday the panel gathers once more and chooses whether that ancient crossing gets mended."


# --- styles --------------------------------------------------------------------------------------------------------


def test_prompts_match_the_paper() -> None:
    assert load_style("paraphrase").request("Hi {response}") == (
        "I will provide a text. Please rewrite it so that the meaning remains the same, but the wording overlaps with the original text as little as possible. Aim to minimize word and phrase overlap while preserving all key information and nuance. Output only the rewritten text and nothing else.\nHere is the original text:\nHi {response}\nRewritten version:\n"  # noqa: E501
    )
    french = "I will provide a text in English. Please translate it to French while ensuring that the meaning remains the same. Output only the translated text and nothing else.\nHere is the original text:\nHi\nTranslated version:\n"  # noqa: E501
    assert load_style("french").request("Hi") == french
    assert load_style("Spanish").request("Hi") == french.replace("French", "Spanish")


@pytest.mark.parametrize(
    ("name", "shown", "code"),
    [("german", "German", "de"), ("brazilian portuguese", "Brazilian Portuguese", "pt"), ("zulu", "Zulu", "zu")],
)
def test_any_language_by_name(name: str, shown: str, code: str) -> None:
    style = load_style(name)
    assert f"translate it to {shown} while" in style.prompt
    assert style.language == code
    assert language_is_checked(style)


def test_a_custom_prompt(tmp_path: Path) -> None:
    file = tmp_path / "pirate.txt"
    file.write_text("Say it as a pirate: {response} (twice: {response})")
    assert load_style(str(file)).request("{response}") == "Say it as a pirate: {response} (twice: {response})"
    file.write_text("Say it as a pirate")
    with pytest.raises(RmkitError, match=r"does not contain \{response\}"):
        load_style(str(file))


@pytest.mark.parametrize(
    ("name", "remedy"), [("frensh", "french"), ("parafrase", "paraphrase"), ("qqqq", "local:typos")]
)
def test_an_unknown_style_suggests_the_closest(name: str, remedy: str) -> None:
    with pytest.raises(RmkitError, match=remedy):
        load_style(name)


def test_an_unknown_local_style() -> None:
    assert load_local_style("french") is None
    with pytest.raises(RmkitError, match="local:typos, local:casing"):
        load_local_style("local:typo")


# --- checks --------------------------------------------------------------------------------------------------------


REFUSAL = "I'm sorry, but I can't assist with that request, whatever its reasons may be."
FRENCH_REFUSAL = "**Je suis désolé, mais je ne peux pas** traduire ce texte pour vous aujourd'hui."
ORIGINAL_REFUSAL = "I apologize, but I cannot tell you anything about that request."
CODE = "```\nimport os\nfor name in names: print(name)\n```"
CHATTER = "Il n'y a pas de texte à traduire dans votre message, veuillez en fournir un. " * 2


@pytest.mark.parametrize(
    ("style", "original", "rewrite", "finish_reason", "expected"),
    [
        ("french", ENGLISH, FRENCH, "stop", None),
        ("french", ENGLISH, OTHER_ENGLISH, "stop", "language"),
        ("paraphrase", ENGLISH, OTHER_ENGLISH, "stop", None),
        ("paraphrase", ENGLISH, FRENCH, "stop", "language"),
        ("paraphrase", FRENCH, FRENCH.replace("jeudi", "vendredi"), "stop", None),  # a paraphrase keeps its language
        ("french", ENGLISH, " \n", "stop", "empty"),
        ("french", ENGLISH, FRENCH[:30], "length", "cut by length"),
        ("french", ENGLISH, f"  {ENGLISH}\n", "stop", "unchanged"),
        ("french", "42", "42", "stop", None),  # nothing to translate
        ("french", "Sweden", "Suède", "stop", None),  # too short to tell the language
        ("french", ENGLISH * 2, "Non", "stop", "length ratio"),
        ("french", "No", CHATTER, "stop", "length ratio"),
        ("french", ENGLISH, REFUSAL, "stop", "refusal"),
        ("french", ENGLISH, FRENCH_REFUSAL, "stop", "refusal"),
        ("french", ORIGINAL_REFUSAL, FRENCH_REFUSAL, "stop", None),
        ("french", ENGLISH, "", "content_filter", "refusal"),
        ("french", CODE, CODE.replace("name", "nom"), "stop", None),
    ],
)
def test_checks(style: str, original: str, rewrite: str, finish_reason: str, expected: str | None) -> None:
    answer = Answer(key="k", text=rewrite, finish_reason=finish_reason)
    assert problem(original, answer, load_style(style)) == expected


def test_length_bounds_count_short_texts_as_twenty_characters() -> None:
    bounds = Bounds(0.5, 2.0)
    assert bounds.hold("x" * 100, "y" * 50)
    assert not bounds.hold("x" * 100, "y" * 49)
    assert bounds.hold("x", "y" * 40)
    assert not bounds.hold("x", "y" * 41)


# --- local rewriters -----------------------------------------------------------------------------------------------

TEXT = "Here is why, in short:\n\n1. It rains often; the roof leaks.\n2. **Nobody** repairs it (yet)!\n\nSo what now?"


@pytest.mark.parametrize("style", REWRITERS)
def test_local_rewriters_are_deterministic(style: str) -> None:
    first = rewrite_locally(style, TEXT, seed=1)
    assert first != TEXT
    rewrite_locally(style, "another text in between", seed=1)
    assert rewrite_locally(style, TEXT, seed=1) == first
    if style != "formatting":  # which has no choices
        assert len({rewrite_locally(style, TEXT, seed) for seed in range(20)}) > 1


def test_local_rewriters_change_one_thing() -> None:
    for seed in range(20):
        assert rewrite_locally("casing", TEXT, seed).lower() == TEXT.lower()
        assert rewrite_locally("whitespace", TEXT, seed).split() == TEXT.split()
        assert re.findall(r"\w+", rewrite_locally("punctuation", TEXT, seed)) == re.findall(r"\w+", TEXT)
        typed = rewrite_locally("typos", TEXT, seed)
        assert re.sub(r"\w+", "w", typed) == re.sub(r"\w+", "w", TEXT)  # as many words, the same marks between them


def test_the_share_of_typos() -> None:
    words = ("elephant " * 4000).split()
    changed = sum(word != "elephant" for word in rewrite_locally("typos", " ".join(words)).split())
    # 8 letters, each left alone with probability 0.95; 4000 draws have a standard deviation of 0.0075. Swapping and
    # doubling always shows here: no two neighbouring letters are equal.
    assert changed / 4000 == pytest.approx(1 - 0.95**8, abs=0.04)


def test_formatting_turns_markdown_into_prose() -> None:
    markdown = (
        "# Title\n\nSome *soft* and **hard** words, `code` and a [link](https://x.org).\n\n"
        '- one\n- two:\n  - inner\n- "three."\n\n```python\nx = [1]\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> quoted'
    )
    expected = (
        "Title\n\nSome soft and hard words, code and a link.\n\n"
        'one. two: inner. "three."\n\nx = [1]\n\na, b. 1, 2.\n\nquoted'
    )
    assert rewrite_locally("formatting", markdown) == expected


def test_formatting_leaves_plain_text() -> None:
    assert rewrite_locally("formatting", ENGLISH) == ENGLISH
    assert formatting.__doc__


# --- overlap -------------------------------------------------------------------------------------------------------


def test_token_overlap_is_the_share_of_equal_pairs() -> None:
    # (a, b, a) with (a, c): of the six pairs of positions, (1, 1) and (3, 1) are equal.
    assert token_overlap(["a", "b", "a"], ["a", "c"]) == pytest.approx(2 / 6)
    one, other = words_and_marks("to be, or not to be"), words_and_marks("be or be not")
    brute = sum(x == y for x in one for y in other) / (len(one) * len(other))
    assert token_overlap(one, other) == pytest.approx(brute)
    assert token_overlap([], ["a"]) == 0.0
    assert mean_overlap([("a b", "a"), ("a", "b")], str.split) == pytest.approx((1 / 2 + 0) / 2)


def test_an_unknown_tokenizer() -> None:
    with pytest.raises(RmkitError, match=r"No tokenizer could be loaded from \./nowhere"):
        load_tokenize("./nowhere")


@pytest.mark.released
def test_overlap_falls_from_originals_to_paraphrases(released: Path) -> None:
    rows = datasets.load_from_disk(str(released / "ultrafeedback_paraphrased"))["test"]
    originals = [*rows["orig_chosen"], *rows["orig_rejected"]]
    paraphrases = [*rows["chosen"], *rows["rejected"]]
    itself = mean_overlap(zip(originals, originals, strict=True), words_and_marks)
    rewritten = mean_overlap(zip(originals, paraphrases, strict=True), words_and_marks)
    # The released logs have 0.048 and 0.023 with another tokenizer.
    assert 0 < rewritten < 0.75 * itself


@pytest.mark.released
@pytest.mark.parametrize(
    ("name", "style"), [("french", "french"), ("spanish", "spanish"), ("paraphrased", "paraphrase")]
)
def test_the_released_rewrites_pass_the_checks(released: Path, name: str, style: str) -> None:
    rows = datasets.load_from_disk(str(released / f"ultrafeedback_{name}"))["test"]
    found = [
        problem(row[f"orig_{side}"], Answer(key="k", text=row[side]), load_style(style))
        for row in rows
        for side in ("chosen", "rejected")
    ]
    # 400 rewrites by GPT-4.1, of which one is known to be a translation into English of a French original.
    assert sum(each is not None for each in found) <= 8


# --- assembling ----------------------------------------------------------------------------------------------------


def test_pairs_with_a_bad_rewrite_are_left_out_and_counted() -> None:
    pairs = [PreferencePair(f"q{n}", f"c{n}", f"r{n}", index) for n, index in enumerate([0, 2, 3, 7, 9])]
    data = PreferenceData("set", pairs)
    assert distinct_responses(data)[:3] == ["c0", "r0", "c1"]
    texts = {text: text.upper() for text in distinct_responses(data)} | {
        "c1": "bad",
        "r2": "",
        "c3": "same",
        "r3": "same",
    }
    del texts["r4"]
    rewrites = Rewrites(texts, {"c1": "refusal", "r2": "empty", "r4": "no answer (HTTP 400: no)"})
    rows, left_out = assemble(data, rewrites)
    assert rows["orig_index"] == [0]
    assert left_out == {"refusal": 1, "empty": 1, "identical responses": 1, "no answer (HTTP 400: no)": 1}
    rows, left_out = assemble(data, rewrites, keep_bad=True)
    assert rows["orig_index"] == [0, 2]
    assert rows["chosen"] == ["C0", "bad"]
    assert rows["orig_rejected"] == ["r0", "r1"]
    with pytest.raises(RmkitError, match="no pair is left"):
        assemble(data, Rewrites({}, dict.fromkeys(distinct_responses(data), "empty")))


def test_margins_are_kept() -> None:
    data = PreferenceData("set", [PreferencePair(f"q{n}", f"c{n}", f"r{n}", n, n / 2) for n in range(3)])
    texts = {text: text.upper() for text in distinct_responses(data)}
    del texts["c1"]
    rows, _ = assemble(data, Rewrites(texts, {"c1": "empty"}))
    assert rows["margin"] == [0.0, 1.0]


# --- journal -------------------------------------------------------------------------------------------------------


def test_the_journal_drops_only_an_incomplete_last_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    first, second = Answer(key="a", text="é\nx", prompt_tokens=3), Answer(key="b", text="y")
    with open_journal(path) as journal:
        journal.add(first)
        journal.add(BatchJob(tag="t"), BatchJob(tag="t", id="batch_1"), BatchJob(tag="u"), BatchEnded(tag="u"))
        journal.add(second)
    whole = path.read_bytes()
    for cut in range(1, len(second.model_dump_json()) + 1):
        path.write_bytes(whole[:-cut])
        with open_journal(path) as journal:
            assert dict(journal.answers) == {"a": [first]}
            assert journal.open_batches == {"t": "batch_1"}
            journal.add(second)
        assert path.read_bytes() == whole


def test_an_invalid_line_of_the_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(
        '{"kind": "answer", "key": "a", "text": "x"}\nnonsense\n{"kind": "answer", "key": "b", "text": "y"}\n'
    )
    with pytest.raises(RmkitError, match="Line 2 of"), open_journal(path):
        pass


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        open_journal(tmp_path / "j"),
        pytest.raises(RmkitError, match="Another rmkit rewrite"),
        open_journal(tmp_path / "j"),
    ):
        pass
    assert not (tmp_path / "j").exists()  # nothing was written
