"""`rmkit quickstart`: the controlled experiment of Section 5.1, from data generation to a page of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmkit.errors import exit_on_error


def quickstart(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value overrides for all recipes.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs per type, with seeds 0, 1, ...")] = 2,
    output: Annotated[Path, typer.Option(help="Folder for data/, runs/ and report/.")] = Path("."),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train finished runs again.")] = False,
    prepare_only: Annotated[bool, typer.Option("--prepare-only", help="Only write the pairs to data/.")] = False,
) -> None:
    """Train all three types on a small base and compare them. Takes minutes on a CPU; writes a page of results."""
    with exit_on_error():
        from rich.console import Console

        console = Console()
        with console.status("Loading torch and transformers"):
            from rmkit.experiments import quickstart as experiment
            from rmkit.report.quickstart import terminal_table

        if prepare_only:
            print(f"Pairs: {experiment.prepare(output) / 'quickstart'}")
            return
        done = experiment.quickstart(output, seeds, overrides or (), overwrite, console)
        console.print(terminal_table(done.results))
        console.print("The page explains what these numbers do and do not show.")
        print(f"Page: {done.page.resolve()}\nResults: {done.page.resolve().with_name('results.csv')}")
