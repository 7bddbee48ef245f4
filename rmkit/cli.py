"""The `rmkit` command. `rmkit --help` imports no torch."""

from __future__ import annotations

import os

import typer

from rmkit.commands import (
    check,
    evaluate,
    explain,
    generate,
    prepare,
    push,
    quickstart,
    report,
    rewrite,
    score,
    sweep,
    train,
)
from rmkit.commands.theory import theory_app

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

app = typer.Typer(
    name="rmkit",
    help="Train, score and compare explicit, implicit and generative reward models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (
    quickstart.quickstart,
    prepare.prepare,
    rewrite.rewrite,
    check.check,
    train.train,
    sweep.sweep,
    score.score,
    evaluate.evaluate,
    explain.explain,
    generate.generate,
    report.report,
    push.push,
):
    app.command()(command)
app.add_typer(theory_app)


def main() -> None:
    """The entry point of the package."""
    app()
