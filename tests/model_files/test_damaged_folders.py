"""No folder causes a traceback: either it loads and its rewards are finite, or a two-line error names it."""

from __future__ import annotations

import functools
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
from rmkit.config.recipe import load_recipe
from rmkit.train import train

FOLDERS = ["plain", "implicit lora", "explicit run", "implicit run", "generative run", "explicit lora"]
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
    """The model folder of a run, full or LoRA, or a plain language model, by its name in FOLDERS."""
    place = tmp_path_factory.mktemp("intact")

    @functools.cache
    def made(name):
        if name == "plain":
            return shutil.copytree(models["qwen2"], place / name)
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
        return train(load_recipe(place / "recipe.yaml")).model

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
    """Change a tensor's header in a safetensors file, with a consistent length field."""
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
    """`loads` or the error's cause; any other outcome fails the test."""
    try:
        rewards = load_reward_model(str(folder), **options).score(PROMPTS, RESPONSES)
    except RmkitError as error:
        refusal = error
    else:
        assert np.isfinite(rewards).all()
        return "loads"
    assert refusal.remedy
    assert len(refusal.cause) < 1000
    assert folder.name in refusal.cause, f"does not name the folder: {refusal.cause}"
    return f"{refusal.cause} {refusal.remedy}"


def damage_and_load(intact, tmp_path, seeds, names):
    found = []
    for seed in seeds:
        draw = random.Random(seed)
        name = draw.choice(names)
        folder = shutil.copytree(intact(name), tmp_path / f"folder-{seed}")
        what = [damage(draw, folder) for _ in range(draw.choice([1, 1, 2, 3]))]
        try:
            found.append(outcome(folder, **OPTIONS.get(name, {})))
        except Exception as error:
            pytest.fail(f"seed {seed}, {name}, {what}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    assert 0 < found.count("loads") < len(found)


def test_damaged_folders(intact, tmp_path):
    damage_and_load(intact, tmp_path, range(10), FOLDERS[:3])


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1400, 50))
def test_many_damaged_folders(intact, tmp_path, start):
    damage_and_load(intact, tmp_path, range(start, start + 50), FOLDERS)


# --- attacks -------------------------------------------------------------------------------------------------------


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def attacked(intact, tmp_path):
    """A copy of an intact folder, a function that edits its JSON files, and the file that hostile code would create."""

    def copy(name="plain"):
        return shutil.copytree(intact(name), tmp_path / name.replace(" ", "-"))

    return copy, tmp_path / "mark"


def change(file, **entries):
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | entries))


@pytest.mark.parametrize("alone", [True, False])
def test_pickles_are_never_read(attacked, alone):
    copy, mark = attacked
    for name, files in {
        "plain": ["pytorch_model.bin", "training_args.bin"],
        "implicit lora": ["adapter_model.bin", "pytorch_model.bin"],
    }.items():
        folder = copy(name)
        for file in files:
            (folder / file).write_bytes(pickle.dumps(Touch(mark)))
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "pytorch_model.bin"}}))
        if alone:
            for file in folder.glob("*.safetensors"):
                file.unlink()
        assert (outcome(folder, **OPTIONS.get(name, {})) == "loads") != alone
    assert not mark.exists()


def test_a_pickle_under_another_name_is_never_read(attacked):
    copy, mark = attacked
    folder = copy()
    (folder / "model.safetensors").write_bytes(pickle.dumps(Touch(mark)))
    assert "cannot be read" in outcome(folder, type="generative")
    (folder / "model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Touch(mark)))
    change(folder / "config.json", transformers_weights="adapter_model.bin")
    assert "transformers_weights" in outcome(folder, type="generative")
    assert not mark.exists()


CODE = {
    "config.json": {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}, "model_type": "own"},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, "tokenizer_class": "Own"},
    "adapter_config.json": {
        "auto_mapping": {"base_model_class": "Own", "parent_library": "own"},
        "megatron_core": "own",
    },
    "generation_config.json": {"custom_generate": "own"},
}


