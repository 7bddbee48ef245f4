"""No folder whatever gives a traceback: it loads and its rewards are finite, or two lines name it."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tiny

from rmkit import RmkitError, load_reward_model

FOLDERS = ["explicit run", "implicit run", "generative run", "explicit lora", "implicit lora", "plain"]
OPTIONS = {"plain": {"type": "generative"}}
PROMPTS, RESPONSES = ["How do I bake bread?", "why?"], ["Mix flour and water.", "No."]
ODD = [
    None,
    True,
    0,
    -1,
    10**9,
    10**30,
    0.5,
    float("nan"),
    "",
    "x",
    "\0",
    "../../etc/passwd",
    "someone/model",
    "__import__('os').getcwd()",
    [],
    [[]],
    ["x", 3, None],
    {},
    {"x": {"y": [1]}},
    "{{" * 50,
]


@pytest.fixture(scope="module")
def intact(models, pairs, tmp_path_factory):
    """A run's model folder of every type, full and LoRA, and a plain language model."""
    from rmkit.recipe import load_recipe
    from rmkit.train import train

    place = tmp_path_factory.mktemp("intact")
    made = {"plain": shutil.copytree(models["qwen2"], place / "plain")}
    for name in FOLDERS[:-1]:
        kind, _, lora = name.partition(" ")
        recipe = {
            "base": {"name": str(models["qwen2"])},
            "reward_model": tiny.TYPES[kind],
            "data": {"root": str(pairs), "train": {"name": "train", "path": "train.jsonl", "split": "train"}},
            "training": {"max_steps": 1, "batch_size": 8},
            "output_dir": str(place / name),
        }
        if lora == "lora":
            recipe["lora"] = {"r": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]}
        (place / "recipe.yaml").write_text(json.dumps(recipe))
        made[name] = train(load_recipe(place / "recipe.yaml")).model
    return made


# --- damage at random ----------------------------------------------------------------------------------------------


def damage_bytes(draw: random.Random, file: Path) -> str:
    content = bytearray(file.read_bytes())
    how = draw.choice(["cut", "empty", "flip", "noise", "delete", "folder", "link", "loop", "other", "repeat"])
    if how == "cut":
        file.write_bytes(content[: draw.randrange(len(content) + 1)])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "flip":
        for _ in range(draw.choice([1, 3, 30])):
            if content:
                content[draw.randrange(min(len(content), draw.choice([64, 10**9])))] = draw.randrange(256)
        file.write_bytes(content)
    elif how == "noise":
        file.write_bytes(draw.randbytes(200))
    elif how == "repeat":
        file.write_bytes(content * 2)
    else:
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how == "link":
            file.symlink_to("/etc/passwd")
        elif how == "loop":
            file.symlink_to(file.name)
        elif how == "other":
            file.write_bytes(draw.choice(sorted(each for each in file.parent.iterdir() if each.is_file())).read_bytes())
    return how


def damage_json(draw: random.Random, file: Path) -> str:
    """Replace, remove or add a value somewhere."""
    content = json.loads(file.read_text())
    place, where = content, []
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            break
        key = draw.choice(keys)
        where.append(key)
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.2:
            how = draw.random()
            if how < 0.8:
                place[key] = draw.choice(ODD)
            elif how < 0.9:
                del place[key]
            elif isinstance(place, dict):
                place[str(draw.choice(ODD))] = place[key]
            break
        place = place[key]
    file.write_text(json.dumps(draw.choice([content] * 19 + [[content]])))
    return str(where)


def damage_header(draw: random.Random, file: Path) -> str:
    """Change a tensor's description in a safetensors file, whose length field stays right."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = draw.choice(sorted(header))
    how = draw.choice(["shape", "dtype", "data_offsets", "name", "entry", "gone"])
    if how == "name":
        header[draw.choice(["", "x", "score.weight", "model.layers.999999.mlp.up_proj.weight"])] = header.pop(name)
    elif how == "entry":
        header[name] = draw.choice(ODD)
    elif how == "gone":
        del header[name]
    elif isinstance(header[name], dict):
        odd = {
            "shape": [[], [0], [-1], [10**9, 10**9], [1, 1024]],
            "dtype": ["F64", "BF16", "I64", "X", None, "BOOL"],
            "data_offsets": [[0, 0], [0, 10**12], [5, 3], None, [-1, 4]],
        }
        header[name][how] = draw.choice(odd[how])
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])
    return f"{how} of {name}"


def damage(draw: random.Random, folder: Path) -> str:
    files = sorted(each for each in folder.iterdir() if each.is_file())
    if not files:
        return "no files"
    file = draw.choice(files)
    if draw.random() < 0.7:
        try:
            if file.suffix == ".json":
                return f"{file.name}: {damage_json(draw, file)}"
            if file.suffix == ".safetensors":
                return f"{file.name}: {damage_header(draw, file)}"
        except (ValueError, struct.error, IndexError):
            pass  # it is damaged already
    return f"{file.name}: {damage_bytes(draw, file)}"


def outcome(folder: Path, **options) -> str:
    """`loads`, or the refusal; anything else is the test's failure."""
    try:
        rewards = load_reward_model(str(folder), **options).score(PROMPTS, RESPONSES)
    except RmkitError as error:
        assert error.cause, "no cause"
        assert error.remedy, "no remedy"
        assert folder.name in error.cause, f"does not name the folder: {error.cause}"
        assert len(error.cause) < 1000
        return f"{error.cause} {error.remedy}"
    assert np.isfinite(rewards).all()
    return "loads"


def damage_and_load(intact, tmp_path, seeds):
    found = []
    for seed in seeds:
        draw = random.Random(seed)
        name = draw.choice(FOLDERS)
        folder = shutil.copytree(intact[name], tmp_path / f"folder-{seed}")
        what = [damage(draw, folder) for _ in range(draw.choice([1, 1, 2, 3]))]
        try:
            found.append(outcome(folder, **OPTIONS.get(name, {})))
        except Exception as error:
            pytest.fail(f"seed {seed}, {name}, {what}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    assert 0 < found.count("loads") < len(found)


def test_damaged_folders(intact, tmp_path):
    damage_and_load(intact, tmp_path, range(20))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1400, 50))
def test_many_damaged_folders(intact, tmp_path, start):
    damage_and_load(intact, tmp_path, range(start, start + 50))
