"""`rmkit push`: the model of a finished run to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rmkit.errors import exit_on_error


def push(
    run: Annotated[Path, typer.Argument(help="A finished run's directory.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    base: Annotated[
        str | None,
        typer.Option(help="For a base that is a local folder: its hub id[@revision], or `upload`."),
    ] = None,
) -> None:
    """Publish a finished run on the Hugging Face Hub. Uploads model, tokenizer, card and recipe."""
    with exit_on_error():
        from rmkit.config.recipe import Hub
        from rmkit.config.strict_yaml import validate
        from rmkit.hub import push as hub
        from rmkit.runs.directory import RunDirectory

        where = {"push": "end", "repo_id": repo_id, "private": private, "base": base}
        hub.push(RunDirectory(run), validate(Hub, where, "rmkit push"))
