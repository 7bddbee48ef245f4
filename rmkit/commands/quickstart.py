"""`rmkit quickstart`: the controlled experiment of Section 5.1, from nothing to a page of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmkit.errors import exit_on_error


def quickstart(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ... for all recipes.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each type, with seeds 0, 1 ...")] = 2,
    output: Annotated[Path, typer.Option(help="Where data/, runs/ and report/ go.")] = Path("."),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train again what is finished.")] = False,
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
            print(f"The pairs are in {experiment.prepare(output) / 'quickstart'}")
            return
        done = experiment.quickstart(output, seeds, overrides or (), overwrite, console)
        console.print(terminal_table(done.results))
        console.print("What these numbers mean, and what they do not, is on the page.")
        print(f"Page: {done.page.resolve()}\nResults: {done.page.resolve().with_name('results.csv')}")
