"""`rmkit sweep`: every point of a grid, as runs of their own."""

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


class Where(enum.StrEnum):
    """Launchers."""

    local = "local"
    slurm = "slurm"


def sweep(
    sweep: Annotated[
        str, typer.Argument(help="A sweep file, or the name of a shipped one, for example tiny_quickstart.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ... for every point.")] = None,
    launcher: Annotated[Where, typer.Option(help="This machine, or a Slurm cluster through submitit.")] = Where.local,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the points and the GPU memory they need.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Where the run directories go; runs/NAME if not given.", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="AXIS=VALUE", help="Just these points; VALUE may be a list [a, b].")
    ] = None,
    max_parallel: Annotated[
        int, typer.Option(min=1, help="Local: points at a time; the GPUs are shared out between them.")
    ] = 1,
    slurm: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A parameter of submitit: slurm_partition=gpu.")
    ] = None,
) -> None:
    """Run a grid of recipes. Run it again to go on after an interruption: finished points are kept."""
    with exit_on_error(), _interrupted_by_signals():
        from rich.console import Console

        console = Console(highlight=False)
        with console.status("Reading the grid"):
            from rmkit.experiments.sweep import expand, load_sweep, run_sweep, state

            file, _ = load_sweep(sweep)
            folder = output or Path("runs") / file.stem
            points = expand(file, overrides or (), folder, _values(only or []))
            states = {point.name: state(point) for point in points}
        if dry_run:
            _list(points, states, console)
            return
        where = _launcher(launcher, max_parallel, _values(slurm or []), console)
        outcomes = []
        try:
            with contextlib.closing(run_sweep(points, folder, where)) as ended:
                for outcome in ended:
                    outcomes.append(outcome)
                    done = f"[{len(outcomes)}/{len(points)}] {outcome.point.name}: {_said(outcome)}"
                    console.print(done, markup=False)
        except KeyboardInterrupt:
            jobs = "jobs go on; " if launcher is Where.slurm else ""
            console.print(f"interrupted: {jobs}the same command finishes {folder}.", markup=False)
            raise SystemExit(130) from None
        if not _summary(outcomes, folder, console):
            raise SystemExit(1)


def _values(given: Sequence[str]) -> dict[str, Any]:
    from rmkit.config.strict_yaml import override_value

    return dict(override_value(each) for each in given)


def _launcher(
    where: Where, max_parallel: int, parameters: dict[str, Any], console: Console
) -> LocalLauncher | ClusterLauncher:
    from rmkit.experiments.launchers import ClusterLauncher, LocalLauncher

    def started(task: Task, place: str) -> None:
        console.print(f"{task.name}: started {place}, log {task.log}".replace(" ,", ","), markup=False, soft_wrap=True)

    if where is Where.slurm:
        require_extra("slurm", "--launcher slurm")
        return ClusterLauncher(parameters, started=started)
    return LocalLauncher(max_parallel, started)


def _list(points: Sequence[Point], states: Mapping[str, str], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(Column("point", overflow="fold"), "state", "accelerate", "memory a GPU")
    known: dict[Any, str] = {}
    for point in points:
        recipe = point.recipe
        key = (recipe.base.model_dump_json(), recipe.reward_model.type, recipe.lora is None, recipe.distributed)
        if key not in known:
            known[key] = _memory(recipe)
        table.add_row(point.name, states[point.name], recipe.distributed or "", escape(known[key]))
    console.print(table)
    console.print(f"{len(points)} points. Memory: weights, gradients, optimizer states; activations come on top.")


def _memory(recipe: Recipe) -> str:
    """GiB a GPU, or why they are not known."""
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


def _said(outcome: Outcome) -> str:
    return {"kept": "kept from before", "finished": "finished", "failed": f"FAILED, see {outcome.log}"}[outcome.state]


def _summary(outcomes: Sequence[Outcome], folder: Path, console: Console) -> bool:
    """Say what failed, with the end of each log; whether nothing did."""
    from rmkit.experiments.sweep import last_lines

    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    console.print(f"{len(outcomes) - len(failed)} of {len(outcomes)} points are finished in {folder}.", markup=False)
    for outcome in failed:
        console.print(f"\n{outcome.point.name} failed: {outcome.log}", markup=False, style="red", soft_wrap=True)
        for line in last_lines(outcome.log):
            console.print(f"  {line}", markup=False, soft_wrap=True)
    if failed:
        console.print("\nThe same command tries them again, and only them.")
    return not failed


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Being told to end, or losing the terminal, is treated as Ctrl-C is: what was started is ended too."""
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(each, signal.default_int_handler) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
