"""The rules of the house: imports run one way, and the type of a reward model is decided in one place."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import house
import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "rmkit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TYPES = {"explicit", "implicit", "generative"}
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate", "deepspeed"}


def module_name(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imported(path, deep=True):
    """Names of modules that a file imports; without `deep` only those that run on import, none for type checkers."""

    def statements(body):
        for node in body:
            yield node
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not deep:
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not deep:
                continue
            yield from statements(ast.iter_child_nodes(node))

    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found.add(node.module)
            found |= {f"{node.module}.{name.name}" for name in node.names if f"{node.module}.{name.name}" in MODULES}
    return found


def of_rmkit(path, deep=True):
    return {name for name in imported(path, deep) if name in MODULES}


def below(*folders):
    return [path for folder in folders for path in SOURCES if (PACKAGE / folder) in path.parents]


def test_the_order_of_the_rooms():
    rooms = house.arrows()
    assert sorted(rooms) == sorted(house.ORDER)
    up = [
        (name, target)
        for name, targets in rooms.items()
        for target in targets
        if house.ORDER.index(target) > house.ORDER.index(name)
    ]
    assert up == []
    assert house.running_up(rooms) == []


def test_arrows_that_run_up_are_counted():
    circle = {"a": set(), "b": {"a", "d"}, "c": {"b"}, "d": {"c"}}
    assert len(house.running_up(circle)) == 1
    assert house.running_up(circle | {"b": {"a"}}) == []
    assert house.floors({"a": set(), "b": {"a"}, "c": {"a", "b"}}) == {"a": 1, "b": 2, "c": 3}


def test_no_module_imports_itself_in_a_circle():
    """Neither when it is imported nor later, inside functions."""
    graph = {name: of_rmkit(path) - {name, "rmkit"} for name, path in MODULES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(MODULES) - 1


def test_losses_are_functions_of_tensors():
    assert of_rmkit(PACKAGE / "reward_models" / "losses.py") == {"rmkit.models.numerics"}
    assert of_rmkit(PACKAGE / "models" / "numerics.py") == set()


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_types_of_reward_model_do_not_know_each_other(kind):
    others = {f"rmkit.reward_models.{other}" for other in TYPES - {kind}}
    assert not imported(PACKAGE / "reward_models" / f"{kind}.py") & others
    assert not imported(PACKAGE / "training" / f"{kind}.py") & {f"rmkit.training.{other}" for other in TYPES - {kind}}


def test_training_and_evaluation_know_the_protocol_and_not_the_types():
    types = {f"rmkit.reward_models.{kind}" for kind in TYPES}
    files = [*below("training", "evaluation", "commands", "encoding"), PACKAGE / "train.py"]
    assert len(files) > 30
    for path in files:
        assert not imported(path) & types, path


def test_theory_and_training_do_not_know_each_other():
    assert "training" not in house.arrows()["theory"]
    assert "theory" not in house.arrows()["training"]


def test_the_report_knows_what_runs_leave_and_nothing_that_makes_them():
    assert house.arrows()["report"] <= {"errors", "library_errors", "files", "config", "runs", "data"}


def reached(start):
    """All modules, of rmkit and others, that importing a module of rmkit runs."""
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        parents = {".".join(name.split(".")[:end]) for end in range(1, name.count(".") + 1)}
        for each in {name, *parents} - seen:
            seen.add(each)
            if each in MODULES:
                todo += imported(MODULES[each], deep=False)
    return seen


@pytest.mark.parametrize(
    "module", ["rmkit", "rmkit.cli", "rmkit.config.recipe", "rmkit.data.preferences", "rmkit.runs.directory"]
)
def test_light_modules_stay_light(module):
    assert not {name.partition(".")[0] for name in reached(module)} & HEAVY


def test_the_report_needs_no_torch():
    for path in below("report"):
        roots = {name.partition(".")[0] for name in imported(path)} | {
            name.partition(".")[0] for name in reached(module_name(path))
        }
        assert not roots & HEAVY, path


def test_the_walk_over_imports_sees_torch_where_it_is():
    assert "torch" in reached("rmkit.models.numerics")
    assert "rmkit.reward_models.base" in reached("rmkit.training.implicit")


# --- one place for the type ----------------------------------------------------------------------------------------

THEORY = set(below("theory"))  # each equation is about one type
DECIDE = {
    PACKAGE / "reward_models" / "__init__.py",
    PACKAGE / "training" / "__init__.py",
}


def decisions(tree):
    """Comparisons of a `.type` (not a device's), with a type's name, or by a type's settings class.

    Whether two things are of one type, whichever it is, may be asked.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            if all(isinstance(side, ast.Attribute) and side.attr == "type" for side in sides):
                continue
            for side in sides:
                of_device = isinstance(side, ast.Attribute) and ast.unparse(side.value).endswith("device")
                if isinstance(side, ast.Attribute) and side.attr == "type" and not of_device:
                    yield ast.unparse(node)
                if isinstance(side, ast.Constant) and side.value in TYPES:
                    yield ast.unparse(node)
        if isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant) and node.value.value in TYPES:
            yield ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            named = {each.id for each in ast.walk(node.args[1]) if isinstance(each, ast.Name)}
            if any(name.lower().startswith(kind) for name in named for kind in TYPES):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", [each for each in SOURCES if each not in DECIDE | THEORY], ids=module_name)
def test_the_type_is_asked_for_in_one_place(path):
    assert list(decisions(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "if settings.type == 'explicit': pass",
        "x = kind != 'implicit'",
        "isinstance(settings, Generative)",
        "isinstance(model, (int, ImplicitRewardModel))",
        "match kind:\n    case 'generative': pass",
    ],
)
def test_the_search_for_decisions_finds_them(code):
    assert len(set(decisions(ast.parse(code)))) == 1


@pytest.mark.parametrize("code", ["trainer.args.device.type == 'cpu'", "example.type == recipe.reward_model.type"])
def test_the_search_for_decisions_leaves_other_comparisons_alone(code):
    assert list(decisions(ast.parse(code))) == []


# --- names and start -----------------------------------------------------------------------------------------------


def test_no_module_is_named_like_a_library():
    """`python rmkit/train.py` puts rmkit/ first on the path, where rmkit/datasets.py would hide datasets."""
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    names |= {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert "train" in names
    for name in sorted(names - {"__init__", "__main__"}):
        assert name not in sys.stdlib_module_names
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is None:
            continue  # a folder without code, such as the report/ that the quickstart leaves in the working directory
        assert found is None or PACKAGE in Path(str(found.origin)).parents, f"rmkit/{name} hides {found.origin}"


def test_help_and_import_load_no_torch():
    """In another process: here torch is loaded already."""
    code = (
        "import sys, rmkit, rmkit.cli\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(rmkit.cli.app, ['--help'])\n"
        "assert result.exit_code == 0 and 'score' in result.output, result.output\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
