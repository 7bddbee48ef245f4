"""Run directories as data frames. A run that cannot be used is listed with the reason, never used in part.

`load(paths)` returns `Runs`:

    runs       one row per run: run, setting, model, reward_model, variant, seed, learning_rate, beta, main, ...
    metrics    one row per run, set and state: the columns above, set, dataset, category, state, epoch, accuracy,
               normalized_margin, tie_rate, loss, pairs
    scores     (run, set) -> the rewards of all pairs in the final state
    problems   what was left out, and why
    dynamics   run -> the theory.dynamics of its run.json (runs of older rmkit)

A *setting* is a training set; only runs of one setting are compared. `main` marks the runs that the paper's tables and
figures show: the standard variants at the setting's usual learning rate and beta.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from rmkit.errors import RmkitError
from rmkit.report import names
from rmkit.report.records import LoadedRun, load_run, mixture
from rmkit.runs.directory import FINAL, RunDirectory
from rmkit.runs.rewards import PairRewards

PAPER_LEARNING_RATE, PAPER_BETA = 1e-6, 0.01
TRAINING = "training set"


@dataclass(frozen=True)
class Problem:
    """A run, or one set of a run, that is not in the report."""

    run: str
    reason: str
    set: str | None = None


@dataclass(frozen=True)
class Runs:
    """All that the report knows about its runs; see the module's docstring."""

    runs: pd.DataFrame
    metrics: pd.DataFrame
    scores: dict[tuple[str, str], PairRewards] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    directories: dict[str, RunDirectory] = field(default_factory=dict)
    dynamics: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def final(self) -> pd.DataFrame:
        """The rows of `metrics` for evaluation sets after training."""
        return self.metrics[(self.metrics["state"] == FINAL) & ~self.metrics["training"]].reset_index(drop=True)

    @cached_property
    def train_fit(self) -> pd.DataFrame:
        """The rows of `metrics` for the training set after training, of a mixture for the whole of it."""
        return self._after_training[self._after_training["dataset"] == TRAINING].reset_index(drop=True)

    @cached_property
    def mixed_fit(self) -> pd.DataFrame:
        """The rows of `metrics` for every set of a mixture after training."""
        return self._after_training[self._after_training["dataset"] != TRAINING].reset_index(drop=True)

    @property
    def _after_training(self) -> pd.DataFrame:
        return self.metrics[(self.metrics["state"] == FINAL) & self.metrics["training"]]

    @property
    def settings(self) -> list[str]:
        """The training sets, the paper's first."""
        papers = list(names.TRAINING_SETS.values())
        return sorted(
            self.runs["setting"].unique(),
            key=lambda name: (papers.index(name) if name in papers else len(papers), name),
        )

    def examples(self, run: str, name: str, columns: Sequence[str]) -> pd.DataFrame | None:
        """Columns of examples/<set>.parquet by pair index; None if the file is missing or cannot be read."""
        try:
            table = pq.read_table(self.directories[run].examples(name), columns=["index", *columns])
        except (OSError, ValueError, KeyError):
            return None
        return table.to_pandas().set_index("index")


def load(paths: Iterable[Path | str]) -> Runs:
    """Read run directories, or folders that contain some.

    Raises:
        RmkitError: if no usable run is left.
    """
    found, problems = find(paths)
    readable: list[LoadedRun] = []
    for name, path in found.items():
        try:
            readable.append(load_run(name, path))
        except RmkitError as error:
            problems.append(Problem(name, error.cause))
    loaded, conflicts = _comparable(readable)
    problems += conflicts
    if not loaded:
        listed = "; ".join(f"{problem.run}: {problem.reason}" for problem in problems[:5])
        raise RmkitError(f"No run to report. {listed}".strip(), "Give directories of finished runs.")
    too_small = {
        (run.name, name): Problem(run.name, "has 1 pair, too few for a standard deviation", name)
        for run in loaded
        for name, scores in run.scores.items()
        if len(scores.index) < 2
    }
    runs = _runs_frame(loaded)
    metrics = _metrics_frame(loaded, runs)
    kept = [key not in too_small for key in zip(metrics["run"], metrics["set"], strict=True)]
    scores = {(run.name, name): found for run in loaded for name, found in run.scores.items()}
    return Runs(
        runs=runs,
        metrics=metrics[kept].reset_index(drop=True),
        scores={key: found for key, found in scores.items() if key not in too_small},
        problems=[*problems, *too_small.values()],
        directories={run.name: run.directory for run in loaded},
        dynamics={run.name: run.record.theory["dynamics"] for run in loaded if "dynamics" in run.record.theory},
    )


