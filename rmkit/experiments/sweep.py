"""Sweeps: a YAML file with a base recipe and a grid, each point of which is an ordinary recipe and run directory.

    base: recipes/llama8b_exrm.yaml   # relative to this file or the working directory; or a shipped recipe's name
    changes: {data.root: /data}       # optional: keys of every point
    axes:
      model:                          # an axis of bundles: keys that change together, under a name
        - {name: llama1b, base.name: meta-llama/Llama-3.2-1B-Instruct, base.dtype: float32, distributed: single_gpu}
        - {name: llama8b, base.name: meta-llama/Llama-3.1-8B-Instruct, base.dtype: bfloat16, distributed: zero3}
      reward_model:
        - {name: exrm, reward_model: {type: explicit}}
        - {name: imrm, reward_model: {type: implicit, beta: 0.01}}
      training.seed: [0, 1, 2]        # an axis of values: the key itself
    exclude:                          # optional, and `only` too: points that have all of these values
      - {model: llama8b, training.seed: [1, 2]}

A point's run directory is OUTPUT/llama1b_exrm_seed0. Call `run_sweep` again at any time: finished points are kept,
what a killed run left is replaced, and a failed point stops no other.
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
"""Folders beside the run directories."""

Value = bool | int | float | str | None
State = Literal["finished", "unfinished", "missing"]


class Bundle(BaseModel):
    """A named point of an axis: keys of the recipe, dotted, and their values."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: SetName

    @property
    def changes(self) -> dict[str, Any]:
        """Dotted key -> value."""
        return dict(self.model_extra or {})


Axis = Annotated[list[Bundle | Value], Field(min_length=1)]
Selection = dict[str, Value | list[Value]]
"""axis -> a value, or a list of them; a bundle's value is its name."""


class Sweep(StrictModel):
    """The content of a sweep file; see this module's description."""

    base: Annotated[Path, Field(strict=False)]
    axes: Annotated[dict[str, Axis], Field(min_length=1)]
    changes: dict[str, Any] = {}
    exclude: list[Selection] = []
    only: list[Selection] = []

    @model_validator(mode="after")
    def _the_grid_makes_sense(self) -> Sweep:
        for axis, choices in self.axes.items():
            labels = [label(axis, choice) for choice in choices]
            twice = sorted({each for each in labels if labels.count(each) > 1})
            if twice:
                raise ValueError(f"the axis {axis} has two points called {twice[0]}")
        for selection in [*self.exclude, *self.only]:
            self.check(selection)
        return self

    def check(self, selection: Selection) -> None:
        """Raises ValueError: if it names no axis, or a value that its axis does not have."""
        for axis, wanted in selection.items():
            if axis not in self.axes:
                raise ValueError(f"{axis} is no axis; the axes are {', '.join(self.axes)}")
            known = [_value(choice) for choice in self.axes[axis]]
            for each in _values(wanted):
                if each not in known:
                    raise ValueError(f"{each} is not on the axis {axis}: {', '.join(map(str, known))}")


@dataclass(frozen=True)
class Point:
    """One point of the grid: a name, the value on every axis, and the resolved recipe."""

    name: str
    values: dict[str, Value]
    recipe: Recipe

    @property
    def run(self) -> RunDirectory:
        """Where its results are."""
        return RunDirectory(self.recipe.output_dir)


@dataclass(frozen=True)
class Outcome:
    """What became of a point: kept (finished before), finished or failed, with its log."""

    point: Point
    state: Literal["kept", "finished", "failed"]
    log: Path


# --- the grid ------------------------------------------------------------------------------------------------------


def load_sweep(path: Path | str) -> tuple[Path, Sweep]:
    """A sweep file, or a shipped sweep by its name: where it is, and its content.

    Raises:
        RmkitError: naming the file and the key.
    """
    file = find_sweep(path)
    return file, validate(Sweep, load_yaml(file), str(file))


