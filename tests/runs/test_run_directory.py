"""Files are there complete or not at all, and a run's directory is never taken from anything else."""

from __future__ import annotations

import json
import math

import pyarrow.parquet as pq
import pytest

from rmkit.errors import RmkitError
from rmkit.files import replacing, write_json, write_table, write_text
from rmkit.runs.directory import FORMAT, RunDirectory


def names(folder):
    return sorted(each.name for each in folder.iterdir())


# --- whole files ---------------------------------------------------------------------------------------------------


def test_files_and_their_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "text", "été\n")
    write_table(tmp_path / "a" / "table.parquet", {"index": [0, 2], "chosen_reward": [0.1, math.nan]})
    assert (tmp_path / "a" / "b" / "text").read_bytes() == "été\n".encode()
    assert pq.read_table(tmp_path / "a" / "table.parquet").column("index").to_pylist() == [0, 2]
    assert names(tmp_path / "a") == ["b", "table.parquet"]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("begun", [True, False])
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path, interruption, begun):
    path = tmp_path / "run.json"
    for old in (None, "old"):
        if old:
            path.write_text(old)

        def write():
            with replacing(path) as temporary:
                if begun:
                    temporary.write_text("half of the n")
                raise interruption

        with pytest.raises(interruption):
            write()
        assert names(tmp_path) == (["run.json"] if old else [])
    assert path.read_text() == "old"


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_the_old_folder(tmp_path, interruption):
    path = tmp_path / "model"
    path.mkdir()
    (path / "weights").write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / "weights").write_text("new")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert names(tmp_path) == ["model"]
    assert (path / "weights").read_text() == "old"


