"""The released sets: copied from a clone or an archive to short names; damaged ones are named and left out."""

from __future__ import annotations

import http.server
import io
import shutil
import tarfile
import threading
from functools import partial

import datasets
import pytest
from released_clone import FOLDERS, rows, write_clone

from rmkit.config.recipe import PreferenceSet
from rmkit.data.preferences import load_preferences
from rmkit.data.sources import released, use
from rmkit.data.sources.prepare import prepare_source
from rmkit.data.sources.released import ReleasedOptions, find_defect, prepare_all
from rmkit.errors import RmkitError


@pytest.fixture
def clone(tmp_path):
    return write_clone(tmp_path / "clone")


def shard(clone, name, split):
    return clone / "data_files" / FOLDERS[name] / split / "data-00000-of-00001.arrow"


def test_every_set_gets_its_short_name(tmp_path, clone):
    results = prepare_all(ReleasedOptions(source=clone), tmp_path / "data")
    assert set(results) == set(FOLDERS)
    for name in FOLDERS:
        pairs = load_preferences(name, root=tmp_path / "data", split="test")
        assert [pair.chosen for pair in pairs] == [f"{name} good {each}" for each in range(4)]
        card = results[name]
        assert (card["name"], card["seed"], card["splits"]["train"]["rows"]) == (f"released/{name}", None, 8)
        assert card["steps"][0]["step"] == FOLDERS[name].removeprefix("rewritten/")
    french = datasets.load_from_disk(str(tmp_path / "data" / "ultrafeedback_french"))["test"]
    assert "orig_chosen" in french.column_names


def test_the_card_counts_rewrites_that_end_in_the_middle(tmp_path, clone):
    folder = clone / "data_files" / FOLDERS["ultrafeedback_french"]
    pairs = [("A.", "Un.", "B", "Deux"), ("A.", "Un", "B.", "Deux"), ("A)", "Un (", "B!", "Deux")]
    columns = ("orig_chosen", "chosen", "orig_rejected", "rejected")
    texts = dict(zip(columns, map(list, zip(*pairs, strict=True)), strict=True))
    rewritten = datasets.Dataset.from_dict({"prompt": ["x", "y", "z"]} | texts)  # cut: neither, both, rejected
    shutil.rmtree(folder)
    datasets.DatasetDict({"test": rewritten, "train": rewritten.select([0])}).save_to_disk(str(folder))
    card = prepare_all(ReleasedOptions(source=clone), tmp_path / "data")["ultrafeedback_french"]
    assert card["cut"] == {"test": 2, "train": 0}
    text = (tmp_path / "data" / "ultrafeedback_french" / "README.md").read_text()
    assert "2 of the 3 pairs of test have a response that ends in a letter or digit, unlike its original" in text


def test_damaged_folders_are_named_and_left_out(tmp_path, clone):
    shard(clone, "rewardmath", "train").unlink()
    cut = shard(clone, "ultrafeedback_french", "test")
    cut.write_bytes(cut.read_bytes()[:-8])  # all rows are there, but not the end of the stream
    halved = shard(clone, "ultrafeedback_spanish", "train")
    halved.write_bytes(halved.read_bytes()[: halved.stat().st_size // 2])
    pointer = shard(clone, "rewardbench_code", "test")
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (clone / "data_files" / FOLDERS["ultrafeedback_paraphrased"] / "dataset_dict.json").unlink()
    results = prepare_all(ReleasedOptions(source=clone), tmp_path / "data")
    assert {name for name, each in results.items() if not isinstance(each, str)} == {
        "ultrafeedback",
        "rewardbench_math",
    }
    assert {each.name for each in (tmp_path / "data").iterdir()} == {"ultrafeedback", "rewardbench_math"}
    for name in ("rewardmath", "ultrafeedback_french", "ultrafeedback_spanish", "rewardbench_code"):
        assert FOLDERS[name] in results[name]
    assert "test/data-00000-of-00001.arrow is truncated" in results["ultrafeedback_french"]


def test_a_shard_truncated_between_batches_is_detected(tmp_path):
    """Such a file reads without an error, as a shorter set."""
    made = datasets.DatasetDict({"test": rows("x", "test", 30)})
    with datasets.arrow_writer.ArrowWriter(path=str(tmp_path / "batches.arrow"), writer_batch_size=10) as writer:
        for row in made["test"]:
            writer.write(row)
        writer.finalize()
    made.save_to_disk(str(tmp_path / "set"))
    file = tmp_path / "set" / "test" / "data-00000-of-00001.arrow"
    whole = (tmp_path / "batches.arrow").read_bytes()
    file.write_bytes(whole)
    assert find_defect(tmp_path / "set") is None
    message = b"\xff\xff\xff\xff"
    third = [at for at in range(len(whole)) if whole[at : at + 4] == message][3]  # after the schema and two batches
    file.write_bytes(whole[:third])
    assert len(datasets.load_from_disk(str(tmp_path / "set"))["test"]) == 20
    assert find_defect(tmp_path / "set") == "test/data-00000-of-00001.arrow is truncated"


def test_the_newest_folder_is_used(tmp_path, clone):
    newer = FOLDERS["rewardmath"].replace("2025_04_13", "2025_05_01")
    made = datasets.DatasetDict({"train": rows("newer", "train", 8), "test": rows("newer", "test", 4)})
    made.save_to_disk(str(clone / "data_files" / newer))
    card = prepare_source("released/rewardmath", {"source": clone}, tmp_path / "set", error_label="test")
    assert card["steps"][0]["step"] == newer


@pytest.mark.parametrize("what", ["nothing", "empty"])
def test_a_source_that_is_not_a_clone(tmp_path, what):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RmkitError, match="is not a clone of princeton-pli/exrm-vs-imrm"):
        prepare_all(ReleasedOptions(source=tmp_path / what), tmp_path / "data")


def test_nothing_is_replaced_without_overwrite(tmp_path, clone):
    (tmp_path / "data" / "ultrafeedback_spanish").mkdir(parents=True)
    (tmp_path / "data" / "ultrafeedback_spanish" / "mine.txt").write_text("x")
    with pytest.raises(RmkitError, match="ultrafeedback_spanish exists and is not a prepared set"):
        prepare_all(ReleasedOptions(source=clone), tmp_path / "data", overwrite=True)
    assert [each.name for each in (tmp_path / "data").iterdir()] == ["ultrafeedback_spanish"]


# --- the archive ---------------------------------------------------------------------------------------------------


def archive_of(clone, file, commit, extra=None):
    """As `git archive` makes it: the commit as a comment, everything in one folder."""
    with tarfile.open(file, "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": commit}) as tar:
        readme = tarfile.TarInfo(f"exrm-vs-imrm-{commit}/README.md")
        readme.size = 5
        tar.addfile(readme, io.BytesIO(b"hello"))
        tar.add(clone / "data_files", arcname=f"exrm-vs-imrm-{commit}/data_files")
        if extra is not None:
            tar.addfile(extra)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A local server in the place of the authors' repository, and the requests that it got."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    folder = tmp_path / "served" / "archive"
    folder.mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "served"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(released, "URL", f"http://127.0.0.1:{server.server_port}/archive/{{commit}}.tar.gz")
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield folder, asked
    server.shutdown()
    server.server_close()


