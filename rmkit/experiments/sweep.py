"""Sweeps: a YAML file with a base recipe and a grid; every point is an ordinary recipe and run directory.

    base: recipes/llama8b_exrm.yaml   # relative to this file or the working directory; or a shipped recipe's name
    changes: {data.root: /data}       # optional: keys for every point
    axes:
      model:                          # an axis of bundles: keys that change together, under a name
        - {name: llama1b, base.name: meta-llama/Llama-3.2-1B-Instruct, base.dtype: float32, distributed: single_gpu}
        - {name: llama8b, base.name: meta-llama/Llama-3.1-8B-Instruct, base.dtype: bfloat16, distributed: zero3}
      reward_model:
        - {name: exrm, reward_model: {type: explicit}}
        - {name: imrm, reward_model: {type: implicit, beta: 0.01}}
      training.seed: [0, 1, 2]        # an axis of values: the key itself
    exclude:                          # optional, as is `only`: points that have all of these values
      - {model: llama8b, training.seed: [1, 2]}

A point's run directory is OUTPUT/llama1b_exrm_seed0. `run_sweep` can be called again at any time: finished points are
kept, leftovers of a killed run are replaced, and a failed point does not stop the others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rmkit.config.recipe import Recipe, SetName, load_recipe, read_recipe
from rmkit.config.resources import find_recipe, find_sweep
from rmkit.config.strict_yaml import StrictModel, load_yaml, validate
from rmkit.errors import RmkitError
from rmkit.experiments.launchers import Launcher, Task
from rmkit.files import write_text
from rmkit.runs.directory import RunDirectory

RECIPES, LOGS = "recipes", "logs"
"""Folders next to the run directories."""

Value = bool | int | float | str | None
State = Literal["finished", "unfinished", "missing"]


class Bundle(BaseModel):
    """A named value of an axis: dotted recipe keys and their values."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: SetName

    @property
    def changes(self) -> dict[str, Any]:
        """Dotted key -> value."""
        return dict(self.model_extra or {})


Axis = Annotated[list[Bundle | Value], Field(min_length=1)]
Selection = dict[str, Value | list[Value]]
"""Axis -> a value or a list of values; the value of a bundle is its name."""


class Sweep(StrictModel):
    """The content of a sweep file; see the module docstring."""

    base: Annotated[Path, Field(strict=False)]
    axes: Annotated[dict[str, Axis], Field(min_length=1)]
    changes: dict[str, Any] = {}
    exclude: list[Selection] = []
    only: list[Selection] = []

    @model_validator(mode="after")
    def _check_grid(self) -> Sweep:
        for axis, choices in self.axes.items():
            labels = [label(axis, choice) for choice in choices]
            duplicates = sorted({name for name in labels if labels.count(name) > 1})
            if duplicates:
                raise ValueError(f"the axis {axis} has two points named {duplicates[0]}")
        for selection in [*self.exclude, *self.only]:
            self.check(selection)
        return self

    def check(self, selection: Selection) -> None:
        """Raises ValueError: for an unknown axis, or a value that is not on its axis."""
        for axis, wanted in selection.items():
            if axis not in self.axes:
                raise ValueError(f"unknown axis {axis}; the axes are {', '.join(self.axes)}")
            known = [_value(choice) for choice in self.axes[axis]]
            for value in _values(wanted):
                if value not in known:
                    raise ValueError(f"{value} is not on the axis {axis}: {', '.join(map(str, known))}")


@dataclass(frozen=True)
class Point:
    """One point of the grid: a name, the value on every axis, and the resolved recipe."""

    name: str
    values: dict[str, Value]
    recipe: Recipe

    @property
    def run_dir(self) -> RunDirectory:
        """Its run directory."""
        return RunDirectory(self.recipe.output_dir)


@dataclass(frozen=True)
class Outcome:
    """The result of a point: kept (finished earlier), finished or failed, with its log."""

    point: Point
    state: Literal["kept", "finished", "failed"]
    log: Path


# --- the grid --------------------------------------------------------------------------------------------------------


def load_sweep(path: Path | str) -> tuple[Path, Sweep]:
    """Load a sweep by path or shipped name; returns the file and its content.

    Raises:
        RmkitError: naming the file and the key.
    """
    file = find_sweep(path)
    return file, validate(Sweep, load_yaml(file), str(file))


