"""Sets of preference pairs: all formats give the same pairs, and errors name the defect of bad input."""

from __future__ import annotations

import gzip
import json
import math
import os

import datasets
import pandas as pd
import pytest
import yaml

from rmkit.data.preferences import PreferencePair, drop_identical, fingerprint, load_preferences
from rmkit.errors import RmkitError

ROWS = [
    {"prompt": "How do I bake bread?", "chosen": "Mix {flour}\nand water.", "rejected": "No."},
    {"prompt": "¿por qué?\u2028{prompt}", "chosen": "Porque sí", "rejected": "1"},
    {"prompt": " why? ", "chosen": "Yes ", "rejected": "Yes"},
]
PAIRS = [PreferencePair(**row, index=index) for index, row in enumerate(ROWS)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def jsonl(tmp_path):
    """Write rows as a jsonl file."""

    def written(*rows):
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return str(tmp_path / "pairs.jsonl")

    return written


def refused(path, **options):
    with pytest.raises(RmkitError) as error:
        load_preferences(str(path), **options)
    assert "\n" not in error.value.cause + error.value.remedy
    return error.value


# --- formats -------------------------------------------------------------------------------------------------------


def as_jsonl(path, rows):
    path.with_suffix(".jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    return path.with_suffix(".jsonl")


def as_windows_jsonl(path, rows):
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.with_suffix(".jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return path.with_suffix(".jsonl")


def as_json_list(path, rows):
    path.with_suffix(".json").write_text(json.dumps(rows, indent=2))
    return path.with_suffix(".json")


def as_json_lines(path, rows):
    path.with_suffix(".json").write_text("\n".join(map(json.dumps, rows)))
    return path.with_suffix(".json")


def as_parquet(path, rows):
    pd.DataFrame(rows).to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def as_saved_dataset(path, rows):
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def as_saved_splits(path, rows):
    made = datasets.Dataset.from_list(rows)
    datasets.DatasetDict(train=made.select([0]), test=made).save_to_disk(path)
    return path


def as_folder_of_jsonl(path, rows):
    path.mkdir()
    as_jsonl(path / "train", rows[:1])
    as_jsonl(path / "test", rows)
    return path


def as_folder_of_parquet(path, rows):
    path.mkdir()
    as_parquet(path / "train", rows[:1])
    as_parquet(path / "test", rows)
    return path


FORMATS = [
    as_jsonl,
    as_windows_jsonl,
    as_json_list,
    as_json_lines,
    as_parquet,
    as_saved_dataset,
    as_saved_splits,
    as_folder_of_jsonl,
    as_folder_of_parquet,
]


@pytest.mark.parametrize("written", FORMATS, ids=lambda each: each.__name__)
def test_every_format_gives_the_same_pairs(tmp_path, written):
    path = written(tmp_path / "pairs", ROWS)
    assert list(load_preferences(str(path))) == PAIRS
    assert list(load_preferences(path.name, root=tmp_path)) == PAIRS
    assert list(load_preferences(str(path), limit=2)) == PAIRS[:2]
    assert len(load_preferences(str(path), limit=99)) == 3


@pytest.mark.parametrize("written", [as_saved_splits, as_folder_of_jsonl, as_folder_of_parquet])
def test_splits(tmp_path, written):
    path = written(tmp_path / "pairs", ROWS)
    assert len(load_preferences(str(path), split="train")) == 1
    error = refused(path, split="validation")
    assert f"{path} has no split validation; it has" in error.cause
    assert "train" in error.cause


def test_a_split_in_several_files(tmp_path):
    for number in range(2):
        as_parquet(tmp_path / f"test-0000{number}-of-00002", ROWS[:1])
    as_parquet(tmp_path / "test-hard", ROWS)
    assert len(load_preferences(str(tmp_path))) == 2


def test_a_folder_of_several_sets_is_refused(tmp_path):
    for name in ("a", "b"):
        as_folder_of_jsonl(tmp_path / name, ROWS)
    assert f"{tmp_path} holds several sets" in refused(tmp_path).cause
    assert len(load_preferences(str(tmp_path / "a"))) == 3


PLAIN_ROW, OTHER_ROW = ROWS[0], {"question": "q", "chosen": "c", "rejected": "r"}


def write_folder(folder, files):
    for name, row in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (as_parquet if name.endswith("parquet") else as_jsonl)(folder / name, [row])
    return str(folder)


@pytest.mark.parametrize(
    "files",
    [
        {"maths.jsonl": PLAIN_ROW, "notes.jsonl": OTHER_ROW},
        {"maths.jsonl": PLAIN_ROW, "chat.jsonl": PLAIN_ROW},  # of one format, but not one set
        {"maths.jsonl": PLAIN_ROW, "chat.parquet": PLAIN_ROW},  # of which `datasets` reads one
        {"maths/a.parquet": PLAIN_ROW, "chat/a.parquet": PLAIN_ROW},
    ],
)
def test_a_folder_of_unrelated_files_is_refused(tmp_path, files):
    folder = write_folder(tmp_path / "folder", files)
    error = refused(folder, split="train")
    assert error.cause == (
        f"{folder} holds files that are not named as the parts of one set: {', '.join(sorted(files))}."
    )
    assert error.remedy == "Give one of them as the path, or name them train-0, train-1 and so on."
    assert len(load_preferences(f"{folder}/{next(iter(files))}")) == 1


def test_files_of_one_split_need_the_same_columns(tmp_path):
    folder = write_folder(tmp_path / "mixed", {"train_chat.jsonl": PLAIN_ROW, "train_maths.jsonl": OTHER_ROW})
    error = refused(folder, split="train")
    assert (
        "train_chat.jsonl (chosen, prompt, rejected) and train_maths.jsonl (chosen, question, rejected)" in error.cause
    )
    assert error.remedy == "Give one of them as the path: train_chat.jsonl, train_maths.jsonl."
    assert len(load_preferences(f"{folder}/train_maths.jsonl")) == 1
    alike = write_folder(tmp_path / "alike", {"train_chat.jsonl": PLAIN_ROW, "train_maths.jsonl": PLAIN_ROW})
    assert len(load_preferences(alike, split="train")) == 2


@pytest.mark.parametrize(
    "names",
    [
        ["part-0.jsonl", "part-1.jsonl"],
        ["chat-00000-of-00002.parquet", "chat-00001-of-00002.parquet"],
        ["data/train-0.jsonl", "data/train-1.jsonl"],
        ["train/a.jsonl", "train/b.jsonl"],
    ],
)
def test_a_set_in_parts_is_one_set(tmp_path, names):
    folder = write_folder(tmp_path / "folder", dict.fromkeys(names, PLAIN_ROW))
    assert len(load_preferences(folder, split="train")) == 2


def test_files_that_a_dataset_card_names_are_one_set(tmp_path):
    folder = write_folder(tmp_path / "folder", {"maths.jsonl": PLAIN_ROW, "chat.jsonl": PLAIN_ROW})
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '*.jsonl'\n---\n"
    (tmp_path / "folder" / "README.md").write_text(card)
    assert len(load_preferences(folder, split="train")) == 2


def test_other_columns_and_their_order_do_not_matter(jsonl):
    rows = [{"x": [1], "rejected": "r", "id": None, "chosen": "c", "prompt": "p"}, {**ROWS[0], "y": 1}]
    assert [pair.chosen for pair in load_preferences(jsonl(*rows))] == ["c", ROWS[0]["chosen"]]


def test_where_selects_rows(jsonl):
    path = jsonl(*({**row, "subset": subset} for row, subset in zip(ROWS, "aba", strict=True)))
    assert [pair.prompt for pair in load_preferences(path, where={"subset": "a"})] == [PAIRS[0].prompt, PAIRS[2].prompt]
    assert 'no row with subset "c"; it has "a", "b"' in refused(path, where={"subset": "c"}).cause
    error = refused(path, where={"nothing": "c"})
    assert "no column nothing; it has prompt, chosen, rejected, subset" in error.cause
    assert error.remedy == "Name one of these in where."


def as_jsonl_in_parts(path, rows):
    path.mkdir()
    as_jsonl(path / "test-00000-of-00002", rows[:2])
    as_jsonl(path / "test-00001-of-00002", rows[2:])
    return path


@pytest.mark.parametrize("written", [as_jsonl, as_parquet, as_saved_splits, as_folder_of_parquet, as_jsonl_in_parts])
def test_the_index_is_the_row_in_the_source(tmp_path, written):
    """Also of what `where` and `limit` leave, and when pairs without a difference are dropped on the way."""
    rows = [
        {
            "prompt": f"p{number}",
            "chosen": "same" if number == 3 else "c",
            "rejected": "same",
            "subset": "ab"[number % 2],
        }
        for number in range(8)
    ]
    path = str(written(tmp_path / "pairs", rows))
    for where, limit, wanted in [
        ({"subset": "b"}, None, [1, 5, 7]),  # 3 is dropped
        ({"subset": "b"}, 3, [1, 5]),
        ({"subset": ["b", "a"]}, 5, [0, 1, 2, 4]),
        ({}, 5, [0, 1, 2, 4]),
        ({"subset": "b", "prompt": ["p5", "p1", "p3"]}, None, [1, 5]),
    ]:
        data = load_preferences(path, where=where, limit=limit)
        for pairs in (list(data), data.pairs[:], [data.pairs[at] for at in range(len(data))]):
            assert [pair.index for pair in pairs] == wanted
            assert [pair.prompt for pair in pairs] == [f"p{index}" for index in wanted]


def test_errors_name_the_source_row_with_where(jsonl):
    path = jsonl(*(ROWS[0] | {"subset": each, "chosen": "" if each == "b" else "c"} for each in "aab"))
    assert f"{path}: row 2 has an empty chosen" in refused(path, where={"subset": "b"}).cause


VALUES = {"n": [1, 2, 2], "x": [1.0, 0.5, None], "b": [True, False, True], "t": ["1", "true", ""]}


@pytest.mark.parametrize("written", [as_jsonl, as_parquet, as_saved_dataset])
@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ({"n": 2}, [1, 2]),
        ({"n": 2.0}, [1, 2]),
        ({"x": 1}, [0]),
        ({"x": None}, [2]),
        ({"x": [None, 0.5]}, [1, 2]),
        ({"b": True}, [0, 2]),
        ({"t": "1"}, [0]),
        ({"t": ""}, [2]),
        ({"n": 2, "b": True}, [2]),
    ],
)
def test_where_compares_numbers_and_truth_values(tmp_path, written, where, wanted):
    rows = [row | {name: values[at] for name, values in VALUES.items()} for at, row in enumerate(ROWS)]
    path = written(tmp_path / "pairs", rows)
    assert [pair.index for pair in load_preferences(str(path), where=where)] == wanted


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"n": 3}, "has no row with n 3; it has 1, 2."),
        ({"n": [1, 3]}, "has no row with n 3; it has 1, 2."),
        ({"b": None}, "has no row with b null; it has true, false."),
        ({"n": "2"}, 'where has n "2", text, but the column holds a number, such as 1.'),
        ({"n": True}, "where has n true, true or false, but the column holds a number, such as 1."),
        ({"b": 1}, "where has b 1, a number, but the column holds true or false, such as true."),
        ({"t": 1}, 'where has t 1, a number, but the column holds text, such as "1".'),
    ],
)
def test_where_errors_list_the_values(tmp_path, where, message):
    """Of another kind, the remedy names a value of the right one, which then works."""
    rows = [row | {name: values[at] for name, values in VALUES.items()} for at, row in enumerate(ROWS)]
    path = as_jsonl(tmp_path / "pairs", rows)
    error = refused(path, where=where)
    assert message in error.cause
    if "for example" in error.remedy:
        example = yaml.safe_load(error.remedy.partition("for example ")[2].removesuffix("."))
        assert load_preferences(str(path), where=example)


