"""Several responses per row, judged by scores, ranks or a winner: which pairs they give, and what is left out."""

from __future__ import annotations

import datasets
import pytest
from formats import assistant, user, write

from rmkit.data.preferences import PreferencePair, load_preferences
from rmkit.data.ranked import pair_responses
from rmkit.errors import RmkitError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_pairs_by_hand():
    scores = [2.0, 5.0, 2.0, 1.0]
    assert pair_responses(scores, "best_worst") == ([(1, 3, 0)], 0)
    assert pair_responses(scores, "adjacent") == ([(1, 0, 0), (2, 3, 2)], 1)  # 5 > 2 = 2 > 1
    # 01, 02 (tie), 03, 12, 13, 23
    assert pair_responses(scores, "all") == ([(1, 0, 0), (0, 3, 2), (1, 2, 3), (1, 3, 4), (2, 3, 5)], 1)
    assert pair_responses([3.0, 3.0], "best_worst") == ([], 1)


ROWS = [
    {"prompt": "p", "answers": ["a", "b", "c"], "scores": [1, 3, 2]},
    {"prompt": "q", "answers": ["a", "b"], "scores": [1, 1]},
    {"prompt": "r", "answers": ["only"], "scores": [1]},
    {"prompt": "s", "answers": ["a", "b"], "scores": [None, 1]},
    {"prompt": "t", "answers": ["a", "b"], "scores": [0.5, 0.25]},
]
LEFT_OUT = {"ties": 1, "fewer than two responses": 1, "a response without a score or rank": 1}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("pairing", "pairs"),
    [
        ("best_worst", [("p", "b", "a", 0), ("t", "a", "b", 4)]),
        ("adjacent", [("p", "b", "c", 0), ("p", "c", "a", 1), ("t", "a", "b", 8)]),
        ("all", [("p", "b", "a", 0), ("p", "c", "a", 1), ("p", "b", "c", 2), ("t", "a", "b", 12)]),
    ],
)
def test_rows_with_scores(tmp_path, pairing, pairs, suffix):
    path = str(write(tmp_path, ROWS, suffix))
    data = load_preferences(path, pairing=pairing)
    assert list(data) == [PreferencePair(*pair) for pair in pairs]
    assert data.pairs[-1] == PreferencePair(*pairs[-1])
    assert data.dropped == LEFT_OUT
    assert data.pairs_per_row == {"best_worst": 1, "adjacent": 2, "all": 3}[pairing]
    # the same index whatever is left out
    (last,) = load_preferences(path, pairing=pairing, where={"prompt": "t"})
    assert last == PreferencePair(*pairs[-1])
    number = "" if pairing == "best_worst" else f" (index = {data.pairs_per_row} * row + number)"
    assert data.format == f"answers by scores, pairing {pairing}{number}, standard"


def test_the_difference_of_scores_is_the_margin_only_where_asked(tmp_path):
    path = str(write(tmp_path, ROWS[:1]))
    assert load_preferences(path).pairs[0].margin is None
    data = load_preferences(path, columns={"margin": "scores"}, pairing="all")
    assert [pair.margin for pair in data] == [2.0, 1.0, 1.0]
    assert "(index = 3 * row + number), their difference as margin, standard" in data.format
    ranked = [{"prompt": "p", "answers": ["a", "b"], "ranks": [3, 1]}]
    data = load_preferences(str(write(tmp_path, ranked)), columns={"margin": "ranks"})
    assert list(data) == [PreferencePair("p", "b", "a", margin=2.0)]
    inside = [{"prompt": "p", "answers": [{"text": "a", "score": 1}, {"text": "b", "score": 4}]}]
    data = load_preferences(str(write(tmp_path, inside)), columns={"margin": "answers.score"})
    assert list(data) == [PreferencePair("p", "b", "a", margin=3.0)]
    data = load_preferences(str(write(tmp_path, [ROWS[0] | {"margin": 9.0}])))
    assert data.pairs[0].margin is None
    assert data.format.endswith("standard, margin is not used")


def test_a_saved_folder_is_not_written_to(tmp_path):
    folder = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(folder)
    before = sorted(folder.rglob("*"))
    assert len(load_preferences(str(folder), pairing="all")) == 4
    assert sorted(folder.rglob("*")) == before