def test_the_archive_is_downloaded_once(tmp_path, clone, served):
    folder, asked = served
    archive_of(clone, folder / f"{released.COMMIT}.tar.gz", released.COMMIT)
    for name in ("ultrafeedback", "ultrafeedback_french"):
        wanted = PreferenceSet(name=name, path=name, source=f"released/{name}")
        pairs = use.load_set(wanted, root=tmp_path / "data")
        assert pairs.pairs[0].chosen == f"{name} good 0"
    assert len(asked) == 1
    card = prepare_source("released/rewardmath", {}, tmp_path / "set", error_label="test")
    assert card["revision"] == released.COMMIT
    assert len(asked) == 1


def test_an_archive_of_another_commit_is_refused(tmp_path, clone, served):
    folder, _ = served
    archive_of(clone, folder / f"{released.COMMIT}.tar.gz", "0" * 40)
    with pytest.raises(RmkitError, match=f"is of the commit {'0' * 40}, not {released.COMMIT}"):
        prepare_all(ReleasedOptions(), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("fault", ["cut", "garbage", "missing"])
def test_a_failed_download_leaves_nothing_and_can_be_repeated(tmp_path, clone, served, fault):
    folder, _ = served
    file = folder / f"{released.COMMIT}.tar.gz"
    archive_of(clone, file, released.COMMIT)
    whole = file.read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[: len(whole) // 2] if fault == "cut" else b"no archive" * 100)
    with pytest.raises(RmkitError, match="cannot be downloaded" if fault == "missing" else "is damaged"):
        prepare_all(ReleasedOptions(), tmp_path / "data")
    file.write_bytes(whole)
    assert len(prepare_all(ReleasedOptions(), tmp_path / "data")) == len(FOLDERS)


def test_an_archive_cannot_write_elsewhere(tmp_path, clone, served):
    folder, _ = served
    evil = tarfile.TarInfo(f"exrm-vs-imrm-{released.COMMIT}/data_files/../../../../evil.txt")
    archive_of(clone, folder / f"{released.COMMIT}.tar.gz", released.COMMIT, evil)
    with pytest.raises(RmkitError, match="is damaged"):
        prepare_all(ReleasedOptions(), tmp_path / "data")
    assert not list(tmp_path.rglob("evil.txt"))


def test_offline_mode_is_reported(tmp_path, served, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RmkitError, match="while HF_HUB_OFFLINE is set"):
        prepare_all(ReleasedOptions(), tmp_path / "data")
    with pytest.raises(RmkitError, match="is not a commit"):
        prepare_all(ReleasedOptions(revision="main"), tmp_path / "data")


def test_sets_from_a_read_only_clone_are_writable(tmp_path, clone):
    places = [clone, *clone.rglob("*")]
    for each in places:
        each.chmod(0o555 if each.is_dir() else 0o444)
    prepare_all(ReleasedOptions(source=clone), tmp_path / "data")
    assert all(each.stat().st_mode & 0o200 for each in (tmp_path / "data").rglob("*"))
    for each in places:
        each.chmod(0o755 if each.is_dir() else 0o644)


def test_the_clone_is_not_modified(tmp_path, clone):
    shutil.copytree(clone, tmp_path / "before")
    prepare_all(ReleasedOptions(source=clone), tmp_path / "data")

    def content(folder):
        return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    assert content(clone) == content(tmp_path / "before")