def test_where_over_lists_is_refused(tmp_path):
    path = as_parquet(tmp_path / "pairs", [ROWS[0] | {"tags": ["a"]}])
    assert "the column holds list" in refused(path, where={"tags": "a"}).cause
    assert "no row with tags null" in refused(path, where={"tags": None}).cause


def test_the_loaded_split_is_recorded(tmp_path):
    assert load_preferences(str(as_saved_splits(tmp_path / "splits", ROWS)), split="train").split == "train"
    assert load_preferences(str(as_folder_of_jsonl(tmp_path / "folder", ROWS))).split == "test"
    assert load_preferences(str(as_jsonl(tmp_path / "file", ROWS)), split="train").split is None


def test_margins_are_kept(jsonl):
    path = jsonl(ROWS[0] | {"margin": 1}, ROWS[1] | {"margin": -0.5})
    assert [pair.margin for pair in load_preferences(path)] == [1.0, -0.5]
    assert [pair.margin for pair in load_preferences(jsonl(*ROWS))] == [None] * 3


def test_fingerprints_of_earlier_runs_stay_valid():
    """The value that the first build wrote to run.json: reports compare runs of both by it."""
    pairs = [PreferencePair("Why?", "Porque sí", "No."), PreferencePair("a\n", "b", "c", index=4, margin=0.5)]
    assert fingerprint(pairs) == "adc8cd4b806b2b13c56e17fc049d39986d200ab317c3a6aa93cda017bd971726"


