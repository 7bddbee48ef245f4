"""The `rmkit` command. `rmkit --help` imports no torch."""

from __future__ import annotations

import os

import typer

from rmkit.commands import evaluate, explain, generate, quickstart, score, sweep, train

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

app = typer.Typer(
    name="rmkit",
    help="Train, score and compare explicit, implicit and generative reward models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(train.train)
app.command()(score.score)
app.command()(evaluate.evaluate)
app.command()(quickstart.quickstart)
app.command()(explain.explain)
app.command()(generate.generate)
app.command()(sweep.sweep)


def main() -> None:
    """The entry point of the package."""
    app()