def find(paths: Iterable[Path | str]) -> tuple[dict[str, Path], list[Problem]]:
    """Name -> run directory, for all at or below the paths; and the paths that contain none or unfinished ones."""
    directories: list[Path] = []
    problems: list[Problem] = []
    for root in dict.fromkeys(Path(path) for path in paths):
        if not root.is_dir():
            problems.append(Problem(str(root), "is not a directory"))
            continue
        before = len(directories) + len(problems)
        for folder, below, files in os.walk(root):
            below[:] = sorted(name for name in below if not name.startswith("."))  # hidden: unfinished
            if "run.json" in files:
                directories.append(Path(folder))
                below.clear()
            elif "recipe.yaml" in files:
                problems.append(Problem(folder, "has no run.json: the run has not finished"))
                below.clear()
        if len(directories) + len(problems) == before:
            problems.append(Problem(str(root), "contains no run"))
    unique = {path.resolve(): path for path in directories}
    found = sorted(unique.values())
    common = os.path.commonpath([path.parent for path in found]) if found else ""
    return {os.path.relpath(path, common) if len(found) > 1 else path.name: path for path in found}, problems


# --- comparable runs -----------------------------------------------------------------------------------------------


def _comparable(loaded: list[LoadedRun]) -> tuple[list[LoadedRun], list[Problem]]:
    """Per training set, the runs with the most frequent evaluation sets, without repetitions.

    Of each language model also the most frequent training options: types are compared within a language model, and the
    paper's runs differ in gradient clipping from one to another.
    """
    kept: list[LoadedRun] = []
    problems: list[Problem] = []
    by_training: dict[str, list[LoadedRun]] = {}
    for run in loaded:
        by_training.setdefault(run.training_fingerprint, []).append(run)
    for group in by_training.values():
        usual_sets = _usual(run.evaluation_sets for run in group)
        same_sets = [run for run in group if run.evaluation_sets == usual_sets]
        options: dict[str, list[str]] = {}
        for run in same_sets:
            options.setdefault(run.model_key, []).append(run.options)
        seen: dict[Hashable, str] = {}
        for run in group:
            settings = json.dumps([run.settings, run.record.recipe.lora], sort_keys=True)
            key = (run.model_key, run.template, settings, run.learning_rate, run.seed)
            if run.evaluation_sets != usual_sets:
                problems.append(Problem(run.name, _difference(dict(run.evaluation_sets), dict(usual_sets))))
            elif run.options != (usual := _usual(options[run.model_key])):
                problems.append(Problem(run.name, _option_difference(run.options, usual)))
            elif key in seen:
                problems.append(Problem(run.name, f"repeats {seen[key]} (same recipe and seed)"))
            else:
                seen[key] = run.name
                kept.append(run)
    return kept, problems


