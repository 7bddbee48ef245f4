"""The pages "Your own data" and "Add a data set": every block of them runs, in the order of the page.

A block whose fence names a file (```yaml recipe.yaml) is written there, ```python blocks share one namespace, and every
line of a ```bash block is an rmkit command. The base that the page names is replaced by a tiny one.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from rmkit.cli import app
from rmkit.data import sources
from rmkit.data.preferences import load_preferences

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


def blocks(page):
    """(language, file or "", content) of the fenced blocks of a page."""
    for token in MarkdownIt().parse((REPOSITORY / "docs" / page).read_text(encoding="utf-8")):
        if token.type == "fence":
            language, _, file = token.info.partition(" ")
            yield language, file, token.content


def run_page(page, base=""):
    """Run a page in the working directory; returns the namespace of its Python blocks and its commands' output."""
    namespace, output = {}, ""
    for language, file, content in blocks(page):
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(content.replace(BASE, str(base)), encoding="utf-8")
        elif language == "python":
            exec(compile(content, page, "exec"), namespace)
        elif language == "bash":
            for line in content.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "rmkit"
                result = CliRunner().invoke(app, arguments)
                assert result.exit_code == 0, (line, result.output, result.exception)
                output += result.output
        else:
            raise AssertionError(f"{page}: a block of {language} that no test runs")
    return namespace, output


@pytest.fixture
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.smoke
def test_your_own_data(working_directory, models):
    namespace, output = run_page("your-own-data.md", models["qwen2"])
    pairs = load_preferences("data/train.jsonl")
    assert [pair.chosen for pair in pairs][:2] == ["Mix flour, water, salt and yeast, let it rise, bake it.", "144."]
    assert f"train: {pairs.format}" in output  # the line that says what was recognised
    record = json.loads((working_directory / "runs" / "mine" / "run.json").read_text())
    assert {name: data["pairs"] for name, data in record["data"].items()} == {"train": 4, "test": 2, "cooking": 1}
    assert record["metrics"]["test"]["accuracy"] == namespace["accuracy"]
    results = json.loads((working_directory / "evaluation" / "results.json").read_text())
    assert results["sets"]["test"]["accuracy"] == namespace["accuracy"]
    assert results["sets"]["train"]["pairs"] == 4
    typos = load_preferences("data/test_typos")
    assert len(pd.read_parquet("rewards_typos.parquet")) == len(typos) == 2
    assert "in train" in output  # the table of rmkit check


@pytest.fixture
def new_sources(working_directory, monkeypatch):
    """Modules in rmkit/data/sources below the working directory are found beside rmkit's own."""
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(working_directory / "rmkit" / "data" / "sources")])
    sources.sources.cache_clear()
    yield working_directory
    sources.sources.cache_clear()


def test_add_a_data_set(new_sources, tmp_path_factory, monkeypatch):
    _, output = run_page("add-a-data-set.md")
    assert "no ties, at most 100 characters" in output
    loaded = {split: load_preferences("data/judged_answers", split=split) for split in ("train", "test")}
    assert {split: len(data) for split, data in loaded.items()} == {"train": 2, "test": 2}
    pairs = [(pair.prompt, pair.chosen, pair.rejected) for data in loaded.values() for pair in data]
    assert sorted(pairs) == [
        ("What is 2 + 2?", "4", "5"),
        ("What is 3 + 3?", "6", "9"),
        ("What is 5 + 5?", "10", "55"),
        ("What is 6 + 6?", "12", "66"),
    ]

    from rmkit.evaluation.suites import load_set, load_suite

    suite = load_suite("suite.yaml")
    assert [pair.prompt for pair in load_set(suite.sets[0], suite.root)] == [pair.prompt for pair in loaded["test"]]

    namespace = {}
    exec(Path("tests/data/test_judged_answers.py").read_text(), namespace)
    namespace["test_judged_answers"](tmp_path_factory.mktemp("judged"))


def test_the_new_source_is_gone_without_its_file():
    assert "judged_answers" not in sources.sources()
