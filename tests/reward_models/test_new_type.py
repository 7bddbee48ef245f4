"""docs/add-a-type.md: its code blocks are applied to a copy of the package, and its commands are run there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fake_hub
import independent
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import yaml
from conftest import REPOSITORY
from transformers import AutoTokenizer

PAGE = (REPOSITORY / "docs" / "add-a-type.md").read_text(encoding="utf-8")
USE = r"""
import shlex, sys
from pathlib import Path

import rmkit
from rmkit.config.recipe import load_recipe, read_recipe
from rmkit.errors import RmkitError

place, *commands = sys.argv[1:]
assert Path(rmkit.__file__).parents[1] == Path(place), rmkit.__file__


def run(name, *arguments):
    if name == "train":  # in this process, without `accelerate launch`
        from rmkit.train import train

        train(load_recipe(*arguments))
    else:
        from rmkit.cli import app

        app([name, *arguments], standalone_mode=False)


for command in commands:
    print(f"--- {command}", flush=True)
    try:
        run(*shlex.split(command)[1:])
    except (RmkitError, SystemExit) as error:
        print(f"failed: {error}")

try:
    read_recipe("simpo.yaml", ["reward_model.type=simp"])
except RmkitError as error:
    print(f"--- misspelled: {error.remedy}")

from rmkit.runs.directory import RunDirectory
from rmkit.theory.model_dynamics import dynamics_of_run

try:
    dynamics_of_run(RunDirectory("runs/simpo"), pairs=1)
except RmkitError as error:
    print(f"--- theory: {error.cause}")