def test_winners(tmp_path):
    rows = [
        {"prompt": "p", "response_a": "x", "response_b": "y", "label": winner}
        for winner in ("a", "B", "model_b", "response_a", "tie (bothbad)", "both_bad", None)
    ]
    data = load_preferences(str(write(tmp_path, rows)))
    assert [pair.chosen for pair in data] == ["x", "y", "y", "x"]
    assert data.dropped == {"ties": 2, "no winner": 1}
    numbers = [{"prompt": "p", "response_1": "x", "response_2": "y", "preference": winner} for winner in (1, 2)]
    assert [pair.chosen for pair in load_preferences(str(write(tmp_path, numbers)))] == ["x", "y"]


def test_responses_beside_chosen_and_rejected_are_not_read(tmp_path):
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "responses": ["x", "y"], "scores": [1, 2]}
    path = str(write(tmp_path, [row]))
    assert list(load_preferences(path)) == [PreferencePair("p", "c", "r")]
    named = {"chosen_response": "c", "rejected_response": "r", "prompt": "p", "responses": ["x", "y"]}
    assert list(load_preferences(str(write(tmp_path, [named])))) == [PreferencePair("p", "c", "r")]
    path = str(write(tmp_path, [row]))
    asked = load_preferences(path, columns={"responses": "responses", "scores": "scores"})
    assert list(asked) == [PreferencePair("p", "y", "x")]


def test_what_judges_as_well_is_named(tmp_path):
    both = TEXTS | {"scores": [1, 2], "ranks": [1, 2]}
    path = str(write(tmp_path, [both]))
    assert load_preferences(path).format == "answers by scores, pairing best_worst, not used: ranks, standard"
    assert load_preferences(path).pairs[0].chosen == "y"
    (pair,) = load_preferences(path, columns={"ranks": "ranks"})
    assert pair.chosen == "x"
    assert "not used" not in load_preferences(path, columns={"ranks": "ranks"}).format
    inside = {
        "prompt": "p",
        "completions": [{"text": "x", "score": 1, "rank": 1}, {"text": "y", "score": 2, "rank": 2}],
    }
    assert "not used: completions.rank" in load_preferences(str(write(tmp_path, [inside]))).format
    won = SIDES | {"winner": "a", "scores": [1, 2]}
    assert "not used: scores" in load_preferences(str(write(tmp_path, [won]))).format


def test_messages_that_hold_their_score(tmp_path):
    row = {"prompt": "p", "completions": [assistant("x") | {"score": 1}, assistant("y") | {"score": 2}]}
    assert list(load_preferences(str(write(tmp_path, [row])))) == [PreferencePair("p", "y", "x")]
    rows = [row, row | {"completions": [None, row["completions"][0]]}]
    assert load_preferences(str(write(tmp_path, rows))).dropped == {"a response without a score or rank": 1}


def test_lists_of_a_fixed_length(tmp_path):
    texts, numbers = (datasets.List(datasets.Value(kind), length=2) for kind in ("string", "float32"))
    features = datasets.Features({"prompt": datasets.Value("string"), "answers": texts, "scores": numbers})
    path = tmp_path / "pairs.parquet"
    datasets.Dataset.from_list([TEXTS | {"scores": [1.0, 2.0]}] * 2, features=features).to_parquet(path)
    for pairing in ("best_worst", "all"):
        assert list(load_preferences(str(path), pairing=pairing)) == [PreferencePair("p", "y", "x", n) for n in (0, 1)]