def _usual(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _difference(sets: dict[str, str], usual: dict[str, str]) -> str:
    for name in usual:
        if name not in sets:
            return f"does not evaluate on {name}, as the other runs of its training set do"
    for name in sets:
        if name not in usual:
            return f"evaluates on {name}, which the other runs of its training set do not"
    name = next(name for name in usual if sets[name] != usual[name])
    return f"evaluation set {name} contains other pairs than in the other runs"


def _option_difference(options: str, usual: str) -> str:
    mine, others = json.loads(options), json.loads(usual)
    key = next(key for key in sorted({*mine, *others}) if mine.get(key) != others.get(key))
    return (
        f"training option {key} is {mine.get(key)!r}, but {others.get(key)!r} in the other runs of its language model"
    )


def _runs_frame(loaded: list[LoadedRun]) -> pd.DataFrame:
    models = names.model_names(run.record.recipe.base for run in loaded)
    settings = names.distinct_names({run.training_fingerprint: _setting_candidates(run) for run in loaded})
    templates: dict[tuple[str, str], list[str | None]] = {}
    for run in loaded:
        templates.setdefault((run.training_fingerprint, run.model_key), []).append(run.template)
    frame = pd.DataFrame(
        {
            "run": run.name,
            "setting": settings[run.training_fingerprint],
            "training_path": mixture(each.place for each in run.training_sets),
            "model": models[run.model_key],
            "reward_model": names.type_label(run.settings["type"]),
            "variant": names.variant(
                run.settings,
                lora=run.record.recipe.lora is not None,
                template=names.other_template(run.template, templates[run.training_fingerprint, run.model_key]),
            ),
            "seed": run.seed,
            "learning_rate": run.learning_rate,
            "beta": run.beta,
            "save_best": run.record.recipe.evaluation.get("save_best"),
        }
        for run in loaded
    )
    frame["standard"] = frame["variant"] == frame["reward_model"]
    for _, group in frame.groupby(["setting", "reward_model"]):
        if not group["standard"].any():  # if all runs are of one variant, such as LoRA, that is the standard
            frame.loc[group.index, "standard"] = group["variant"] == _usual(group["variant"])
    frame["usual_learning_rate"] = frame["usual_beta"] = False
    for _, group in frame.groupby("setting"):
        rate = _usual_number(group.loc[group["standard"], "learning_rate"], PAPER_LEARNING_RATE)
        frame.loc[group.index, "usual_learning_rate"] = group["learning_rate"] == rate
    for _, group in frame.groupby(["setting", "reward_model"]):
        at_rate = group[group["standard"] & group["usual_learning_rate"]]
        beta = _usual_number(at_rate["beta"].dropna(), PAPER_BETA)
        frame.loc[group.index, "usual_beta"] = group["beta"].isna() | (group["beta"] == beta)
    frame["main"] = frame["standard"] & frame["usual_learning_rate"] & frame["usual_beta"]
    return frame


def _usual_number(values: pd.Series, papers: float) -> float:
    """The most frequent value; of several the paper's, else the smallest."""
    counts = values.value_counts()
    if counts.empty:
        return float("nan")
    most = counts[counts == counts.max()].index
    return papers if papers in most else float(min(most))


def _setting_candidates(run: LoadedRun) -> list[str]:
    sets = run.training_sets
    label = mixture(names.training_set(each.name, each.place) for each in sets)
    options = ", ".join(each.options for each in sets if each.options)
    prepared = [f"{label} ({options})"] if options else []
    return [label, *prepared, f"{label} ({run.training_pairs})", f"{label} [{run.training_fingerprint[:8]}]"]


def _metrics_frame(loaded: list[LoadedRun], runs: pd.DataFrame) -> pd.DataFrame:
    rows = [row for run in loaded for row in _metric_rows(run)]
    return pd.DataFrame(rows).merge(runs, on="run", how="left", validate="many_to_one")


def _metric_rows(run: LoadedRun) -> Iterable[dict[str, Any]]:
    record = run.record
    paths = {location.name: location.place for location in record.recipe.data.evaluation}
    epochs = {state.epoch for state in record.history if state.state != FINAL}
    last = max((state.epoch for state in record.history), default=0.0)
    states = [(state.state, state.epoch, state.sets) for state in record.history if state.state != FINAL]
    found = [
        (state, epoch, name, metrics, record.data[name])
        for state, epoch, sets in [*states, (FINAL, last, record.metrics)]
        for name, metrics in sets.items()
        if name in record.data
    ]
    found += [(FINAL, last, name, metrics, facts) for name, (metrics, facts) in run.train_fit.items()]
    whole = next(iter(run.train_fit), None)
    for state, epoch, name, metrics, facts in found:
        training = TRAINING if name == whole else f"{TRAINING}: {name}"
        yield {
            "run": run.name,
            "set": name,
            "dataset": training if facts.training else names.dataset(name, paths.get(name, "")),
            "category": "Training" if facts.training else names.CATEGORIES.get(facts.category, str(facts.category)),
            "training": facts.training,
            "state": state,
            "epoch": epoch,
            "repeats_epoch": state == FINAL and epoch in epochs,
            "longer_wins": facts.longer_wins,
            "shorter_wins": facts.shorter_wins,
            **metrics.model_dump(),
        }