def expand(
    path: Path | str, overrides: Sequence[str] = (), output: Path | None = None, only: Selection | None = None
) -> list[Point]:
    """The points of a sweep file; the first axis varies slowest.

    Args:
        path: a sweep file, or the name of a shipped one.
        overrides: section.key=value for every point; they override the file.
        output: folder of the run directories; runs/<name of the file> by default.
        only: keep only the points with these values.

    Raises:
        RmkitError: if a point is not a valid recipe, two points are the same, or no point is left.
    """
    file, sweep = load_sweep(path)
    if any(override.startswith("output_dir=") for override in overrides):
        raise RmkitError("A sweep sets output_dir for every point.", "Set their folder with --output.")
    if only:
        try:
            sweep.check(only)
        except ValueError as error:
            raise RmkitError(f"{file}: {error}.", "Correct --only.") from None
    relative = file.parent / sweep.base
    base = relative if relative.is_file() else find_recipe(sweep.base)
    folder = output or Path("runs") / file.stem
    points = []
    for chosen in itertools.product(*sweep.axes.values()):
        choices = dict(zip(sweep.axes, chosen, strict=True))
        values = {axis: _value(choice) for axis, choice in choices.items()}
        if any(_matches(values, selection) for selection in sweep.exclude):
            continue
        if sweep.only and not any(_matches(values, selection) for selection in sweep.only):
            continue
        if only and not _matches(values, only):
            continue
        name = "_".join(label(axis, choice) for axis, choice in choices.items())
        changes = [
            *_overrides(sweep.changes),
            *(change for axis, choice in choices.items() for change in _overrides(_changes(axis, choice))),
        ]
        output_dir = f"output_dir={json.dumps(str(folder / name))}"
        try:
            points.append(Point(name, values, load_recipe(base, [*changes, *overrides, output_dir])))
        except RmkitError as error:
            raise RmkitError(f"{file}: point {name}: {error.cause}", error.remedy) from None
    if not points:
        raise RmkitError(f"{file}: no points are left.", "Relax only, exclude or --only.")
    _check_distinct(points, file)
    return points


def label(axis: str, choice: Bundle | Value) -> str:
    """The part of a point's name for one axis: llama1b, seed0, learning_rate5e-07."""
    if isinstance(choice, Bundle):
        return choice.name
    text = choice if isinstance(choice, str) else json.dumps(choice)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{axis.rsplit('.', 1)[-1]}{text}")


def _changes(axis: str, choice: Bundle | Value) -> dict[str, Any]:
    return choice.changes if isinstance(choice, Bundle) else {axis: choice}


def _overrides(changes: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]  # JSON is YAML


def _value(choice: Bundle | Value) -> Value:
    return choice.name if isinstance(choice, Bundle) else choice


def _values(wanted: Value | list[Value]) -> list[Value]:
    return wanted if isinstance(wanted, list) else [wanted]


def _matches(values: Mapping[str, Value], selection: Selection) -> bool:
    return all(values[axis] in _values(wanted) for axis, wanted in selection.items())


def _check_distinct(points: Sequence[Point], file: Path) -> None:
    seen: dict[str, str] = {}
    repositories: dict[str, str] = {}
    names: set[str] = {RECIPES, LOGS}
    for point in points:
        content = json.dumps(_content(point.recipe), sort_keys=True)
        if content in seen:
            raise RmkitError(
                f"{file}: {seen[content]} and {point.name} are the same run.",
                "Remove one, or the override of a key that an axis changes (--only picks points).",
            )
        if point.name in names:
            raise RmkitError(f"{file}: {point.name} is a reserved name.", "Rename the bundle.")
        if point.recipe.hub is not None:
            other = repositories.setdefault(point.recipe.hub.repo_id, point.name)
            if other != point.name:
                raise RmkitError(
                    f"{file}: {other} and {point.name} would both be pushed to {point.recipe.hub.repo_id}.",
                    "Set a different hub.repo_id in every bundle, or push selected runs with `rmkit push`.",
                )
        seen[content] = point.name
        names.add(point.name)


# --- existing run directories ----------------------------------------------------------------------------------------