def test_a_winner_that_pandas_wrote_as_a_number(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,response_1,response_2,label\np,x,y,2.0\np,x,y,\np,x,y,1.0\n")
    data = load_preferences(str(path))
    assert [(pair.chosen, pair.index) for pair in data] == [("y", 0), ("x", 2)]
    assert data.dropped == {"no winner": 1}


def test_images_and_columns_that_matter_are_named(tmp_path):
    row = {"prompt": "p", "answers": ["x", "y"], "scores": [1, 2], "context": "z"}
    assert load_preferences(str(write(tmp_path, [row]))).format.endswith("standard, not used: context")
    with pytest.raises(RmkitError, match="rmkit reads text only"):
        load_preferences(str(write(tmp_path, [row | {"image": "x.png"}])))


TEXTS = {"prompt": "p", "answers": ["x", "y"]}
SIDES = {"prompt": "p", "response_a": "x", "response_b": "y"}


@pytest.mark.parametrize(
    ("row", "options", "cause", "repaired"),
    [
        (TEXTS | {"s": [1, 2]}, {}, "nothing that says which is better", {"columns": {"scores": "s"}}),
        (TEXTS | {"scores": [1, 2], "ratings": [1, 2]}, {}, "may hold scores: scores, ratings",
         {"columns": {"scores": "scores"}}),
        (TEXTS | {"responses": ["a"], "scores": [1, 2]}, {}, "may hold responses: responses, answers",
         {"columns": {"responses": "answers"}}),
        (TEXTS | {"scores": [1, 2]}, {"columns": {"scores": "nothing"}}, "has no column nothing", {}),
        (TEXTS | {"scores": [1, 2], "x": 3.0}, {"columns": {"margin": "x"}}, "columns maps margin to x",
         {"columns": {"margin": "scores"}}),
        (TEXTS | {"s": [1, 2], "r": [1, 2]}, {"columns": {"scores": "s", "ranks": "r"}}, "do not go together",
         {"columns": {"scores": "s"}}),
        (TEXTS | {"scores": [1, 2], "w": "x"}, {"columns": {"winner": "w"}}, "do not go together", {}),
        ({"prompt": "p", "answers": [{"t": "x", "score": 1}, {"t": "y", "score": 2}]}, {},
         "none of which is known to hold the response", {"columns": {"responses": "answers.t"}}),
        ({"prompt": "p", "answers": [{"text": "x", "s": 1}, {"text": "y", "s": 2}]},
         {"columns": {"scores": "answers.z"}},
         "have no key z; they have text, s", {"columns": {"scores": "answers.s"}}),
        (SIDES | {"winner": "a", "label": 1}, {}, "may name the winner: winner, label",
         {"columns": {"winner": "winner"}}),
        (SIDES | {"winner": "b"}, {"pairing": "all"}, "pairing has no use", {}),
        (SIDES | {"winner": "b"}, {"columns": {"margin": "winner"}}, "columns: {margin: ...} has no use", {}),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, {"pairing": "all"}, "is not read as several responses", {}),
    ],
)  # fmt: skip
def test_what_is_unclear_is_refused(tmp_path, row, options, cause, repaired):
    path = str(write(tmp_path, [row]))
    with pytest.raises(RmkitError) as error:
        load_preferences(path, **options)
    assert cause in error.value.cause
    assert "\n" not in error.value.cause + error.value.remedy
    assert len(load_preferences(path, **repaired)) == 1


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        (TEXTS | {"scores": [1]}, "row 1 has 2 responses and 1 scores"),
        (TEXTS | {"scores": None}, "row 1 has 2 responses and 0 scores"),
        (TEXTS | {"answers": ["x", None], "scores": [1, 2]}, "row 1, column chosen holds NoneType"),
        (TEXTS | {"answers": ["x", " "], "scores": [1, 2]}, "row 1 has an empty chosen"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, row, cause):
    good = TEXTS | {"scores": [1, 2]}
    with pytest.raises(RmkitError) as error:
        load_preferences(str(write(tmp_path, [good, row])), pairing="all")
    assert cause in error.value.cause


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    with pytest.raises(RmkitError) as error:
        load_preferences(str(write(tmp_path, [TEXTS | {"scores": ["5", "N/A"]}])))
    assert error.value.cause.endswith("row 0 has '5' among its scores, not a number.")
    with pytest.raises(RmkitError) as error:
        load_preferences(str(write(tmp_path, [SIDES | {"winner": "c"}])))
    assert error.value.cause.endswith("'c', which names neither response_a nor response_b.")
    assert error.value.remedy == "Write a or b, or tie."
    assert len(load_preferences(str(write(tmp_path, [SIDES | {"winner": "b"}])))) == 1
    with pytest.raises(RmkitError, match="row 0, column rank holds 2, one value for 2 responses"):
        load_preferences(str(write(tmp_path, [TEXTS | {"rank": 2}])))
    with pytest.raises(RmkitError, match="not a list of responses"):
        load_preferences(str(write(tmp_path, [TEXTS | {"answers": "x", "scores": [1]}])))


def test_nothing_left_says_why(tmp_path):
    with pytest.raises(RmkitError, match=r"no usable pair \(1 have ties"):
        load_preferences(str(write(tmp_path, ROWS[1:2])))


def test_conversations_that_part_early_are_counted(tmp_path):
    def talk(text):
        return [user("Hi"), assistant(text), user(text), assistant(text)]

    row = {"conversation_a": talk("a"), "conversation_b": talk("b"), "winner": "a"}
    good = {"conversation_a": talk("a")[:2], "conversation_b": talk("b")[:2], "winner": "b"}
    data = load_preferences(str(write(tmp_path, [row, good])))
    assert PreferencePair("Hi", "b", "a", 1) in list(data)
