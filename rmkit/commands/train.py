"""`rmkit train`: the recipe's own `accelerate launch`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from rmkit.errors import reported


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, for example recipes/llama8b_exrm.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    config_file: Annotated[
        str | None, typer.Option(help="An accelerate configuration that goes before the recipe's `distributed:`.")
    ] = None,
    num_processes: Annotated[int | None, typer.Option(help="Processes to start; all visible GPUs by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in output_dir.")] = False,
) -> None:
    """Train a reward model from a recipe, through accelerate."""
    with reported():
        from rmkit import distributed
        from rmkit.recipe import read_recipe

        name = config_file or read_recipe(recipe, overrides or []).distributed
        count = num_processes or distributed.visible_gpus() or None
        options = distributed.launch_options(name, count)
        os.environ |= distributed.said_by_launcher(config_file, num_processes)
    script = Path(__file__).parents[1] / "train.py"
    raise SystemExit(
        _launch([*options, str(script), str(recipe), *(overrides or []), *(["--overwrite"] if overwrite else [])])
    )


def _launch(command: list[str]) -> int:
    """Run `accelerate launch` in this process; the exit code of the first process that failed, or 0."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(command))
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    except ChildFailedError as error:
        return min((failure.exitcode for failure in error.failures.values()), key=lambda code: code != 2)
    return 0