def expand(
    path: Path | str, overrides: Sequence[str] = (), output: Path | None = None, only: Selection | None = None
) -> list[Point]:
    """The points of a sweep file, the first axis slowest.

    Args:
        path: a sweep file, or the name of a shipped one.
        overrides: section.key=value for every point; they go before what the file says.
        output: where the run directories go; runs/<name of the file> if not given.
        only: just the points with these values.

    Raises:
        RmkitError: if a point is no valid recipe, two points are the same, or none is left.
    """
    file, sweep = load_sweep(path)
    if any(override.startswith("output_dir=") for override in overrides):
        raise RmkitError("A sweep sets output_dir for every point.", "Say where they go with --output.")
    if only:
        try:
            sweep.check(only)
        except ValueError as error:
            raise RmkitError(f"{file}: {error}.", "Mend --only.") from None
    beside = file.parent / sweep.base
    base = beside if beside.is_file() else find_recipe(sweep.base)
    folder = output or Path("runs") / file.stem
    points = []
    for chosen in itertools.product(*sweep.axes.values()):
        named = dict(zip(sweep.axes, chosen, strict=True))
        values = {axis: _value(choice) for axis, choice in named.items()}
        if any(_matches(values, each) for each in sweep.exclude):
            continue
        if sweep.only and not any(_matches(values, each) for each in sweep.only):
            continue
        if only and not _matches(values, only):
            continue
        name = "_".join(label(axis, choice) for axis, choice in named.items())
        changes = [
            *_overrides(sweep.changes),
            *(each for axis, choice in named.items() for each in _overrides(_changes(axis, choice))),
        ]
        place = f"output_dir={json.dumps(str(folder / name))}"
        try:
            points.append(Point(name, values, load_recipe(base, [*changes, *overrides, place])))
        except RmkitError as error:
            raise RmkitError(f"{file}: the point {name}: {error.cause}", error.remedy) from None
    if not points:
        raise RmkitError(f"{file}: no point is left.", "Loosen only, exclude or --only.")
    _refuse_same(points, file)
    return points


def label(axis: str, choice: Bundle | Value) -> str:
    """What a choice adds to the names of its points: llama1b, seed0, learning_rate5e-07."""
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


def _refuse_same(points: Sequence[Point], file: Path) -> None:
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
            raise RmkitError(f"{file}: a point cannot be called {point.name}.", "Give bundles other names.")
        if point.recipe.hub is not None:
            other = repositories.setdefault(point.recipe.hub.repo_id, point.name)
            if other != point.name:
                raise RmkitError(
                    f"{file}: {other} and {point.name} would both be pushed to {point.recipe.hub.repo_id}.",
                    "Give each a hub.repo_id of its own in its bundle, or push the ones to keep with `rmkit push`.",
                )
        seen[content] = point.name
        names.add(point.name)


# --- what is there -------------------------------------------------------------------------------------------------


def state(point: Point) -> State:
    """Whether a point's run is finished, was begun, or is not there.

    Raises:
        RmkitError: if its directory holds something else, which a sweep must not replace.
    """
    directory = point.recipe.output_dir
    if point.run.record.exists():
        try:
            recorded = Recipe.model_validate(point.run.read().get("recipe"))
        except RmkitError as error:
            raise RmkitError(error.cause, f"Remove {directory}, or give another --output.") from None
        except ValidationError:
            raise RmkitError(
                f"{point.run.record} holds a recipe of another rmkit.", f"Remove {directory}, or give another --output."
            ) from None
        _refuse_other(point, recorded)
        return "finished"
    if (directory / "recipe.yaml").exists():
        _refuse_other(point, read_recipe(directory / "recipe.yaml"))
        return "unfinished"
    if directory.is_dir():
        # A run writes its recipe first, under a temporary name.
        foreign = [each.name for each in directory.iterdir() if not each.name.startswith(".recipe.yaml.")]
        if foreign:
            raise RmkitError(f"{directory} holds {foreign[0]} and no recipe.yaml.", "Give another --output.")
        return "unfinished"
    if directory.exists():
        raise RmkitError(f"{directory} is a file.", "Give another --output.")
    return "missing"