def test_a_folder_is_replaced_whole(tmp_path):
    path = tmp_path / "model"
    for number in range(2):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / f"weights-{number}").write_text("new")
    assert names(path) == ["weights-1"]
    assert names(tmp_path) == ["model"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.mkdir()
    (path / "weights").write_text("old")
    original, calls = __import__("os").replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 2:  # the old folder has been moved away, the new one is not there yet
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr("rmkit.files.os.replace", failing)

    def write():
        with replacing(path) as temporary:
            temporary.mkdir()

    with pytest.raises(KeyboardInterrupt):
        write()
    assert len(calls) == 3
    assert names(tmp_path) == ["model"]
    assert (path / "weights").read_text() == "old"


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    """`--output results` where results/ holds a year's work."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "precious").write_text("x")
    with pytest.raises(RmkitError, match="is a folder that is there already"):
        write_table(tmp_path / "results", {"index": [0]})
    assert names(tmp_path) == ["results"]
    assert names(tmp_path / "results") == ["precious"]


def test_a_folder_never_takes_the_place_of_a_file(tmp_path):
    (tmp_path / "model").write_text("x")

    def write():
        with replacing(tmp_path / "model") as temporary:
            temporary.mkdir()

    with pytest.raises(RmkitError, match="is a file that is there already"):
        write()
    assert (tmp_path / "model").read_text() == "x"
    assert names(tmp_path) == ["model"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RmkitError, match=r"file/rewards.parquet cannot be written"):
        write_table(tmp_path / "file" / "rewards.parquet", {"index": [0]})
    assert names(tmp_path) == ["file"]


def test_json_has_no_names_for_what_is_not_finite(tmp_path):
    content = {"a": math.nan, "b": [math.inf, {"c": -math.inf, "d": 1.5}], 3: (1, None, True), "e": "NaN été"}
    write_json(tmp_path / "run.json", content)
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read == {"a": None, "b": [None, {"c": None, "d": 1.5}], "3": [1, None, True], "e": "NaN été"}
    assert text.startswith('{\n  "a"')  # indented
    assert "été" in text


def test_json_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "run.json", {"a": object()})
    assert names(tmp_path) == []


# --- claiming ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A finished run."""
    directory = RunDirectory(tmp_path / "run")
    directory.claim("a: 1\n")
    write_json(directory.record, {"format": FORMAT, "accuracy": 1.0})
    write_table(directory.rewards("test"), {"index": [0]})
    write_table(directory.rewards("test", "initial"), {"index": [0]})
    write_table(directory.examples("test"), {"index": [0]})
    (directory.model).mkdir()
    (directory.model / "model.safetensors").write_bytes(b"x")
    (directory.path / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    return directory


def test_a_new_or_empty_directory_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "a" / "b", tmp_path / "empty"):
        RunDirectory(path).claim("b: 2\n")
        assert names(path) == ["recipe.yaml"]
        assert (path / "recipe.yaml").read_text() == "b: 2\n"


def test_a_directory_that_holds_a_run_is_refused(run):
    before = sorted(path.relative_to(run.path) for path in run.path.rglob("*"))
    with pytest.raises(RmkitError) as error:
        run.claim("b: 2\n")
    assert "holds another run" in error.value.cause
    assert "--overwrite" in error.value.remedy
    assert "resume=auto" in error.value.remedy
    assert sorted(path.relative_to(run.path) for path in run.path.rglob("*")) == before


def test_overwriting_removes_the_whole_run(run):
    run.claim("b: 2\n", overwrite=True)
    assert names(run.path) == ["recipe.yaml"]


def test_overwriting_removes_what_an_interruption_left(run):
    (run.path / ".run.json.ab12cd").mkdir()
    (run.path / ".model.ab12cd" / "model").mkdir(parents=True)
    run.record.unlink()
    run.claim("b: 2\n", overwrite=True)
    assert names(run.path) == ["recipe.yaml"]


@pytest.mark.parametrize(
    "foreign", ["thesis.tex", "run.sh", "model.py", "recipe.yaml.bak", "rewards.csv", ".git", ".model", "examples.zip"]
)
def test_overwriting_never_costs_anyone_their_files(run, foreign):
    (run.path / foreign).write_text("x")
    before = names(run.path)
    with pytest.raises(RmkitError, match="which no run writes"):
        run.claim("b: 2\n", overwrite=True)
    assert names(run.path) == before


def test_overwriting_takes_only_what_a_run_has_made(tmp_path):
    """A project may have folders of these names too."""
    for name in ("model", "examples"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("x")
    with pytest.raises(RmkitError, match="it is no run"):
        RunDirectory(tmp_path).claim("b: 2\n", overwrite=True)
    assert (tmp_path / "model" / "precious").exists()


def test_resuming_goes_on_with_the_same_recipe_only(run):
    with pytest.raises(RmkitError, match="holds another run"):
        run.claim("b: 2\n", resume=True)
    (run.path / "recipe.yaml").write_bytes(b"\xff")
    with pytest.raises(RmkitError, match="holds another run"):
        run.claim("b: 2\n", resume=True)


def test_resuming_removes_what_an_interruption_left_and_nothing_else(run):
    before = sorted(path.relative_to(run.path) for path in run.path.rglob("*"))
    for left in (".run.json.ab12cd", "rewards/.test.parquet.ab12cd", ".model.ab12cd"):
        (run.path / left).mkdir()
    (run.path / ".git").mkdir()
    run.claim("a: 1\n", resume=True)
    after = sorted(path.relative_to(run.path) for path in run.path.rglob("*"))
    assert after == sorted([*before, (run.path / ".git").relative_to(run.path)])


def test_overwriting_leaves_alone_what_links_point_to(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (run.path / "explain").symlink_to(elsewhere)
    run.claim("b: 2\n", overwrite=True)
    assert names(run.path) == ["recipe.yaml"]
    assert (elsewhere / "precious").exists()


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_or_what_is_below_one_is_refused(tmp_path, overwrite):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RmkitError, match="is a file"):
        RunDirectory(tmp_path / "file").claim("b: 2\n", overwrite)
    with pytest.raises(RmkitError, match="cannot be made"):
        RunDirectory(tmp_path / "file" / "run").claim("b: 2\n", overwrite)


# --- reading -------------------------------------------------------------------------------------------------------


def test_a_record_reads_back(run):
    assert run.read() == {"format": FORMAT, "accuracy": 1.0}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (None, "holds no run.json"),
        ("", "cannot be read"),
        ('{"format": 1, "accur', "cannot be read"),
        ("[]", "is of format None"),
        ("3", "is of format None"),
        ("{}", "is of format None"),
        (json.dumps({"format": FORMAT + 1}), f"is of format {FORMAT + 1}"),
    ],
)
def test_other_records_are_refused(run, text, cause):
    run.record.unlink()
    if text is not None:
        run.record.write_text(text)
    with pytest.raises(RmkitError, match=cause):
        run.read()


def test_names_of_sets_and_states_do_not_meet(tmp_path):
    run = RunDirectory(tmp_path)
    places = [
        run.rewards(name, state) for name in ("initial", "epoch_1", "a") for state in ("initial", "epoch_1", "final")
    ]
    assert len(set(places)) == 9
    assert run.rewards("a") == tmp_path / "rewards" / "a.parquet"
    assert run.rewards("a", "initial") == tmp_path / "rewards" / "initial" / "a.parquet"
