"""`rmkit train`: `accelerate launch` with the configuration that the recipe names."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from rmkit.commands.options import Overrides, RecipeName
from rmkit.errors import INTERRUPTED_EXIT_CODE, RmkitError, exit_on_error


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    config_file: Annotated[
        str | None, typer.Option(help="An accelerate configuration; overrides the recipe's `distributed`.")
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, help="Processes to start. Default: one per visible GPU.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in output_dir.")] = False,
) -> None:
    """Train a reward model from a recipe, on all GPUs."""
    with exit_on_error():
        from rmkit.config.recipe import read_recipe
        from rmkit.training import launch

        launch.check_launcher()
        name = config_file or read_recipe(recipe, overrides or []).distributed
        count = num_processes or launch.process_count(name)
        options = launch.launch_options(name, count)
        os.environ |= launch.launcher_env(config_file, count)
        script = Path(__file__).parents[1] / "train.py"
        arguments = [recipe, *(overrides or []), *(["--overwrite"] if overwrite else [])]
        code = _launch([*options, str(script), *arguments])
    raise SystemExit(code)


def _launch(command: list[str]) -> int:
    """Run `accelerate launch` in this process; returns the exit code of the processes of the run.

    Raises:
        RmkitError: if a signal ended them, so that they printed no error themselves.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    api.logger.setLevel(logging.CRITICAL)  # the processes have printed the error
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)  # its note on one thread per process
    arguments = launch_command_parser().parse_args(command)
    # On a signal that it handles, the agent of several processes gives them only 30 seconds to save.
    arguments.signals_to_handle = "SIGQUIT"
    try:
        with _forwarding(signal.SIGINT, signal.SIGTERM):
            launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return _exit_code([error.returncode])
    except ChildFailedError as error:
        return _exit_code([failure.exitcode for failure in error.failures.values()])
    return 0


@contextlib.contextmanager
def _forwarding(*signals: signal.Signals) -> Iterator[None]:
    """Forward signals to the started processes and wait for them: they may save a checkpoint first."""

    def forward(number: int, _: Any) -> None:
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(codes: Collection[int]) -> int:
    """The exit code of the run, from those of its processes, which are negative where a signal ended one.

    Raises:
        RmkitError: if signals ended all of them.
    """
    if max(codes) > 0:
        return max(codes)
    killed = signal.Signals(-next((code for code in codes if code != -signal.SIGTERM), min(codes)))
    if killed == signal.SIGINT:  # before the processes could handle it
        return INTERRUPTED_EXIT_CODE
    print(file=sys.stderr)  # a progress bar may be on this line
    raise RmkitError(
        f"{killed.name} ended a process of the run.",
        "If the machine ran out of memory (see dmesg), lower training.per_device_train_batch_size; add resume=auto to "
        "continue from the last checkpoint.",
    )