def test_the_fingerprint_covers_the_usable_pairs(jsonl):
    first = load_preferences(jsonl(*ROWS)).fingerprint
    assert load_preferences(jsonl(*ROWS, ROWS[0] | {"chosen": "No."})).fingerprint == first
    assert load_preferences(jsonl(*ROWS[::-1])).fingerprint != first
    assert load_preferences(jsonl(*(row | {"margin": 1.0} for row in ROWS))).fingerprint != first
    moved = drop_identical([PreferencePair("a", "bc", "d")], "x").fingerprint
    assert moved != drop_identical([PreferencePair("ab", "c", "d")], "x").fingerprint


# --- text stays text -----------------------------------------------------------------------------------------------

TEXTS = {
    "date": "2024-01-01",
    "time": "12:30",
    "timestamp": "2024-01-01T00:00:00Z",
    "seconds": "2024-01-01 12:30:00",
    "american date": "01/02/2024",
    "digits": "123",
    "leading zeros": "007",
    "exponent": "1e5",
    "negative zero": "-0",
    "a long number": "9" * 40,
    "null": "null",
    "not a number": "NaN",
    "true": "true",
    "quoted": '"x"',
    "a list": "[1, 2]",
    "an object": '{"a": 1}',
    "escapes": "\u00e9 \\u00e9 \t\r\n \x00 \x85\u2028\u2029\x0b\x1c",
    "emoji": "😀 and 𝒳",
    "a byte order mark": "\ufeffx",
}


