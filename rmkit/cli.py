"""The `rmkit` command. `rmkit --help` imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import typer

from rmkit import __version__
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
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,  # rich would drop [key=value ...] from help texts as markup
    context_settings={"help_option_names": ["-h", "--help"]},
)

EXAMPLES: dict[Callable[..., None], str] = {
    quickstart.quickstart: "rmkit quickstart --seeds 2",
    prepare.prepare: "rmkit prepare hamiltonian vertices=8 --train 1000 --test 200",
    rewrite.rewrite: "rmkit rewrite data/ultrafeedback --style local:typos --output data/ultrafeedback_typos",
    check.check: "rmkit check llama8b_exrm data.root=/data",
    train.train: "rmkit train llama8b_exrm data.root=/data training.seed=1",
    sweep.sweep: "rmkit sweep tiny_quickstart --dry-run",
    score.score: "rmkit score runs/llama8b_exrm/model data/ultrafeedback_french --output french.parquet",
    evaluate.evaluate: "rmkit evaluate runs/llama8b_exrm/model --suite general_chat",
    explain.explain: 'rmkit explain runs/llama8b_exrm --prompt "What is 2 + 2?" --response 4',
    generate.generate: "rmkit generate runs/hamiltonian_imrm --samples 4",
    report.report: "rmkit report runs/ --output report",
    push.push: "rmkit push runs/llama8b_exrm owner/llama8b_exrm --private",
}
"""The commands in the order of `rmkit --help`; each help text ends with its example."""

for command, example in EXAMPLES.items():
    app.command(epilog=f"\b\nExample:\n  {example}")(command)
app.add_typer(theory_app)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"rmkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train, score and compare explicit, implicit and generative reward models."""


def main() -> None:
    """The entry point of the package."""
    app()
