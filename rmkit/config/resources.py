"""The recipes, suites, sweeps, chat templates and accelerate configurations that ship with rmkit, found by name.

In the repository they are the top-level folders recipes/ and accelerate_configs/. rmkit/ holds symbolic links to both,
which the build follows: a clone, an editable install and a wheel all have them at the same place inside the package.
"""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from rmkit.errors import RmkitError

_PACKAGE = Path(str(files("rmkit")))
RECIPES = (_PACKAGE / "recipes").resolve()  # messages show the path in the repository, not the link
SUITES, SWEEPS, TEMPLATES = RECIPES / "suites", RECIPES / "sweeps", RECIPES / "templates"
ACCELERATE_CONFIGS = (_PACKAGE / "accelerate_configs").resolve()


def shipped_recipes() -> dict[str, Path]:
    """Files of the shipped recipes by name: `llama8b_exrm`, `quickstart/exrm`."""
    return _by_name(RECIPES) | {f"quickstart/{name}": path for name, path in _by_name(RECIPES / "quickstart").items()}


def find_recipe(name: Path | str) -> Path:
    """The file of a recipe: an existing path, or the name of a shipped one; the other functions here work alike.

    Raises:
        RmkitError: if there is neither, with the closest shipped name.
    """
    return _find(name, shipped_recipes(), "recipe")


def find_suite(name: Path | str) -> Path:
    """The file of a suite, by path or shipped name."""
    return _find(name, _by_name(SUITES), "suite")


def find_sweep(name: Path | str) -> Path:
    """The file of a sweep, by path or shipped name."""
    return _find(name, _by_name(SWEEPS), "sweep")


def find_template(name: Path | str) -> Path:
    """The file of a chat template, by path or shipped name."""
    return _find(
        Path(name).expanduser(), {path.stem: path for path in sorted(TEMPLATES.glob("*.jinja"))}, "chat template"
    )


def read_template(name: Path | str) -> str:
    """The text of a chat template, by path or shipped name.

    Raises:
        RmkitError: if there is none, or it cannot be read.
    """
    file = find_template(name)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RmkitError(f"The chat template {name} cannot be read: {error}.", "Check the path.") from None


def find_accelerate_config(name: Path | str) -> Path:
    """The file of an accelerate configuration, by path or shipped name."""
    return _find(name, _by_name(ACCELERATE_CONFIGS), "accelerate configuration")


def _by_name(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _find(name: Path | str, shipped: dict[str, Path], what: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if str(name) in shipped:
        return shipped[str(name)]
    nearby = difflib.get_close_matches(
        path.name, [file.name for file in path.parent.glob(f"*{path.suffix or '.yaml'}")], n=1
    )
    known = {Path(name).name: name for name in shipped} | {name: name for name in shipped}
    near = difflib.get_close_matches(str(name), known, n=1) or difflib.get_close_matches(path.stem, known, n=1)
    closest = [str(path.with_name(nearby[0]))] if nearby else [known[match] for match in near]
    hint = f"Did you mean {closest[0]}? " if closest else ""
    names = ", ".join(shipped)
    raise RmkitError(
        f"{what.capitalize()} not found: {name}.", f"{hint}Give a file or the name of a shipped {what}: {names}."
    )