def as_escaped_jsonl(path, rows):
    path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path.with_suffix(".jsonl")


def as_compressed_jsonl(path, rows):
    path.mkdir()
    with gzip.open(path / "test.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, rows)))
    return path


def as_folder_of_json(path, rows):
    """Of one split, whose name `datasets` does not know as one."""
    path.mkdir()
    as_json_list(path / "test", rows)
    return path


def as_folder_without_splits(path, rows):
    """Files of any name are the split train of a folder."""
    path.mkdir()
    return as_jsonl(path / "pairs", rows).parent


READ_AS_JSON = [
    as_jsonl,
    as_escaped_jsonl,
    as_compressed_jsonl,
    as_json_list,
    as_json_lines,
    as_folder_of_json,
    as_folder_without_splits,
]


@pytest.mark.parametrize("written", READ_AS_JSON, ids=lambda each: each.__name__)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_are_read_unchanged(tmp_path, written, text):
    """Every text of a column looks like something else."""
    path = written(tmp_path / "pairs", [{"prompt": text, "chosen": text, "rejected": text + "!", "tag": text}] * 2)
    split = "train" if written is as_folder_without_splits else "test"
    for where in (None, {"tag": text}):
        pairs = list(load_preferences(str(path), split=split, where=where))
        assert pairs == [PreferencePair(text, text, text + "!", index) for index in range(2)]


@pytest.mark.parametrize("value", [12345, 1.5, True, None, 10**30])
def test_a_column_of_numbers_is_refused(jsonl, value):
    cause = refused(jsonl(ROWS[0] | {"prompt": value})).cause
    assert "row 0, column prompt holds" in cause
    assert "text" in cause or "a number of more than 64 bits" in cause


def test_the_row_of_a_mixed_type_is_named(jsonl):
    path = jsonl(*(ROWS[0] | {"prompt": "x"} for _ in range(1200)), ROWS[0] | {"prompt": 3})
    assert refused(path).cause == f"{path}: row 1200, column prompt holds int, unlike the rows before it."


def test_unused_columns_may_hold_anything(jsonl):
    odd = [1, "a", None, [1], {"a": 1}, 10**30, math.nan]
    path = jsonl(*(ROWS[0] | {"odd": value} for value in odd))
    assert len(load_preferences(path)) == len(odd)
    assert "row 1, column odd holds str, unlike the rows before it" in refused(path, where={"odd": "a"}).cause


def test_duplicate_keys_are_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROWS[0]) + '\n{"prompt": "p", "prompt": "q", "chosen": "c", "rejected": "r"}')
    assert refused(path).cause == f"{path} is not JSON (after 1 complete rows): the key prompt occurs twice."


