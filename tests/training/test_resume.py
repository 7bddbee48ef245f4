"""Interrupted runs: what they leave, and that a resumed run gives the bits of an uninterrupted one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from tiny import TYPES

from rmkit import RmkitError
from rmkit.config.recipe import Evaluation, Hub
from rmkit.config.strict_yaml import load_yaml, to_yaml
from rmkit.runs.directory import RunDirectory
from rmkit.train import _add_callbacks
from rmkit.training.best_model import BestModelCallback
from rmkit.training.push_callback import PushCallback
from rmkit.training.reference_store import ReferenceStore
from rmkit.training.resume import (
    MARKER,
    PREEMPTED_EXIT_CODE,
    CheckpointCallback,
    check_inputs,
    mark_complete,
    newest_complete,
    recorded_commits,
)
from rmkit.training.scoring_callback import ScoringCallback

pytestmark = pytest.mark.smoke

SAVING = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "logging_steps": 1}  # 6 steps


def interrupt():
    raise KeyboardInterrupt


def contents(directory):
    files = sorted(directory.path.glob("rewards/**/*.parquet"))
    return {str(file.relative_to(directory.path)): pd.read_parquet(file) for file in files}


def same(first, second):
    return first.keys() == second.keys() and all(first[name].equals(second[name]) for name in first)


@pytest.fixture
def publishing_run():
    """What `_add_callbacks` needs of a run that publishes at every save."""
    hub = Hub(push="every_save", repo_id="someone/rm")
    encoded = SimpleNamespace(name="train")
    recipe = SimpleNamespace(hub=hub, evaluation=Evaluation())
    return SimpleNamespace(
        recipe=recipe,
        arguments=SimpleNamespace(output_dir="run/checkpoints"),
        training_set=encoded,
        inputs={},
        directory=RunDirectory("run"),
    )


@pytest.mark.parametrize("type_name", ["explicit", "implicit", "generative"])
@pytest.mark.parametrize("step", [3, 5])
def test_an_interrupted_run_resumes_to_the_same_bits(run, at_step, type_name, step):
    options = {"evaluation": {"every_epoch": True}, "resume": "auto", "training": SAVING}
    whole = run(type_name, "whole", **options)

    at_step(step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(type_name, "cut", **options)
    assert not (whole.path.parent / "cut" / "run.json").exists()
    resumed = run(type_name, "cut", **options)
    assert same(contents(whole), contents(resumed))
    histories = [
        [(entry["state"], entry["step"], entry["sets"]) for entry in run_dir.read()["history"]]
        for run_dir in (whole, resumed)
    ]
    assert histories[0] == histories[1]


def test_a_truncated_checkpoint_is_skipped(run, at_step):
    options = {"resume": "auto", "training": SAVING}
    whole = run("implicit", "whole", **options)

    at_step(5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("implicit", "cut", **options)
    checkpoints = whole.path.parent / "cut" / "checkpoints"
    weights = checkpoints / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    resumed = run("implicit", "cut", **options)
    assert same(contents(whole), contents(resumed))


def test_an_adapter_run_resumes(run, at_step):
    options = {"resume": "auto", "training": SAVING, "lora": {"r": 4, "alpha": 8}}
    whole = run("explicit", "whole", **options)

    at_step(3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("explicit", "cut", **options)
    assert same(contents(whole), contents(run("explicit", "cut", **options)))


def test_a_run_resumes_only_with_the_models_that_it_started_with(run, at_step, models, tmp_path):
    folder = shutil.copytree(models["qwen2"], tmp_path / "base")
    options = {"resume": "auto", "training": SAVING, "lora": {"r": 4, "alpha": 8}, "base": {"name": str(folder)}}
    at_step(3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("implicit", "cut", **options)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 1.01 * weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        RmkitError, match=r"The base is not the one .*checkpoint-2 .* Changed: model.safetensors"
    ) as error:
        run("implicit", "cut", **options)
    assert error.value.remedy == "Restore it, or start again with --overwrite."
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert run("implicit", "cut", **options).record.exists()


def test_a_run_resumes_only_with_its_data(run, at_step, pairs, tmp_path):
    for name in ("train", "test"):
        shutil.copy(pairs / f"{name}.jsonl", tmp_path)
    train = {"name": "train", "path": "train.jsonl"}
    data = {"root": str(tmp_path), "train": train, "evaluation": [{"name": "test", "path": "test.jsonl"}]}
    options = {"resume": "auto", "training": SAVING, "data": data}
    at_step(3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("explicit", "cut", **options)
    text = (tmp_path / "train.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(text.replace('"prompt": "', '"prompt": "Well, ', 1))
    with pytest.raises(RmkitError, match=r"The data are not those that .*checkpoint-2 .* Changed: train\. "):
        run("explicit", "cut", **options)
    (tmp_path / "train.jsonl").write_text(text)
    assert run("explicit", "cut", **options).record.exists()


def test_a_checkpoint_records_the_commits_of_its_models(tmp_path):
    (tmp_path / "weights").write_bytes(b"x")
    mark_complete(tmp_path, {"base": {"commit": "a" * 40}, "tokenizer": {"tokenizer.json": "1"}})
    assert recorded_commits(tmp_path) == {"base": "a" * 40}
    check_inputs(tmp_path, {"base": {"commit": "a" * 40}, "tokenizer": {"tokenizer.json": "1"}})
    with pytest.raises(RmkitError, match=r"The tokenizer is not .* Changed: tokenizer.json"):
        check_inputs(tmp_path, {"base": {"commit": "a" * 40}, "tokenizer": {"tokenizer.json": "2"}})
    mark_complete(tmp_path)  # as checkpoints of old
    assert recorded_commits(tmp_path) == recorded_commits(None) == {}
    check_inputs(tmp_path, {})


def test_sigterm_saves_and_exits_with_its_own_code(run, at_step):
    options = {"resume": "auto", "training": SAVING | {"save_steps": 100}}
    whole = run("explicit", "whole", **options)
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        run("explicit", "cut", **options)
    assert stopped.value.code == PREEMPTED_EXIT_CODE
    assert (whole.path.parent / "cut" / "checkpoints" / "checkpoint-3" / MARKER).exists()
    assert same(contents(whole), contents(run("explicit", "cut", **options)))


def test_another_recipe_does_not_resume(run):
    run("explicit", "other", resume="auto")
    with pytest.raises(RmkitError, match="holds another run"):
        run("explicit", "other", resume="auto", training={"learning_rate": 0.5})


def test_a_recipe_of_an_older_rmkit_resumes(run):
    """It lacks the keys that came later."""
    first = run("explicit", "done", resume="auto")
    recorded = load_yaml(first.path / "recipe.yaml")
    del recorded["base"]["dropout"], recorded["data"]["special_tokens"]
    (first.path / "recipe.yaml").write_text(to_yaml(recorded))
    before = first.record.read_text()
    assert run("explicit", "done", resume="auto").record.read_text() == before
    with pytest.raises(RmkitError, match="holds another run"):
        run("explicit", "done", resume="auto", base={"dropout": True})


def test_a_finished_run_is_left_unchanged(run):
    first = run("explicit", "done", resume="auto")
    before = (first.record.read_text(), first.record.stat().st_mtime_ns)
    again = run("explicit", "done", resume="auto")
    assert (again.record.read_text(), again.record.stat().st_mtime_ns) == before


def test_a_full_disk_is_reported_and_leaves_the_last_checkpoint(run, at_step):
    def full():
        raise OSError(28, "No space left on device")

    at_step(3, full)
    with pytest.raises(RmkitError, match=r"disk of .* is full") as error:
        run("explicit", "full", resume="auto", training=SAVING)
    assert "resume=auto" in error.value.remedy
    resumed = run("explicit", "full", resume="auto", training=SAVING)
    assert resumed.read()["training"]["steps"] == 6


def test_only_complete_checkpoints_count(tmp_path):
    for step in (2, 10, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"x" * step)
        mark_complete(folder)
    assert newest_complete(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"x")
    assert newest_complete(tmp_path).name == "checkpoint-4"
    assert not (tmp_path / "checkpoint-10").exists()
    (tmp_path / "checkpoint-4" / MARKER).unlink()
    (tmp_path / "checkpoint-2" / MARKER).write_text("{")
    assert newest_complete(tmp_path) is None


def test_the_reference_is_computed_once_for_all_runs(run, monkeypatch):
    """Another seed, learning rate and beta share it; a damaged entry is recomputed."""
    computed = []
    original = ReferenceStore.outputs

    def counting(self, pairs, compute, is_main_process=True):
        def noted():
            computed.append(self.path(pairs))
            return compute()

        return original(self, pairs, noted, is_main_process)

    monkeypatch.setattr(ReferenceStore, "outputs", counting)
    sets = {"evaluation": {"batch_size": 7}}  # a batch size that no other test has scored with
    first = run("implicit", "first", **sets)
    assert len(computed) == 2  # train and test
    monkeypatch.setitem(TYPES, "sharp", {"type": "implicit", "beta": 1})
    run("sharp", "second", training={"seed": 9, "learning_rate": 1e-4}, **sets)
    assert len(computed) == 2
    computed[0].write_bytes(computed[0].read_bytes()[:-8])
    data = bytearray(computed[1].read_bytes())
    data[-1] ^= 1
    computed[1].write_bytes(bytes(data))
    third = run("implicit", "third", **sets)
    assert len(computed) == 4
    assert same(contents(first), contents(third))


def test_a_run_cannot_resume_from_checkpoints_without_an_optimizer(run):
    only_model = SAVING | {"save_only_model": True}
    with pytest.raises(RmkitError, match=r"hold no optimizer.*save_only_model=false, or resume=never"):
        run("explicit", resume="auto", training=only_model)
    assert run("explicit", resume="auto", training=SAVING | {"save_only_model": False}).record.exists()
    assert run("explicit", "never", resume="never", training=only_model).record.exists()


def test_the_callbacks_are_added_in_the_order_that_they_need(publishing_run):
    """Scores and the best model are written before a checkpoint is marked complete; the model is published last."""
    added = []
    trainer = SimpleNamespace(accelerator=None, add_callback=added.append)
    _add_callbacks(publishing_run, trainer, references=None, write=None)
    assert [type(callback) for callback in added] == [
        ScoringCallback,
        BestModelCallback,
        CheckpointCallback,
        PushCallback,
    ]


def test_the_marker_of_a_checkpoint_covers_the_history_of_scores(run):
    directory = run("explicit", training=SAVING)
    marker = json.loads((directory.path / "checkpoints" / "checkpoint-6" / MARKER).read_text())
    assert {ScoringCallback.FILE, "model.safetensors", "optimizer.pt"} <= marker["sizes"].keys()
