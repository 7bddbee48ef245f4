"""What ships with rmkit, found by name from any working directory."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY

from rmkit.config import resources
from rmkit.errors import RmkitError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("find", "name", "path"),
    [
        (resources.find_recipe, "llama8b_exrm", "recipes/llama8b_exrm.yaml"),
        (resources.find_recipe, "quickstart/exrm", "recipes/quickstart/exrm.yaml"),
        (resources.find_suite, "math", "recipes/suites/math.yaml"),
        (resources.find_sweep, "math", "recipes/sweeps/math.yaml"),
        (resources.find_template, "released", "recipes/templates/released.jinja"),
        (resources.find_accelerate_config, "zero3", "accelerate_configs/zero3.yaml"),
    ],
)
def test_a_shipped_file_is_found_by_name(find, name, path):
    assert find(name) == REPOSITORY / path


def test_every_shipped_file_is_listed():
    """Each YAML file of the two folders has a name in exactly one place."""
    folders = [resources.SUITES, resources.SWEEPS, resources.ACCELERATE_CONFIGS]
    listed = [*resources.shipped_recipes().values(), *(path for folder in folders for path in folder.glob("*.yaml"))]
    shipped = [*(REPOSITORY / "recipes").rglob("*.yaml"), *(REPOSITORY / "accelerate_configs").rglob("*.yaml")]
    assert len(shipped) > 30
    assert sorted(listed) == sorted(shipped)


def test_a_file_overrides_a_shipped_name_and_a_folder_does_not(elsewhere):
    (elsewhere / "math").mkdir()
    assert resources.find_suite("math") == resources.SUITES / "math.yaml"
    (elsewhere / "math").rmdir()
    (elsewhere / "math").touch()
    assert str(resources.find_suite("math")) == "math"


@pytest.mark.parametrize(
    ("find", "name", "cause", "hint"),
    [
        (resources.find_recipe, "lama8b_exrm", "Recipe not found: lama8b_exrm.", "llama8b_exrm"),
        (
            resources.find_recipe,
            "recipes/llama8b_imrm.yaml",
            "Recipe not found: recipes/llama8b_imrm.yaml.",
            "llama8b_imrm",
        ),
        (resources.find_suite, "general_chad", "Suite not found: general_chad.", "general_chat"),
        (resources.find_sweep, "persona.yml", "Sweep not found: persona.yml.", "persona"),
        (resources.find_accelerate_config, "zero33", "Accelerate configuration not found: zero33.", "zero3"),
    ],
)
def test_a_wrong_name_hints_at_the_closest_one(find, name, cause, hint):
    with pytest.raises(RmkitError) as error:
        find(name)
    assert error.value.cause == cause
    assert error.value.remedy.startswith(f"Did you mean {hint}? Give a file or the name of a shipped ")
    assert find(hint).is_file()


def test_a_name_like_no_other_lists_the_shipped_ones():
    with pytest.raises(RmkitError) as error:
        resources.find_suite("xyz")
    names = "general_chat, math, rewardbench, rewardbench2"
    assert error.value.remedy == f"Give a file or the name of a shipped suite: {names}."