def _refuse_other(point: Point, there: Recipe) -> None:
    ours, theirs = dict(_leaves(_content(point.recipe))), dict(_leaves(_content(there)))
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            raise RmkitError(
                f"{point.recipe.output_dir} holds a run of another recipe: {key} is {theirs.get(key)} there, "
                f"{ours.get(key)} in this sweep.",
                f"Give another --output, or remove {point.recipe.output_dir}.",
            )


def _content(recipe: Recipe) -> dict[str, Any]:
    """What makes two runs the same: everything but where they are written and what happens if they are interrupted."""
    return recipe.model_dump(mode="json", exclude={"output_dir", "resume"})


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict | list) and content:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, content


# --- running it ----------------------------------------------------------------------------------------------------


def run_sweep(points: Sequence[Point], output: Path, launcher: Launcher) -> Generator[Outcome]:
    """Run the points that are not finished; outcomes as they come, those that were finished before first.

    Raises:
        RmkitError: before anything starts, if another sweep is at work in `output` or a point's directory holds
            something that is not this sweep's.
    """
    with _alone(output):
        states = {point.name: state(point) for point in points}
        for point in points:
            if states[point.name] == "finished":
                yield Outcome(point, "kept", _log(output, point))
        waiting = {point.name: point for point in points if states[point.name] != "finished"}
        for leftover in output.glob(".discarded-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with launcher.at_work(output, [_task(output, point) for point in waiting.values()]) as tasks:
            for task in tasks:
                point = waiting[task.name]
                # What counts is what is there, as it will for the next sweep: some launchers abort after all is done.
                yield Outcome(point, "finished" if point.run.record.exists() else "failed", task.log)


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Hold the sweep's folder for this process; the lock is gone with it, however it ends."""
    from filelock import FileLock, Timeout

    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".sweep.lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise RmkitError(f"Another sweep is at work in {output}.", "Wait for it, or give another --output.") from None
    except OSError as error:
        raise RmkitError(f"{output} cannot be written: {error}.", "Give another --output.") from None
    try:
        yield
    finally:
        lock.release()


def _task(output: Path, point: Point) -> Task:
    recipe = output / RECIPES / f"{point.name}.yaml"

    def prepare() -> None:
        if not _goes_on(point):
            _discard(point.recipe.output_dir, output)
        write_text(recipe, point.recipe.to_yaml())
        _log(output, point).parent.mkdir(exist_ok=True)

    return Task(point.name, recipe, _log(output, point), point.recipe.distributed, prepare)


def _goes_on(point: Point) -> bool:
    """Whether training will take up what is there (resume: auto) instead of starting again."""
    there = point.recipe.output_dir / "recipe.yaml"
    return point.recipe.resume == "auto" and there.exists() and there.read_text("utf-8") == point.recipe.to_yaml()


def _log(output: Path, point: Point) -> Path:
    return output / LOGS / f"{point.name}.log"


def _discard(directory: Path, output: Path) -> None:
    """Remove what a killed run has left. It goes aside at once, so that being killed here leaves nothing by halves."""
    if directory.exists():
        aside = Path(tempfile.mkdtemp(prefix=".discarded-", dir=output))
        os.replace(directory, aside / directory.name)
        shutil.rmtree(aside, ignore_errors=True)


def last_lines(log: Path, number: int = 6) -> list[str]:
    """The last lines of a log that say something; progress bars are passed over."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
    return [line for line in lines if line and not re.search(r"\d+%\|", line)][-number:]


__all__ = ["Bundle", "Outcome", "Point", "Sweep", "expand", "last_lines", "load_sweep", "run_sweep", "state"]
