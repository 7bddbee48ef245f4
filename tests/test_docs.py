"""The pages: their links lead somewhere, CONTRIBUTING names every file, and README's example trains."""

from __future__ import annotations

import json
import re

import house
import pytest
import yaml
from conftest import REPOSITORY

from rmkit.config.recipe import Recipe
from rmkit.config.strict_yaml import validate

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        target, _, anchor = link.partition("#")
        if target.startswith("http"):
            continue
        path = (page.parent / target) if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


def test_the_index_lists_every_page():
    index = (REPOSITORY / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index, page.name


def test_contributing_has_the_tree_and_the_numbers_of_the_house():
    """`python tests/house.py` and `python tests/house.py --tree` print them."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert house.tree() in text
    assert f"| now | {' | '.join(map(str, house.numbers().values()))} |" in text


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.smoke
def test_the_readmes_own_data_trains_and_scores(tmp_path, monkeypatch, models):
    """The recipe as quoted, but for the base; then the lines of Python as quoted."""
    from rmkit import load_reward_model
    from rmkit.train import train

    monkeypatch.chdir(tmp_path)
    (content,) = map(yaml.safe_load, blocks(REPOSITORY / "README.md", "yaml"))
    content["base"] = {"name": str(models["qwen2"])}
    content["training"] = {"max_steps": 1, "batch_size": 2, "per_device_train_batch_size": 2}
    for name in ("train", "held_out"):
        rows = [
            {"prompt": f"Question {name} {number}?", "chosen": f"Yes {number}.", "rejected": f"No {number}."}
            for number in range(4)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(validate(Recipe, content, "README.md"))
    (code,) = blocks(REPOSITORY / "README.md", "python")
    names: dict = {}
    exec(code, names)
    assert isinstance(names["rm"], type(load_reward_model("runs/mine/model")))
