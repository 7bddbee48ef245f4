"""`rmkit sweep`: a grid of recipes, one run per point."""

from __future__ import annotations

import contextlib
import enum
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmkit.commands.extras import require_extra
from rmkit.errors import exit_on_error

if TYPE_CHECKING:
    from rich.console import Console

    from rmkit.config.recipe import Recipe
    from rmkit.experiments.launchers import ClusterLauncher, LocalLauncher, Task
    from rmkit.experiments.sweep import Outcome, Point


class LauncherName(enum.StrEnum):
    """Where points run."""

    local = "local"
    slurm = "slurm"


def sweep(
    sweep: Annotated[
        str, typer.Argument(help="A sweep file, or the name of a shipped sweep, for example tiny_quickstart.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe keys to change in every point, as section.key=value.")
    ] = None,
    launcher: Annotated[
        LauncherName, typer.Option(help="This machine, or a Slurm cluster through submitit.")
    ] = LauncherName.local,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the points and the GPU memory they need.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="The folder for the run directories. Default: runs/NAME.", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="AXIS=VALUE", help="Run only these points; VALUE may be a list [a, b].")
    ] = None,
    max_parallel: Annotated[int, typer.Option(min=1, help="Local: points to run in parallel, sharing the GPUs.")] = 1,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A parameter of submitit: slurm_partition=gpu.")
    ] = None,
) -> None:
    """Run a grid of recipes. Run the command again to continue: finished points are kept."""
    with exit_on_error(), _interrupted_by_signals():
        from rich.console import Console

        console = Console(highlight=False)
        with console.status("Reading the grid"):
            from rmkit.experiments.sweep import expand, load_sweep, state

            file, _ = load_sweep(sweep)
            folder = output or Path("runs") / file.stem
            points = expand(file, overrides or (), folder, _parse_values(only or []))
            states = {point.name: state(point) for point in points}
        if dry_run:
            _list(points, states, console)
            return
        task_launcher = _make_launcher(launcher, max_parallel, _parse_values(slurm or []), console)
        outcomes = []
        try:
            for outcome in _run(points, folder, task_launcher, console):
                outcomes.append(outcome)
        except KeyboardInterrupt:
            jobs = "jobs keep running; " if launcher is LauncherName.slurm else ""
            console.print(f"interrupted: {jobs}run the same command to finish {folder}.", markup=False)
            raise SystemExit(130) from None
        if not _print_summary(outcomes, folder, console):
            raise SystemExit(1)


def _run(
    points: Sequence[Point], folder: Path, launcher: LocalLauncher | ClusterLauncher, console: Console
) -> Iterator[Outcome]:
    """Run points and report every one as it ends."""
    from rmkit.experiments.sweep import run_sweep

    with contextlib.closing(run_sweep(points, folder, launcher)) as outcomes:
        for number, outcome in enumerate(outcomes, start=1):
            state = {"kept": "kept from before", "finished": "finished", "failed": f"FAILED, see {outcome.log}"}
            line = f"[{number}/{len(points)}] {outcome.point.name}: {state[outcome.state]}"
            console.print(line, markup=False)
            yield outcome


def _parse_values(settings: Sequence[str]) -> dict[str, Any]:
    from rmkit.config.strict_yaml import override_value

    return dict(map(override_value, settings))


def _make_launcher(
    name: LauncherName, max_parallel: int, parameters: dict[str, Any], console: Console
) -> LocalLauncher | ClusterLauncher:
    from rmkit.experiments.launchers import ClusterLauncher, LocalLauncher

    def started(task: Task, place: str) -> None:
        console.print(f"{task.name}: started {place}, log {task.log}".replace(" ,", ","), markup=False, soft_wrap=True)

    if name is LauncherName.slurm:
        require_extra("slurm", "--launcher slurm")
        return ClusterLauncher(parameters, started=started)
    return LocalLauncher(max_parallel, started)


def _list(points: Sequence[Point], states: Mapping[str, str], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("point", overflow="fold"), "state", "accelerate", "memory per GPU")
    estimates: dict[Any, str] = {}
    for point in points:
        recipe = point.recipe
        key = (recipe.base.model_dump_json(), recipe.reward_model.type, recipe.lora is None, recipe.distributed)
        if key not in estimates:
            estimates[key] = _memory(recipe)
        table.add_row(point.name, states[point.name], recipe.distributed or "", escape(estimates[key]))
    console.print(table)
    console.print(f"{len(points)} points. Memory: weights, gradients, optimizer states; activations come on top.")


def _memory(recipe: Recipe) -> str:
    """GiB per GPU, or why the estimate is unknown."""
    from rmkit.errors import RmkitError
    from rmkit.reward_models import make_reward_model
    from rmkit.reward_models.origins import ModelRef
    from rmkit.training import checking, launch, preparation

    if recipe.base.name is None:
        return "unknown (base is built first)"
    base = ModelRef(name=recipe.base.name, revision=recipe.base.revision)
    try:
        config = preparation.load_config(recipe, base)
    except (RmkitError, OSError):
        return "unknown (base not cached)"
    try:
        encoder, _ = preparation.load_encoder(recipe, base)
        reward_model = make_reward_model(recipe.reward_model, encoder)
        return f"{checking.memory(recipe, reward_model, config, launch.plan(recipe)).per_gpu / 2**30:.3g} GiB"
    except RmkitError as error:
        return f"unknown: {error.cause}"


def _print_summary(outcomes: Sequence[Outcome], folder: Path, console: Console) -> bool:
    """Print what failed, with the last lines of its log; returns whether nothing failed."""
    from rmkit.experiments.sweep import last_lines

    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    console.print(f"{len(outcomes) - len(failed)} of {len(outcomes)} points are finished in {folder}.", markup=False)
    for outcome in failed:
        console.print(f"\n{outcome.point.name} failed: {outcome.log}", markup=False, style="red", soft_wrap=True)
        for line in last_lines(outcome.log):
            console.print(f"  {line}", markup=False, soft_wrap=True)
    if failed:
        console.print("\nRun the same command to retry only the failed points.")
    return not failed


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Treat SIGTERM and a lost terminal like Ctrl-C: started processes are ended too."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
