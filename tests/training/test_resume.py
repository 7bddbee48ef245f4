"""Interrupted runs: what is left, and that going on gives the bits of the uninterrupted run."""

from __future__ import annotations

import os
import shutil
import signal

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file
from tiny import TYPES

import rmkit.train as train_module
from rmkit import RmkitError
from rmkit.config.strict_yaml import load_yaml, to_yaml
from rmkit.training.reference_store import ReferenceStore
from rmkit.training.resume import (
    MARKER,
    PREEMPTED_EXIT_CODE,
    check_models,
    mark_complete,
    newest_complete,
    recorded_commits,
)

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
def at_step(monkeypatch):
    """Let something happen at the end of a step of the next run, once."""

    def arrange(step, action):
        pending, original = [True], train_module.CheckpointCallback

        def with_it(*given):
            made = original(*given)
            plain = made.on_step_end

            def on_step_end(args, state, control, **options):
                if pending and state.global_step == step:
                    pending.pop()
                    action()
                plain(args, state, control, **options)

            monkeypatch.setattr(made, "on_step_end", on_step_end)
            return made

        monkeypatch.setattr(train_module, "CheckpointCallback", with_it)

    return arrange


@pytest.mark.parametrize("kind", ["explicit", "implicit", "generative"])
@pytest.mark.parametrize("step", [3, 5])
def test_an_interrupted_run_goes_on_to_the_same_bits(run, at_step, kind, step):
    options = {"evaluation": {"every_epoch": True}, "resume": "auto", "training": SAVING}
    whole = run(kind, "whole", **options)

    at_step(step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(kind, "cut", **options)
    assert not (whole.path.parent / "cut" / "run.json").exists()
    resumed = run(kind, "cut", **options)
    assert same(contents(whole), contents(resumed))
    histories = [
        [(each["state"], each["step"], each["sets"]) for each in each_run.read()["history"]]
        for each_run in (whole, resumed)
    ]
    assert histories[0] == histories[1]


def test_a_cut_checkpoint_is_passed_over(run, at_step):
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


def test_a_run_goes_on_with_the_models_that_it_began_with(run, at_step, models, tmp_path):
    folder = shutil.copytree(models["qwen2"], tmp_path / "base")
    options = {"resume": "auto", "training": SAVING, "lora": {"r": 4, "alpha": 8}, "base": {"name": str(folder)}}
    at_step(3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("implicit", "cut", **options)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 1.01 * each for name, each in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        RmkitError, match=r"The base is not the one .*checkpoint-2 .* Changed: model.safetensors"
    ) as error:
        run("implicit", "cut", **options)
    assert error.value.remedy == "Put that one back, or start again with --overwrite."
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert run("implicit", "cut", **options).record.exists()


def test_a_checkpoint_knows_the_commits_of_its_models(tmp_path):
    (tmp_path / "weights").write_bytes(b"x")
    mark_complete(tmp_path, {"base": {"commit": "a" * 40}, "tokenizer": {"tokenizer.json": "1"}})
    assert recorded_commits(tmp_path) == {"base": "a" * 40}
    check_models(tmp_path, {"base": {"commit": "a" * 40}, "tokenizer": {"tokenizer.json": "1"}})
    with pytest.raises(RmkitError, match=r"The tokenizer is not .* Changed: tokenizer.json"):
        check_models(tmp_path, {"base": {"commit": "a" * 40}, "tokenizer": {"tokenizer.json": "2"}})
    mark_complete(tmp_path)  # as checkpoints of old
    assert recorded_commits(tmp_path) == recorded_commits(None) == {}
    check_models(tmp_path, {})


def test_sigterm_saves_and_exits_with_its_own_code(run, at_step):
    options = {"resume": "auto", "training": SAVING | {"save_steps": 100}}
    whole = run("explicit", "whole", **options)
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        run("explicit", "cut", **options)
    assert stopped.value.code == PREEMPTED_EXIT_CODE
    assert (whole.path.parent / "cut" / "checkpoints" / "checkpoint-3" / MARKER).exists()
    assert same(contents(whole), contents(run("explicit", "cut", **options)))


def test_another_recipe_does_not_go_on(run):
    run("explicit", "taken", resume="auto")
    with pytest.raises(RmkitError, match="holds another run"):
        run("explicit", "taken", resume="auto", training={"learning_rate": 0.5})


def test_a_recipe_of_an_older_rmkit_goes_on(run):
    """It lacks the keys that came later."""
    first = run("explicit", "done", resume="auto")
    recorded = load_yaml(first.path / "recipe.yaml")
    del recorded["base"]["dropout"], recorded["data"]["special_tokens"]
    (first.path / "recipe.yaml").write_text(to_yaml(recorded))
    before = first.record.read_text()
    assert run("explicit", "done", resume="auto").record.read_text() == before
    with pytest.raises(RmkitError, match="holds another run"):
        run("explicit", "done", resume="auto", base={"dropout": True})


def test_a_finished_run_is_left_as_it_is(run):
    first = run("explicit", "done", resume="auto")
    before = (first.record.read_text(), first.record.stat().st_mtime_ns)
    again = run("explicit", "done", resume="auto")
    assert (again.record.read_text(), again.record.stat().st_mtime_ns) == before


def test_a_full_disk_is_said_in_words_and_leaves_the_last_checkpoint(run, at_step):
    def full():
        raise OSError(28, "No space left on device")

    at_step(3, full)
    with pytest.raises(RmkitError, match=r"disk of .* is full") as error:
        run("explicit", "full", resume="auto", training=SAVING)
    assert "resume=auto" in error.value.remedy
    resumed = run("explicit", "full", resume="auto", training=SAVING)
    assert resumed.read()["training"]["steps"] == 6


def test_only_whole_checkpoints_count(tmp_path):
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


def test_the_reference_is_asked_once_for_all_runs(run, monkeypatch):
    """Another seed, learning rate and beta share it; a damaged entry is made again."""
    asked = []
    original = ReferenceStore.outputs

    def counting(self, pairs, compute, is_main_process=True):
        def noted():
            asked.append(self.path(pairs))
            return compute()

        return original(self, pairs, noted, is_main_process)

    monkeypatch.setattr(ReferenceStore, "outputs", counting)
    sets = {"evaluation": {"batch_size": 7}}  # a batch size that no other test has scored with
    first = run("implicit", "first", **sets)
    assert len(asked) == 2  # train and test
    monkeypatch.setitem(TYPES, "sharp", {"type": "implicit", "beta": 1})
    run("sharp", "second", training={"seed": 9, "learning_rate": 1e-4}, **sets)
    assert len(asked) == 2
    asked[0].write_bytes(asked[0].read_bytes()[:-8])
    data = bytearray(asked[1].read_bytes())
    data[-1] ^= 1
    asked[1].write_bytes(bytes(data))
    third = run("implicit", "third", **sets)
    assert len(asked) == 4
    assert same(contents(first), contents(third))


def test_checkpoints_without_an_optimizer_cannot_be_gone_on_from(run):
    only_model = SAVING | {"save_only_model": True}
    with pytest.raises(RmkitError, match=r"hold no optimizer.*save_only_model=false, or resume=never"):
        run("explicit", resume="auto", training=only_model)
    assert run("explicit", resume="auto", training=SAVING | {"save_only_model": False}).record.exists()
    assert run("explicit", "never", resume="never", training=only_model).record.exists()