def test_half_of_a_surrogate_pair_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a\\ud83d", "rejected": "b"}')
    assert refused(path).cause == f"{path}: row 0, column chosen holds half of a surrogate pair, which is not text."
    path.write_text('{"prompt": "p", "chosen": "a\\ud83d\\ude00", "rejected": "b"}')
    assert load_preferences(str(path)).pairs[0].chosen == "a😀"


def test_a_file_that_changes_is_read_again(tmp_path):
    """The cache goes by content, not by path, size or time."""
    path = tmp_path / "pairs.jsonl"
    for text in ("one", "two", "one"):
        as_jsonl(tmp_path / "pairs", [ROWS[0] | {"chosen": text}])
        os.utime(path, (0, 0))
        assert load_preferences(str(path)).pairs[0].chosen == text


def test_whole_numbers_and_fractions_are_one_column(jsonl):
    """Over more rows than are looked at together."""
    margins = [1] * 1000 + [0.5]
    path = jsonl(*(ROWS[0] | {"margin": each} for each in margins))
    assert [pair.margin for pair in load_preferences(path)] == margins


# --- bad rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_a_missing_column_lists_the_columns(jsonl, column):
    path = jsonl(*({key: value for key, value in row.items() if key != column} for row in ROWS))
    error = refused(path)
    assert f"{path} has no column {column}" in error.cause
    assert "prompt" in error.remedy


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u00a0"])
def test_an_empty_text_is_named_by_row_and_column(jsonl, column, text):
    path = jsonl(ROWS[0], ROWS[1] | {column: text})
    assert refused(path).cause == f"{path}: row 1 has an empty {column}."


@pytest.mark.parametrize("value", [3, None, True, ["Yes"], {"role": "user"}, [{"role": "user", "content": "hi"}]])
def test_a_column_of_another_type_is_named(jsonl, value):
    path = jsonl(ROWS[0] | {"chosen": value})
    assert refused(path).cause.startswith(f"{path}: row 0, column chosen holds {type(value).__name__}, not text")


def test_a_single_row_of_another_type_is_named(jsonl):
    path = jsonl(ROWS[0], {"prompt": "p", "chosen": "c"})
    assert f"{path}: row 1, column rejected" in refused(path).cause


@pytest.mark.parametrize("margin", [math.nan, math.inf, -math.inf, "0.5", True, [1]])
def test_a_margin_must_be_a_finite_number(tmp_path, margin):
    datasets.Dataset.from_list([ROWS[0] | {"margin": margin}]).to_parquet(tmp_path / "pairs.parquet")
    assert f"{tmp_path / 'pairs.parquet'}: row 0 has the margin" in refused(tmp_path / "pairs.parquet").cause