"""


def blocks(language: str, text: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def apply_diff(text: str, diff: str) -> str:
    """Replace the lines of `diff` without a plus by those without a minus."""
    lines = diff.splitlines()
    old = "".join(line[1:] + "\n" for line in lines if line[:1] in (" ", "-"))
    new = "".join(line[1:] + "\n" for line in lines if line[:1] != "-")
    assert text.count(old) == 1, f"the lines of this block are not in the file once:\n{diff}"
    return text.replace(old, new)


def add_type(package: Path) -> None:
    """Do what the numbered sections of the page say."""
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title = re.match(r"\d\. .*`rmkit/(.*)`\n", section)
        if title is None:
            continue
        file = package / title[1]
        for code in blocks("python", section):
            assert not file.exists()
            file.write_text(code, encoding="utf-8")
        for diff in blocks("diff", section):
            file.write_text(apply_diff(file.read_text(encoding="utf-8"), diff), encoding="utf-8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has the new type, a base, pairs and a recipe."""
    place = tmp_path_factory.mktemp("new_type")
    shutil.copytree(REPOSITORY / "rmkit", place / "rmkit", ignore=shutil.ignore_patterns("__pycache__"))
    add_type(place / "rmkit")
    (place / "data").mkdir()
    tiny.write_pairs(place / "data", train=16, test=8, prompt=9, response=12)
    base = tiny.save_language_model(place / "base", "qwen2")
    (section,) = blocks("yaml")
    recipe = yaml.safe_load(section) | {
        "base": {"name": str(base)},
        "data": {
            "train": {"name": "train", "path": "data/train.jsonl"},
            "evaluation": [{"name": "test", "path": "data/test.jsonl", "category": "in-distribution"}],
        },
        "training": {"num_train_epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "logging_steps": 1},
        "output_dir": "runs/simpo",
    }
    (place / "simpo.yaml").write_text(yaml.safe_dump(recipe))
    return place


def test_the_page_names_existing_files() -> None:
    for path in re.findall(r"`(rmkit/[\w/.]+|tests/[\w/.]+)`", PAGE):
        assert (REPOSITORY / path).exists() or "simpo" in path, path


def test_the_blocks_fit_the_package(tmp_path: Path) -> None:
    for folder in ("config", "reward_models"):
        shutil.copytree(REPOSITORY / "rmkit" / folder, tmp_path / folder)
    add_type(tmp_path)
    changed = [tmp_path / name for name in ("config/recipe.py", "reward_models/__init__.py", "reward_models/simpo.py")]
    for file in changed:
        text = file.read_text(encoding="utf-8")
        assert "Simpo" in text
        compile(text, file.name, "exec")


def test_a_stale_block_is_found() -> None:
    assert apply_diff("a\nb\n", " a\n+c\n") == "a\nc\nb\n"
    with pytest.raises(AssertionError, match="not in the file once"):
        apply_diff("a\nb\n", " x\n+c\n")


@pytest.fixture(scope="module")
def used(place: Path) -> tuple[str, dict[str, bytes]]:
    """What the page's commands print in the copy, all in one process, and what they publish on a local Hub."""
    (commands,) = blocks("bash")
    with fake_hub.serving() as server:
        hub = {"HF_ENDPOINT": server.address, "HF_TOKEN": fake_hub.TOKEN, "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", USE, str(place), *commands.splitlines()],
            cwd=place,
            env=os.environ | hub | {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert list(server.repositories) == ["someone/simpo"], done.stdout
        return done.stdout, server.files("someone/simpo")


@pytest.fixture
def output(used: tuple[str, dict[str, bytes]]) -> str:
    return used[0]


def succeeded(output: str, command: str) -> bool:
    return "failed:" not in output.split(f"--- rmkit {command}", 1)[1].split("---", 1)[0]


@pytest.mark.slow
def test_it_trains_and_scores_by_its_formula(place: Path, output: str) -> None:
    """Rewards against plain transformers."""
    assert succeeded(output, "train"), output
    assert succeeded(output, "score"), output
    run = place / "runs" / "simpo"
    content = json.loads((run / "run.json").read_text())
    assert content["recipe"]["reward_model"] == {"type": "simpo", "beta": 2.0, "target_margin": 0.3}
    losses = [entry["pair_loss"] for entry in content["training"]["log"]]
    assert losses[-1] < losses[0]

    pairs = [json.loads(line) for line in (place / "data" / "test.jsonl").read_text().splitlines()]
    rewards = pq.read_table(place / "rewards.parquet").to_pydict()
    assert rewards["index"]
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    for side in ("chosen", "rejected"):
        texts = [(pairs[index]["prompt"], pairs[index][side]) for index in rewards["index"]]
        sums = independent.log_probs(run / "model", run / "model", texts)
        lengths = [len(independent.ids(tokenizer, independent.texts(tokenizer, *text, None)[1])) for text in texts]
        expected = [2.0 * total / length for total, length in zip(sums, lengths, strict=True)]
        np.testing.assert_allclose(rewards[f"{side}_reward"], expected, rtol=1e-4)
        assert not np.allclose(rewards[f"{side}_reward"], sums, rtol=1e-2)  # control: without beta and length


@pytest.mark.slow
def test_it_is_explained(place: Path, output: str) -> None:
    assert succeeded(output, "explain"), output
    explanation = json.loads((place / "explained.json").read_text())
    assert len(explanation["explicit_prefix_rewards"]) == len(explanation["tokens"]) > 3


@pytest.mark.slow
def test_it_is_reported(place: Path, output: str) -> None:
    assert succeeded(output, "report"), output
    assert "Simpo" in (place / "report" / "index.html").read_text()


@pytest.mark.slow
def test_it_is_published(used: tuple[str, dict[str, bytes]]) -> None:
    output, files = used
    assert succeeded(output, "push"), output
    card = files["README.md"].decode()
    assert "A reward model of the type `simpo`." in card
    assert "simpo-reward-model" in card
    assert "use rmkit" in card
    assert {"model.safetensors", "reward_model.json", "recipe.yaml"} <= set(files)


@pytest.mark.slow
def test_its_name_is_suggested(output: str) -> None:
    assert "--- misspelled: Did you mean simpo?" in output


@pytest.mark.slow
def test_the_theory_has_no_equation_for_it(output: str) -> None:
    assert "--- theory: The theory has no equation for reward models of the type simpo." in output