@pytest.mark.parametrize("file", CODE)
def test_code_of_a_folder_never_runs(attacked, file, monkeypatch):
    copy, mark = attacked
    name = "implicit lora" if file.startswith("adapter") else "plain"
    folder = copy(name)
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Own: pass\n"
    for place in (folder / "own.py", folder / "custom_generate" / "generate.py", folder / "sitecustomize.py"):
        place.parent.mkdir(exist_ok=True)
        place.write_text(code)
    change(folder / file, **CODE[file])
    monkeypatch.chdir(folder)
    outcome(folder, **OPTIONS.get(name, {}))
    assert not mark.exists()


TEMPLATES = {
    "raises": "{{ raise_exception('no') }}",
    "syntax": "{% for %}",
    "undefined": "{{ nothing.at.all() }}",
    "division": "{{ 1 / 0 }}",
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "file": "{% include '/etc/passwd' %}",
    "code": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "code by name": "{{ cycler.__init__.__globals__.os.getcwd() }}",
    "nothing": "",
    "constant": "x" * 10**6,
    "loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_chat_templates_that_fail_loop_or_reach_out(attacked, case, monkeypatch):
    copy, _ = attacked
    folder = copy()
    (folder / "chat_template.jinja").write_text(TEMPLATES[case])
    if case == "loops":
        monkeypatch.setattr("rmkit.library_errors.TEMPLATE_SECONDS", 0.2)
        assert "takes more than 0.2 seconds" in outcome(folder, type="generative")
    else:
        assert "template" in outcome(folder, type="generative")


def test_links_are_reported(attacked, tmp_path):
    copy, _ = attacked
    folder = copy()
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    notes = load_reward_model(str(folder), type="generative").checkpoint.notes
    assert any(note.endswith(f"model.safetensors is a link to {tmp_path / 'elsewhere.safetensors'}.") for note in notes)


@pytest.mark.parametrize(
    ("entries", "options", "cause"),
    [
        ({"hidden_act": "x"}, {"type": "explicit"}, "No model could be built"),
        ({"head_dim": -1.0}, {"type": "explicit"}, "No model could be built"),
        ({"num_key_value_heads": 0}, {"type": "explicit"}, "No model could be"),
        ({"architectures": True}, {"type": "explicit"}, "architectures is True"),
        ({"architectures": 31}, {}, "architectures is 31"),
        ({"output_hidden_states": "x"}, {"type": "generative"}, "cannot be run: TypeError"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, {"type": "generative"}, "cannot be run: TypeError"),
    ],
)
def test_unusable_config_entries_are_refused(intact, tmp_path, entries, options, cause):
    folder = shutil.copytree(intact("plain"), tmp_path / "folder")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | entries))
    assert cause in outcome(folder, **options)


def test_paths_that_are_not_folders_are_refused(intact, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("empty", "file", "missing", "nul\0byte", "x" * 300, "a/b/c/d"):
        for options in ({}, {"type": "generative"}, {"type": "implicit", "reference": "none", "beta": 1.0}):
            with pytest.raises(RmkitError):
                load_reward_model(str(tmp_path / name), **options)
            with pytest.raises(RmkitError):
                load_reward_model(name, **options)
        with pytest.raises(RmkitError, match="reference"):
            load_reward_model(str(intact("plain")), type="implicit", reference=str(tmp_path / name), beta=1.0)


@pytest.mark.parametrize("entry", ["vocab_file", "tokenizer_file", "merges_file", "chat_template_file", "name_or_path"])
def test_a_tokenizer_cannot_name_files_outside_its_folder(attacked, entry, tmp_path):
    copy, _ = attacked
    folder = copy()
    before = load_reward_model(str(folder), type="generative").score(PROMPTS, RESPONSES)
    (tmp_path / "secret").write_text("{}")
    change(folder / "tokenizer_config.json", **{entry: str(tmp_path / "secret")})
    assert (load_reward_model(str(folder), type="generative").score(PROMPTS, RESPONSES) == before).all()
