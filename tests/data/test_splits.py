"""Slices and sums of splits give the rows that `datasets` gives, on every kind of source."""

from __future__ import annotations

import json

import datasets
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from rmkit.config.recipe import PreferenceSet
from rmkit.data.preferences import load_preferences
from rmkit.data.sources.use import load_set, reading_notes
from rmkit.errors import RmkitError
from rmkit.evaluation.suites import SuiteSet
from rmkit.evaluation.suites import load_set as load_suite_set

TRAIN = [{"prompt": f"p{number}", "chosen": "c", "rejected": "r", "odd": str(number % 2)} for number in range(30)]
TEST = [{"prompt": f"t{number}", "chosen": "c", "rejected": "r", "odd": "0"} for number in range(7)]
SPLITS = datasets.DatasetDict(train=datasets.Dataset.from_list(TRAIN), test=datasets.Dataset.from_list(TEST))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def _write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def saved_splits(folder):
    SPLITS.save_to_disk(folder / "pairs")
    return folder / "pairs"


def saved_dataset(folder):
    SPLITS["train"].save_to_disk(folder / "pairs")
    return folder / "pairs"


def jsonl(folder):
    _write_jsonl(folder / "pairs.jsonl", TRAIN)
    return folder / "pairs.jsonl"


def parquet(folder):
    SPLITS["train"].to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def csv(folder):
    pd.DataFrame(TRAIN).to_csv(folder / "pairs.csv", index=False)
    return folder / "pairs.csv"


def folder_of_jsonl(folder):
    _write_jsonl(folder / "train-00000-of-00002.jsonl", TRAIN[:11])
    _write_jsonl(folder / "train-00001-of-00002.jsonl", TRAIN[11:])
    _write_jsonl(folder / "test.jsonl", TEST)
    return folder


def folder_of_parquet(folder):
    for name, rows in SPLITS.items():
        rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


WITH_SPLITS = [saved_splits, folder_of_jsonl, folder_of_parquet]
WITHOUT = [saved_dataset, jsonl, parquet, csv]


@pytest.mark.parametrize("write", [*WITH_SPLITS, *WITHOUT], ids=lambda each: each.__name__)
def test_slices_are_those_of_datasets(tmp_path, tmp_path_factory, write):
    reference = folder_of_parquet(tmp_path_factory.mktemp("reference"))
    path = str(write(tmp_path))
    for split in ("train[:95%]", "train[3:9]", "train[-10%:]", "train[25:]", "train[:2]+train[-2:]", "train[:3%]"):
        wanted = datasets.load_dataset(str(reference), split=split)["prompt"]
        found = load_preferences(path, split=split)
        assert [pair.prompt for pair in found] == list(wanted)
        assert [f"p{pair.index}" for pair in found] == list(wanted)
        assert found.split == (None if write in WITHOUT else split)


@pytest.mark.parametrize("write", WITH_SPLITS, ids=lambda each: each.__name__)
def test_sums_are_read_one_after_the_other(tmp_path, write):
    found = load_preferences(str(write(tmp_path)), split="train[28:]+test[:2]")
    assert [(pair.prompt, pair.index) for pair in found] == [("p28", 28), ("p29", 29), ("t0", 30), ("t1", 31)]


def test_a_hub_set_is_sliced(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: SPLITS)
    found = load_preferences("owner/name", split="test[-2:]+train[:1]")
    assert [(pair.prompt, pair.index) for pair in found] == [("t5", 5), ("t6", 6), ("p0", 7)]


def test_a_prepared_source_is_sliced(tmp_path):
    graphs = {"name": "hamiltonian", "vertices": 5, "train": 4, "test": 3}
    whole = list(load_set(PreferenceSet(name="a", source=graphs, split="train"), root=tmp_path))
    assert list(load_set(PreferenceSet(name="a", source=graphs, split="train[-50%:]"), root=tmp_path)) == whole[2:]


def test_a_best_of_set_is_sliced(tmp_path):
    _write_jsonl(
        tmp_path / "test.jsonl", [{"prompt": f"p{n}", "chosen": "c", "rejected": ["r", "s"]} for n in range(4)]
    )
    suite_set = SuiteSet(name="a", path="test.jsonl", split="test[1:3]", score="best_of")
    assert [pair.index for pair in load_suite_set(suite_set, tmp_path)] == [1, 1, 2, 2]


def test_a_limit_with_a_seed_draws_rows_that_stay_in_their_order(tmp_path):
    rows = [{"prompt": f"x{number}", "chosen": "y", "rejected": "z", "even": number % 2 == 0} for number in range(40)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:5].tolist()
    found = load_preferences(str(file), where={"even": True}, limit=5, limit_seed=3)
    assert [pair.index for pair in found] == [2 * number for number in sorted(drawn)]
    assert [pair.prompt for pair in found] == [f"x{pair.index}" for pair in found]
    assert [pair.index for pair in load_preferences(str(file), limit=5)] == [0, 1, 2, 3, 4]  # the control arm
    assert len(load_preferences(str(file), limit=99, limit_seed=3)) == 40
    with pytest.raises(ValidationError, match="give a limit, or remove limit_seed"):
        PreferenceSet(name="a", path="a", limit_seed=3)


def test_where_and_limit_come_after_the_slice(tmp_path):
    found = load_preferences(str(jsonl(tmp_path)), split="train[10:]", where={"odd": "1"}, limit=2)
    assert [pair.index for pair in found] == [11, 13]


def test_a_file_without_splits_says_what_is_ignored(tmp_path):
    settings = PreferenceSet(name="a", path=jsonl(tmp_path).name, split="train[:10]")
    data = load_set(settings, root=tmp_path)
    assert len(data) == 10
    assert reading_notes(settings, data) == [
        "warning: a: pairs.jsonl has no splits: the name in `split: train[:10]` is ignored"
    ]


@pytest.mark.parametrize(
    ("split", "cause"),
    [
        ("train[5:5]", "holds no row; there are 30 in train."),
        ("train[9:5]", "holds no row; there are 30 in train."),
        ("train[:5", "cannot be read"),
        ("train[5]", "cannot be read"),
        ("train[:200%]", "cannot be read"),
        ("train[:20%](pct1_dropremainder)", "cannot be read"),
        ("train+", "cannot be read"),
        ("train[:5]+train[4:6]", "holds a row twice."),
        ("train[:5]+other", "has no split other"),
    ],
)
def test_bad_splits_are_refused(tmp_path, split, cause):
    path = str(saved_splits(tmp_path))
    with pytest.raises(RmkitError, match="split") as error:
        load_preferences(path, split=split)
    assert cause in error.value.cause
    assert "\n" not in error.value.cause + error.value.remedy


def test_one_file_is_not_read_twice(tmp_path):
    path = str(jsonl(tmp_path))
    with pytest.raises(RmkitError, match="would read its rows twice") as error:
        load_preferences(path, split="train[:2]+test[:2]")
    assert error.value.remedy == "Name one split; its slice is used."
    assert len(load_preferences(path, split="train[:2]+train[4:6]")) == 4


def test_splits_of_other_types_are_refused(tmp_path):
    _write_jsonl(tmp_path / "train.jsonl", TRAIN)
    _write_jsonl(tmp_path / "test.jsonl", [row | {"prompt": [{"role": "user", "content": "a"}]} for row in TEST])
    with pytest.raises(RmkitError, match="columns of different types"):
        load_preferences(str(tmp_path), split="train+test")
    assert len(load_preferences(str(tmp_path), split="test[:3]")) == 3