def state(point: Point) -> State:
    """Whether a point's run is finished, unfinished or missing.

    Raises:
        RmkitError: if its directory holds something else, which a sweep must not replace.
    """
    directory = point.recipe.output_dir
    if point.run_dir.record.exists():
        try:
            recorded = Recipe.model_validate(point.run_dir.read().get("recipe"))
        except RmkitError as error:
            raise RmkitError(error.cause, f"Remove {directory}, or use another --output.") from None
        except ValidationError:
            raise RmkitError(
                f"{point.run_dir.record} holds a recipe of another rmkit version.",
                f"Remove {directory}, or use another --output.",
            ) from None
        _check_same_recipe(point, recorded)
        return "finished"
    if (directory / "recipe.yaml").exists():
        _check_same_recipe(point, read_recipe(directory / "recipe.yaml"))
        return "unfinished"
    if directory.is_dir():
        # A run writes its recipe first, under a temporary name.
        foreign = [file.name for file in directory.iterdir() if not file.name.startswith(".recipe.yaml.")]
        if foreign:
            raise RmkitError(f"{directory} holds {foreign[0]} but no recipe.yaml.", "Use another --output.")
        return "unfinished"
    if directory.exists():
        raise RmkitError(f"{directory} is a file.", "Use another --output.")
    return "missing"


def _check_same_recipe(point: Point, recorded: Recipe) -> None:
    ours, theirs = dict(_leaves(_content(point.recipe))), dict(_leaves(_content(recorded)))
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            raise RmkitError(
                f"{point.recipe.output_dir} holds a run of another recipe: {key} is {theirs.get(key)} there, "
                f"{ours.get(key)} in this sweep.",
                f"Use another --output, or remove {point.recipe.output_dir}.",
            )


def _content(recipe: Recipe) -> dict[str, Any]:
    """The recipe without output_dir and resume, which do not change a run's results."""
    return recipe.model_dump(mode="json", exclude={"output_dir", "resume"})


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict | list) and content:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


# --- running ---------------------------------------------------------------------------------------------------------


def run_sweep(points: Sequence[Point], output: Path, launcher: Launcher) -> Generator[Outcome]:
    """Run the unfinished points; yields the outcomes of finished points first, then of the others as they end.

    Raises:
        RmkitError: before anything starts, if another sweep is running in `output` or a point's directory holds
            anything that does not belong to this sweep.
    """
    with _lock(output):
        states = {point.name: state(point) for point in points}
        for point in points:
            if states[point.name] == "finished":
                yield Outcome(point, "kept", _log(output, point))
        waiting = {point.name: point for point in points if states[point.name] != "finished"}
        for leftover in output.glob(".discarded-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with launcher.run(output, [_task(output, point) for point in waiting.values()]) as tasks:
            for task in tasks:
                point = waiting[task.name]
                # run.json decides, as it will for the next sweep: some launchers abort after everything is done.
                yield Outcome(point, "finished" if point.run_dir.record.exists() else "failed", task.log)


@contextlib.contextmanager
def _lock(output: Path) -> Iterator[None]:
    """Lock the sweep's folder for this process; the lock is released however the process ends."""
    from filelock import FileLock, Timeout

    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".sweep.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RmkitError(f"Another sweep is running in {output}.", "Wait for it, or use another --output.") from None
    except OSError as error:
        raise RmkitError(f"Cannot write to {output}: {error}.", "Use another --output.") from None
    try:
        yield
    finally:
        lock.release()


def _task(output: Path, point: Point) -> Task:
    recipe = output / RECIPES / f"{point.name}.yaml"

    def prepare() -> None:
        if not _resumes(point):
            _discard(point.recipe.output_dir, output)
        write_text(recipe, point.recipe.to_yaml())
        _log(output, point).parent.mkdir(exist_ok=True)

    return Task(point.name, recipe, _log(output, point), point.recipe.distributed, prepare)


def _resumes(point: Point) -> bool:
    """Whether training will resume the run (resume: auto) instead of starting over."""
    recipe = point.recipe.output_dir / "recipe.yaml"
    return point.recipe.resume == "auto" and recipe.exists() and recipe.read_text("utf-8") == point.recipe.to_yaml()


def _log(output: Path, point: Point) -> Path:
    return output / LOGS / f"{point.name}.log"


def _discard(directory: Path, output: Path) -> None:
    """Remove the leftovers of a killed run. They are renamed first, so that a kill here leaves no half-removed run."""
    if directory.exists():
        aside = Path(tempfile.mkdtemp(prefix=".discarded-", dir=output))
        os.replace(directory, aside / directory.name)
        shutil.rmtree(aside, ignore_errors=True)


def last_lines(log: Path, number: int = 6) -> list[str]:
    """The last non-empty lines of a log, without progress bars."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
    return [line for line in lines if line and not re.search(r"\d+%\|", line)][-number:]


__all__ = ["Bundle", "Outcome", "Point", "Sweep", "expand", "last_lines", "load_sweep", "run_sweep", "state"]
