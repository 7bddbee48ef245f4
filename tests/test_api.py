"""The public face: docs/api.md lists it, it is typed, and importing it loads no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

import rmkit

PAGE = REPOSITORY / "docs" / "api.md"
FACE = "from rmkit import load_recipe, train, load_reward_model, RewardScorer, PreferencePair, RmkitError"
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "datasets", "pandas", "scipy"}


def python(code: str) -> str:
    """The output of a program in a process of its own: here torch is loaded already."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_face_is_what_the_page_documents():
    names = {*rmkit.__all__} - {"__version__"}
    assert names == set(re.findall(r"\w+", FACE.partition("import")[2]))
    assert set(re.findall(r"^## `(\w+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) == names
    assert names <= set(dir(rmkit))
    assert all(getattr(rmkit, name).__doc__ for name in names)


def test_type_checkers_see_every_name():
    tree = ast.parse(Path(rmkit.__file__).read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
    assert {*rmkit.__all__} - {"__version__"} <= imported
    assert (REPOSITORY / "rmkit" / "py.typed").exists()


def test_the_old_name_of_the_scorer_still_works():
    assert rmkit.Scorer is rmkit.RewardScorer
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rmkit.nothing


@pytest.mark.parametrize("line", [FACE, "from rmkit import load_reward_model", "import rmkit.cli"])
def test_importing_the_face_loads_nothing_heavy(line):
    assert python(f"{line}\nimport sys\nprint(sorted({HEAVY!r} & set(sys.modules)))") == "[]"


def test_the_search_for_heavy_modules_sees_them():
    assert "torch" in python(f"import rmkit.models.numerics, sys\nprint(sorted({HEAVY!r} & set(sys.modules)))")


@pytest.mark.parametrize("first", ["", "import rmkit.train", "from rmkit.train import train"])
@pytest.mark.parametrize("then", ["from rmkit import train", "import rmkit; train = rmkit.train"])
def test_train_can_be_called_in_every_order_of_imports(monkeypatch, first, then):
    """rmkit.train is the function of the face, and the module that accelerate launches."""
    monkeypatch.delitem(sys.modules, "rmkit.train", raising=False)
    monkeypatch.setattr(rmkit, "train", rmkit.api.train)
    scope: dict = {}
    exec(first, scope)
    exec(then, scope)
    import rmkit.train as module

    monkeypatch.setattr(module, "train", lambda recipe, overwrite: (recipe, overwrite))
    assert scope["train"]("recipe", overwrite=True) == ("recipe", True)
    from rmkit import train

    assert train("again") == ("again", False)


def test_the_code_of_the_page_runs(models, tmp_path, monkeypatch, capsys):
    """With a tiny base in the place of the pretrained one."""
    page = PAGE.read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in recipe
    Path("recipe.yaml").write_text(recipe.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(models["qwen2"])))
    scope: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, scope)
        assert all(name in scope for name in re.findall(r"^(\w+) =", code, re.MULTILINE))
    cause, remedy = re.findall(r"print\(error\.\w+\)  # (.*)", page)
    assert capsys.readouterr().out.splitlines()[-2:] == [cause, remedy]
    assert scope["record"]["train_fit"]["pairs"] == 2
