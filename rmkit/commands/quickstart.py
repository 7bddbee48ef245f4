"""`rmkit quickstart`: the controlled experiment of Section 5.1, from data generation to a page of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmkit.errors import RmkitError, exit_on_error


def quickstart(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value overrides for all recipes.")] = None,
    model: Annotated[
        str, typer.Option(help="tiny (built here, minutes) or smollm2 (SmolLM2-135M-Instruct, about an hour).")
    ] = "tiny",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of runs per type, with seeds 0, 1, ... Default: 2; smollm2: 1.")
    ] = None,
    persona: Annotated[
        Path | None,
        typer.Option(
            help="For smollm2: Persona's agreeableness.jsonl. Default: from the Hub, else generated statements."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for data/, runs/ and report/. Default: here; smollm2: quickstart_smollm2."),
    ] = None,
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

        if model not in experiment.VARIANTS:
            raise RmkitError(f"--model {model} is unknown.", f"Use one of {', '.join(experiment.VARIANTS)}.")
        if persona is not None and model == "tiny":
            raise RmkitError(
                "--persona has no use: the tiny model knows only generated statements.", "Add --model smollm2."
            )
        variant = experiment.VARIANTS[model]
        output = variant.output if output is None else output
        if prepare_only:
            print(f"Pairs: {experiment.prepare(output, model, persona)}")
            return
        seeds = variant.seeds if seeds is None else seeds
        done = experiment.quickstart(output, seeds, overrides or (), overwrite, console, model, persona)
        console.print(terminal_table(done.results))
        console.print("The page explains what these numbers do and do not show.")
        print(f"Page: {done.page.resolve()}\nResults: {done.page.resolve().with_name('results.csv')}")