def test_a_margin_that_only_some_pairs_have_is_an_error(tmp_path):
    """pandas writes NaN to parquet as null."""
    margins = [0.5, math.nan, 1.0]
    pd.DataFrame(ROWS).assign(margin=margins).to_parquet(tmp_path / "pairs.parquet")
    assert "row 1 has no margin" in refused(tmp_path / "pairs.parquet").cause


def test_identical_responses_are_counted_and_dropped_or_an_error(jsonl):
    same = ROWS[0] | {"chosen": "No."}
    path = jsonl(ROWS[0], same, ROWS[1], same)
    data = load_preferences(path)
    assert [pair.index for pair in data] == [0, 2]
    assert data.dropped == {"identical responses": 2}
    assert "row 1 has the same text as chosen and as rejected" in refused(path, identical="error").cause
    only = refused(jsonl(same, same))
    assert "no usable pair (2 have identical responses)" in only.cause


# --- bad sources ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["no.jsonl", "x/no.parquet", "/no/such/folder", "../nothing", "a/b/c", "https://x/y"])
def test_a_missing_path_is_named(path):
    error = refused(path)
    assert "does not exist" in error.cause
    assert path.split("/")[-1] in error.cause


def test_paths_are_relative_to_the_root(tmp_path):
    assert refused("rewardmth", root=tmp_path).cause == f"{tmp_path / 'rewardmth'} does not exist."


@pytest.mark.parametrize("name", ["rewardmth", "no-such/set"])
def test_a_hub_id_without_a_network(name):
    cause = refused(name).cause
    assert name in cause
    assert "is not a local file, and the Hub does not provide it (HF_HUB_OFFLINE is set)" in cause


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("content", ["", "\n\n", "[]", "not that", '{"prompt": "x"', "3", "\x00\x01"])
def test_damaged_or_empty_files_are_named(tmp_path, capfd, suffix, content):
    path = tmp_path / f"pairs{suffix}"
    path.write_text(content)
    error = refused(path)
    assert str(path) in error.cause
    assert "generating the dataset" not in error.cause  # what `datasets` says of every failure
    assert capfd.readouterr().err == ""


def test_a_table_without_rows_is_named(tmp_path):
    path = tmp_path / "pairs.parquet"
    pd.DataFrame({column: pd.Series([], dtype=str) for column in ("prompt", "chosen", "rejected")}).to_parquet(path)
    assert refused(path).cause == f"{path} holds no rows."


def test_text_that_is_not_utf8_is_an_error(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(ROWS[1], ensure_ascii=False).encode("latin1", errors="replace"))
    assert refused(path).cause == f"{path} holds text that is not UTF-8."


def test_unsupported_files_and_folders_are_refused(tmp_path):
    (tmp_path / "pairs.tsv").write_text("prompt\tchosen\trejected\na\tb\tc\n")
    assert "unsupported file type" in refused(tmp_path / "pairs.tsv").cause
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "test.csv").write_text("prompt,chosen,rejected\na,007,1.50\n")
    assert "texts and numbers look alike" in refused(tmp_path / "folder").cause
    (tmp_path / "folder" / "test.csv").unlink()
    rows = [{"prompt": "a", "chosen": "007", "rejected": "1.50"}]
    (tmp_path / "folder" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_preferences(str(tmp_path / "folder")).pairs[0].rejected == "1.50"
    (tmp_path / "empty").mkdir()
    assert "cannot be read" in refused(tmp_path / "empty").cause
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert "cannot be read" in refused(tmp_path / "half").cause


@pytest.mark.released
def test_the_released_sets_load(released):
    sizes = {"ultrafeedback": 200, "ultrafeedback_paraphrased": 200, "ultrafeedback_french": 200, "rewardmath": 200}
    for name, size in sizes.items():
        data = load_preferences(name, root=released)
        assert len(data) + sum(data.dropped.values()) == size
    assert len(load_preferences("rewardmath", split="train", root=released)) == 2000
