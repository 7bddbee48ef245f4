"""A run knows its base, reference and tokenizer: moved ones are found, changed ones refused, missing ones named."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rmkit import RmkitError, load_reward_model
from rmkit.cli import app
from rmkit.config.recipe import load_recipe
from rmkit.model_files import identity
from rmkit.model_files.identity import model_digests
from rmkit.train import train

PAIR = (["How do I bake bread?"], ["Mix flour, water, salt and yeast. Wait. Bake it."])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs, bases and reference given by relative paths: an adapter, and a whole model with a reference."""
    folder = tmp_path_factory.mktemp("origins")
    tiny.write_pairs(folder, train=8, test=4, prompt=6, response=8)
    for seed, name in enumerate(("base", "other")):
        tiny.save_language_model(folder / "models" / name, "qwen2", seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, more in (("lora", {"lora": {"r": 4}}), ("whole", {})):
            settings = {"type": "implicit", "beta": 0.1}
            content = {
                "base": {"name": "models/base"},
                "reward_model": settings if more else settings | {"reference": "models/other"},
                "data": {
                    "train": {"name": "train", "path": "train.jsonl"},
                    "evaluation": [{"name": "test", "path": "test.jsonl"}],
                },
                "training": {"num_train_epochs": 1, "learning_rate": 1e-2, "batch_size": 4},
                "output_dir": f"runs/{name}",
            } | more
            (folder / f"{name}.yaml").write_text(json.dumps(content))
            train(load_recipe(folder / f"{name}.yaml"))
    return folder


@pytest.fixture
def place(trained, tmp_path):
    """A copy of the runs and models that tests may change; its records name the copy's paths."""
    folder = shutil.copytree(trained, tmp_path / "copy")
    for record in folder.glob("runs/*/model/reward_model.json"):
        record.write_text(record.read_text().replace(str(trained), str(folder)))
    return folder


def reward(run, **options):
    return load_reward_model(str(run / "model"), **options).score(*PAIR)


def change(folder):
    """Other weights, in a file of the same size."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=1))


ROLES = [("lora", "base", "base"), ("whole", "reference", "other")]


def test_records_identify_models(trained):
    for name, role, folder in ROLES:
        model = trained / "runs" / name / "model"
        record = json.loads((model / "reward_model.json").read_text())
        assert json.loads((model.parent / "run.json").read_text())["reward_model"] == record
        weights = (trained / "models" / folder / "model.safetensors").read_bytes()
        assert set(record[role]["files"]) == {"config.json", "model.safetensors"}
        assert record[role]["files"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
        assert record[role]["name"] == str(trained / "models" / folder)
        assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} == set(record["tokenizer"])


@pytest.mark.parametrize(("name", "role", "folder"), ROLES)
def test_a_run_is_scored_from_anywhere_and_when_it_moves_with_its_models(
    place, trained, name, role, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    expected = reward(trained / "runs" / name)
    assert expected != 0
    assert reward(place / "runs" / name) == expected
    elsewhere = place.rename(tmp_path / "elsewhere")  # what is absolute in the records is gone
    assert reward(elsewhere / "runs" / name) == expected
    monkeypatch.chdir(elsewhere / "runs")
    assert reward(Path(name)) == expected


@pytest.mark.parametrize(("name", "role", "folder"), ROLES)
def test_a_missing_model_is_named_and_found_where_the_option_says(place, trained, name, role, folder, tmp_path):
    expected = reward(trained / "runs" / name)
    now = (place / "models" / folder).rename(tmp_path / "now here")
    with pytest.raises(RmkitError, match=f"^The {role} of .*{name}/model is missing: .*models/{folder} ") as error:
        reward(place / "runs" / name)
    assert f"give its new place: --{role} MODEL ({role}=MODEL in Python)" in error.value.remedy
    assert reward(place / "runs" / name, **{role: str(now)}) == expected
    output = tmp_path / "rewards.parquet"
    command = ["score", str(place / "runs" / name / "model"), str(place / "test.jsonl"), "--output", str(output)]
    assert CliRunner().invoke(app, command).exit_code == 2
    assert not output.exists()
    assert CliRunner().invoke(app, [*command, f"--{role}", str(now)]).exit_code == 0
    assert output.exists()
    now.rename(place / "models" / folder)  # "put it back"
    assert reward(place / "runs" / name) == expected


@pytest.mark.parametrize(("name", "role", "folder"), ROLES)
def test_a_changed_model_is_refused_unless_told_to_go_on(place, trained, name, role, folder):
    expected, run = reward(trained / "runs" / name), place / "runs" / name
    change(place / "models" / folder)
    with pytest.raises(RmkitError, match=rf"is not the {role} that .* Changed: model.safetensors\.") as error:
        reward(run)
    assert (
        f"(--{role} MODEL; {role}=MODEL in Python), or skip the check: --no-verify (verify=False" in error.value.remedy
    )
    assert reward(run, **{role: str(trained / "models" / folder)}) == expected
    with pytest.raises(RmkitError, match=f"is not the {role} that"):  # nor may another be named by mistake
        reward(trained / "runs" / name, **{role: str(place / "models" / folder)})
    scorer = load_reward_model(str(run / "model"), verify=False)
    assert "Not verified" in " ".join(scorer.checkpoint.notes)
    assert scorer.score(*PAIR) != expected


def test_config_values_identify_a_model_and_its_formatting_does_not(place):
    run, config = place / "runs" / "lora", place / "models" / "base" / "config.json"
    expected = reward(run)
    edit(config, transformers_version="1.2.3", _name_or_path="elsewhere")
    assert reward(run) == expected
    edit(config, rms_norm_eps=0.1)
    with pytest.raises(RmkitError, match=r"Changed: config.json\."):
        reward(run)


def test_another_template_is_refused_unless_told_to_go_on(place, tmp_path):
    model, file = place / "runs" / "whole" / "model", tmp_path / "own.jinja"
    file.write_text((model / "chat_template.jinja").read_text())
    assert load_reward_model(str(model), chat_template=file).score(*PAIR) == reward(model.parent)
    file.write_text(file.read_text() + "{# another #}")
    with pytest.raises(RmkitError, match="is not the one that the model was trained with") as error:
        load_reward_model(str(model), chat_template=file)
    assert error.value.remedy == "Remove --chat-template."
    assert load_reward_model(str(model), chat_template=file, verify=False).score(*PAIR).size == 1


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}),
        ("chat_template.jinja", None),
        ("special_tokens_map.json", {"pad_token": "x"}),
    ],
)
def test_a_changed_tokenizer_is_refused_unless_told_to_go_on(place, file, changes):
    model = place / "runs" / "whole" / "model"
    before = (model / file).read_text() if (model / file).exists() else None
    if changes is None:
        (model / file).write_text(before + "{# another #}")
    elif before is None:
        (model / file).write_text(json.dumps(changes))
    else:
        edit(model / file, **changes)
    with pytest.raises(RmkitError, match=rf"The tokenizer in .* Changed: {file}\.") as error:
        reward(model.parent)
    assert error.value.remedy == "Restore these files, or skip the check: --no-verify (verify=False in Python)."
    if file == "tokenizer_config.json":
        command = ["score", str(model), str(place / "test.jsonl"), "--output", str(place / "rewards.parquet")]
        assert CliRunner().invoke(app, command).exit_code == 2
        went_on = CliRunner().invoke(app, [*command, "--no-verify"])
        assert went_on.exit_code == 0, went_on.output
        assert "Not verified" in went_on.output
    else:
        assert load_reward_model(str(model), verify=False).score(*PAIR).size == 1
    if before is None:
        (model / file).unlink()
    else:
        (model / file).write_text(before)
    assert reward(model.parent).size == 1


@pytest.mark.parametrize(("name", "role", "folder"), ROLES)
def test_old_records_still_load(place, trained, name, role, folder, monkeypatch):
    file = place / "runs" / name / "model" / "reward_model.json"
    record = json.loads(file.read_text())
    del record["tokenizer"], record["reference"]
    record["base"] = {"name": "models/base", "revision": None}
    file.write_text(json.dumps(record))
    expected = reward(trained / "runs" / name)
    monkeypatch.chdir(place)
    assert reward(place / "runs" / name) == expected
    monkeypatch.chdir(place.parent)
    with pytest.raises(RmkitError, match=f"^The {role} of .* is missing: models/{folder} "):
        reward(place / "runs" / name)
    (place / "models").rename(place / "runs" / name / "models")  # relative to the run
    assert reward(place / "runs" / name) == expected


def test_a_hub_id_is_accepted(place, trained, monkeypatch):
    """It is read from the Hub's cache; a note says that it cannot be compared with a folder."""
    commit, cache = "a" * 40, place / "hub"
    for name, role, folder in ROLES:
        snapshot = cache / f"models--someone--{folder}" / "snapshots" / commit
        (place / "models" / folder).rename(place / "away")
        shutil.copytree(place / "away", snapshot)
        shutil.rmtree(place / "away")
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text(commit)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        for place_of in (f"someone/{folder}", f"someone/{folder}@{commit}"):
            scorer = load_reward_model(str(place / "runs" / name / "model"), **{role: place_of})
            assert scorer.score(*PAIR) == reward(trained / "runs" / name)
            assert "could not be compared" in " ".join(scorer.checkpoint.notes)


def test_an_unused_option_is_refused(place):
    with pytest.raises(RmkitError, match="A base has no use") as error:
        reward(place / "runs" / "whole", base=str(place / "models" / "base"))
    assert error.value.remedy == "Remove --base (base=)."


def test_weights_are_hashed_once_until_they_change(place, monkeypatch):
    folder, read = place / "models" / "base", []
    digest = hashlib.file_digest
    monkeypatch.setattr(identity.hashlib, "file_digest", lambda *args: read.append(args) or digest(*args))
    first = model_digests(folder)
    assert model_digests(folder) == first
    assert len(read) == 1
    change(folder)
    assert model_digests(folder)["model.safetensors"] != first["model.safetensors"]
    assert len(read) == 2


def test_only_files_that_are_loaded_count(place):
    folder = place / "models" / "base"
    before = model_digests(folder)
    (folder / "notes.md").write_text("x")
    save_file({"x": load_file(folder / "model.safetensors")["model.norm.weight"]}, folder / "stray.safetensors")
    assert model_digests(folder) == before
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shutil.copy(folder / "stray.safetensors", folder / "model-00002-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert set(model_digests(folder)) == {"config.json", *names.values()}


def test_a_read_only_cache_only_costs_time(place, monkeypatch):
    monkeypatch.setenv("RMKIT_CACHE", "/proc/none")
    assert np.isfinite(reward(place / "runs" / "lora"))
