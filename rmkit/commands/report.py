"""`rmkit report`: tables, figures and one HTML page from run directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmkit.errors import RmkitError, exit_on_error


def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories, or folders of them.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for index.html, tables/ and figures/.")] = None,
    theory: Annotated[
        list[Path] | None, typer.Option(help="A JSON file written by `rmkit theory`; repeatable.")
    ] = None,
    published: Annotated[Path | None, typer.Option(help="Write the paper's Tables 1 to 10 to this CSV file.")] = None,
) -> None:
    """Compare runs as in the paper. Writes tables, figures and one HTML page, with the paper's numbers for comparison.

    Reads only files of run directories and loads no model. Runs that cannot be used are listed with the reason.
    """
    with exit_on_error():
        if published is None and not runs:
            raise RmkitError("Nothing to do.", "Give run directories and --output, or --published FILE.csv.")
        if runs and output is None:
            raise RmkitError("--output is missing.", "Give a folder for the report: --output report")
        if published is not None:
            _write_published(published)
        if runs and output is not None:
            _write_report(runs, output, theory or [])


def _write_published(path: Path) -> None:
    from rmkit.files import write_text
    from rmkit.report.published import to_csv

    try:
        write_text(path, to_csv())
    except OSError as error:
        raise RmkitError(f"{path} cannot be written: {error}.", "Give another file.") from None
    print(f"The paper's Tables 1 to 10: {path}")


def _write_report(runs: list[Path], output: Path, theory: list[Path]) -> None:
    from rich.console import Console

    from rmkit.report import build

    console = Console(stderr=True)
    with console.status("Reading runs, drawing figures …"):
        problems = build.report(runs, output, theory)
    for problem in problems[:20]:
        name = f"{problem.run}, set {problem.set}" if problem.set else problem.run
        console.print(f"left out: {name}: {problem.reason}", style="yellow", markup=False, highlight=False)
    if len(problems) > 20:
        console.print(f"... and {len(problems) - 20} more, listed in the report", style="yellow")
    print(f"Report: {output / 'index.html'}")
