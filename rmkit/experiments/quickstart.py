"""The quickstart: the controlled experiment of Section 5.1 from scratch, on a CPU in minutes, with a page of results.

It generates the pairs, builds the base language model (`models.tiny_base`), and trains and scores the three types of
reward model through `rmkit.train.train` from the recipes in recipes/quickstart/, as `accelerate launch` would.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers.utils import logging as transformers_logging

from rmkit.config.recipe import PreferenceSet, Recipe, SourceSettings, load_recipe
from rmkit.config.resources import RECIPES
from rmkit.data.corpus import corpus_fingerprint, quickstart_documents
from rmkit.data.sources.use import locate
from rmkit.errors import RmkitError
from rmkit.models.tiny_base import ensure_base
from rmkit.report.quickstart import RESULT_COLUMNS, results, write_report
from rmkit.runs import environment
from rmkit.runs.directory import RunDirectory
from rmkit.train import train

RECIPE_NAMES = ("exrm", "imrm", "exgrm")


@dataclass(frozen=True)
class Quickstart:
    """The output of a quickstart: results (columns `RESULT_COLUMNS`), the page, and the run directories."""

    results: pd.DataFrame
    page: Path
    run_dirs: Sequence[RunDirectory]


def prepare(output: Path) -> Path:
    """Write the six sets of pairs to data/quickstart/ in `output`, unless they exist; returns data/.

    Raises:
        RmkitError: if that folder cannot be created.
    """
    root = output / "data"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RmkitError(
            f"Cannot write data, runs and a report to {output}: {error}.", "Use another --output."
        ) from None
    locate(PreferenceSet(name="quickstart", path="quickstart", source=SourceSettings(name="quickstart")), root)
    return root


def recipes(output: Path, seeds: int, overrides: Sequence[str] = ()) -> list[Recipe]:
    """The recipes of all runs, ordered by seed.

    Args:
        output: the folder of data/ and runs/.
        seeds: every type is trained with the seeds 0 to `seeds` - 1.
        overrides: section.key=value, for all recipes.

    Raises:
        RmkitError: if an override is invalid.
    """
    return [
        load_recipe(
            RECIPES / "quickstart" / f"{name}.yaml",
            [
                *overrides,
                f"data.root={json.dumps(str(output / 'data'))}",
                f"training.seed={seed}",
                f"output_dir={json.dumps(str(output / 'runs' / 'quickstart' / f'{name}_seed{seed}'))}",
            ],
        )
        for seed in range(seeds)
        for name in RECIPE_NAMES
    ]


def quickstart(
    output: Path, seeds: int, overrides: Sequence[str] = (), overwrite: bool = False, console: Console | None = None
) -> Quickstart:
    """Prepare the pairs, build the base, train every type with every seed, and write report/.

    Finished runs of the same recipe and the same rmkit are kept, so a second call only trains what is missing; any
    other run in their folders, finished or not, is replaced.

    Args:
        output: the folder of data/, runs/ and report/.
        seeds: number of seeds, from 0.
        overrides: section.key=value, for all recipes.
        overwrite: train finished runs again.
        console: where progress is shown.

    Raises:
        RmkitError: see `recipes` and `rmkit.train.train`.
    """
    console = console or Console(file=sys.stdout)
    planned = recipes(output, seeds, overrides)
    prepare(output)
    run_dirs = [RunDirectory(recipe.output_dir) for recipe in planned]
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        redirect_stdout=False,  # `_quiet` captures what runs print
        redirect_stderr=False,
    )
    with bar, _one_thread():
        task = bar.add_task("Building the base language model", total=1 + len(planned))
        with _quiet():
            _ensure_base(planned[0])
        bar.advance(task)
        for recipe, run_dir in zip(planned, run_dirs, strict=True):
            what = f"{recipe.reward_model.type} reward model, seed {recipe.training['seed']}"
            bar.update(task, description=f"Training the {what}")
            if overwrite or not _is_current(run_dir, recipe):
                with _quiet():
                    train(recipe, overwrite=True)
            else:
                console.print(f"Kept: {what} (--overwrite trains it again)")
            bar.advance(task)
        bar.update(task, description="Done")
    records = [run_dir.read() for run_dir in run_dirs]
    frame = results(records)
    return Quickstart(frame, write_report(frame, records, output / "report"), run_dirs)


def _ensure_base(recipe: Recipe) -> None:
    """Build the base before the first run, unless an override changed its corpus: `train` builds that one."""
    build = recipe.base.build
    if build is not None and build.corpus == "quickstart":
        ensure_base(build, lambda: quickstart_documents(build.seed), corpus_fingerprint(build.seed))


def _is_current(run_dir: RunDirectory, recipe: Recipe) -> bool:
    """Whether the folder holds a finished run of the same recipe and the same rmkit."""
    try:
        record = run_dir.read()
    except RmkitError:
        return False
    here = environment.describe()
    same_code = all(record.get(key) == here[key] for key in ("rmkit_version", "git", "versions"))
    changed = bool(here["git"]) and here["git"]["dirty"]  # uncommitted changes are not recorded
    return same_code and not changed and record.get("recipe") == recipe.model_dump(mode="json")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one CPU thread, as `accelerate launch` does by default.

    The models are too small to gain from more threads, which slow each other down on a busy machine. It also makes the
    numbers independent of the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Capture what a run prints (bars, tables, warnings); it is shown after an unexpected error."""
    captured = io.StringIO()
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(captured), contextlib.redirect_stderr(captured), warnings.catch_warnings():
            yield
    except RmkitError:
        raise
    except Exception:
        sys.stderr.write(captured.getvalue())
        raise
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


__all__ = ["RESULT_COLUMNS", "Quickstart", "prepare", "quickstart", "recipes"]
