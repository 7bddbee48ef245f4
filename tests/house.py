"""The house as numbers: rooms, floors, arrows between rooms, and arrows that run back up.

    python tests/house.py [COMMIT ...]   count
    python tests/house.py --tree         every file with the first line of its docstring, for CONTRIBUTING.md

A room is what stands at the top of rmkit/: a package, or a module. An arrow goes from a room to one that it imports,
wherever in a file. A room's floor is the longest way from it down to a room that imports none. To find arrows that run
up, rooms are put in order, next always the one with the fewest imports among those left; its arrows to these run up.
There are none exactly if the rooms form no circle.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FACE = "rmkit"  # `from rmkit import __version__`, and the public names, which import what they need when asked for

ORDER = [
    "errors",
    "library_errors",
    "files",
    "processes",
    "config",
    "runs",
    "hub",
    "data",
    "report",
    "model_files",
    "encoding",
    "models",
    "reward_models",
    "evaluation",
    "theory",
    "training",
    "train",
    "api",
    "experiments",
    "commands",
    "cli",
    "__main__",
]
"""The rooms of the house: each imports only rooms before it (CONTRIBUTING.md)."""

Arrows = dict[str, set[str]]
"""Room -> the rooms that it imports."""


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The room of a module: `rmkit.data.sources.base` is in `data`."""
    return module.split(".")[1] if "." in module else FACE


def imported(path: Path, known: set[str]) -> Iterator[str]:
    """The modules of rmkit that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                if full in known or node.module in known:
                    yield full if full in known else node.module


def arrows(repository: Path = REPOSITORY) -> Arrows:
    modules = {module_name(path, repository): path for path in sorted((repository / "rmkit").rglob("*.py"))}
    found: Arrows = {room(name): set() for name in modules if name != FACE}
    for name, path in modules.items():
        if name != FACE:
            targets = {room(each) for each in imported(path, set(modules))}
            found[room(name)] |= targets - {room(name), FACE}
    return found


def running_up(rooms: Arrows) -> list[tuple[str, str]]:
    """The arrows that run back up."""
    left = {name: set(targets) for name, targets in rooms.items()}
    up = []
    while left:
        name = min(left, key=lambda each: (len(left[each] & left.keys()), each))
        up += [(name, target) for target in sorted(left.pop(name) & left.keys())]
    return up


def floors(rooms: Arrows) -> dict[str, int]:
    """The floor of each room, from 1, the arrows that run up left aside."""
    up = set(running_up(rooms))
    found: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((floor(each) for each in rooms[name] if (name, each) not in up), default=0)
        return found[name]

    for name in rooms:
        floor(name)
    return found


def numbers(repository: Path = REPOSITORY) -> dict[str, int]:
    rooms = arrows(repository)
    return {
        "rooms": len(rooms),
        "modules in the root": sum((repository / "rmkit" / f"{name}.py").exists() for name in rooms),
        "floors": max(floors(rooms).values()),
        "arrows": sum(map(len, rooms.values())),
        "arrows up": len(running_up(rooms)),
    }


def tree(repository: Path = REPOSITORY) -> str:
    """Every file of the package, room by room in their order, with the first line of its docstring."""

    def lines(folder: Path, indent: str) -> Iterator[str]:
        modules = [(path.stem, path) for path in folder.glob("*.py") if path.stem != "__init__"]
        packages = [(path.parent.name, path) for path in folder.glob("*/__init__.py")]
        entries = sorted(modules + packages)
        if folder.name == "rmkit":
            entries.sort(key=lambda entry: ORDER.index(entry[0]))
        for name, path in entries:
            about = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
            name += "/" if path.stem == "__init__" else ".py"
            yield f"{indent}{name:{26 - len(indent)}} {about}".rstrip()
            if path.stem == "__init__" and name != "metrics/":
                yield from lines(path.parent, indent + "  ")

    return "\n".join(["rmkit/", *lines(repository / "rmkit", "  ")])


def main() -> None:
    """Print the numbers of the working tree and of commits, or the tree."""
    if sys.argv[1:] == ["--tree"]:
        print(tree())
        return
    print("working tree", numbers())
    for commit in sys.argv[1:]:
        packed = subprocess.run(["git", "archive", commit, "rmkit"], cwd=REPOSITORY, capture_output=True, check=True)
        with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
            print(commit, numbers(Path(folder)))


if __name__ == "__main__":
    main()
