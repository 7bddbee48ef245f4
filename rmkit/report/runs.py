"""Run directories read into frames. What cannot be used is listed with the reason, never used in part.

`load(paths)` gives `Runs`:

    runs       a row a run: run, setting, model, reward_model, variant, seed, learning_rate, beta, main, ...
    metrics    a row a run, set and state: the columns above, set, dataset, category, state, epoch, accuracy,
               normalized_margin, tie_rate, loss, pairs
    scores     (run, set) -> the rewards of every pair in the final state
    problems   what was left out, and why
    dynamics   run -> the theory.dynamics of its run.json, where it has it

A *setting* is a training set; runs of one setting are compared with each other. `main` marks the runs that the paper's
tables and figures are about: the standard variants at the setting's usual learning rate and beta.
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

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from rmkit.config.training_arguments import BATCH_SIZE, TRAINING_DEFAULTS
from rmkit.errors import RmkitError
from rmkit.report import names
from rmkit.runs.directory import FINAL, RunDirectory
from rmkit.runs.rewards import PairRewards

Floats = NDArray[np.float64]
PAPER_LEARNING_RATE, PAPER_BETA = 1e-6, 0.01
_FREE_OPTIONS = {  # training options that may differ between runs that are compared
    "seed",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_checkpointing",
    "bf16",
    "fp16",
    "tf32",
    "logging_steps",
    "logging_dir",
    "report_to",
    "run_name",
    "save_strategy",
    "save_steps",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "disable_tqdm",
}


@dataclass(frozen=True)
class Problem:
    """A run directory, or one set of it, that is not in the report."""

    run: str
    reason: str
    set: str | None = None


@dataclass(frozen=True)
class Runs:
    """Everything that the report needs of its runs; see the module's docstring."""

    runs: pd.DataFrame
    metrics: pd.DataFrame
    scores: dict[tuple[str, str], PairRewards] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    directories: dict[str, RunDirectory] = field(default_factory=dict)
    dynamics: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def final(self) -> pd.DataFrame:
        """The evaluation sets of `metrics` after training."""
        return self.metrics[(self.metrics["state"] == FINAL) & ~self.metrics["training"]].reset_index(drop=True)

    @cached_property
    def train_fit(self) -> pd.DataFrame:
        """The training sets of `metrics` after training."""
        return self.metrics[(self.metrics["state"] == FINAL) & self.metrics["training"]].reset_index(drop=True)

    @property
    def settings(self) -> list[str]:
        """The training sets, the paper's first."""
        found = list(dict.fromkeys(self.runs["setting"])) if len(self.runs) else []
        papers = list(names.TRAINING_SETS.values())
        return sorted(found, key=lambda name: (papers.index(name) if name in papers else len(papers), name))

    def examples(self, run: str, name: str, columns: Sequence[str]) -> pd.DataFrame | None:
        """Columns of examples/<set>.parquet by pair index; None where the run holds none that can be read."""
        try:
            table = pq.read_table(self.directories[run].examples(name), columns=["index", *columns])
        except (OSError, ValueError, KeyError):
            return None
        return table.to_pandas().set_index("index")


def load(paths: Iterable[Path | str]) -> Runs:
    """Read run directories, or folders that hold some.

    Raises:
        RmkitError: if no run is left to report.
    """
    found, problems = find(paths)
    loaded: list[_Loaded] = []
    for name, path in found.items():
        try:
            loaded.append(_load(name, path))
        except RmkitError as error:
            problems.append(Problem(name, error.cause))
    loaded, conflicts = _comparable(loaded)
    problems += conflicts
    if not loaded:
        listed = "; ".join(f"{problem.run}: {problem.reason}" for problem in problems[:5])
        raise RmkitError(f"There is no run to report. {listed}".strip(), "Give directories of finished runs.")
    too_small = [
        Problem(run.name, f"has {len(scores.index)} pair, too few for a standard deviation", name)
        for run in loaded
        for name, scores in run.scores.items()
        if len(scores.index) < 2
    ]
    runs = _runs_frame(loaded)
    left_out = {(problem.run, problem.set) for problem in too_small}
    metrics = _metrics_frame(loaded, runs)
    keep = [key not in left_out for key in zip(metrics["run"], metrics["set"], strict=True)]
    return Runs(
        runs=runs,
        metrics=metrics[keep].reset_index(drop=True),
        scores={
            (run.name, name): each
            for run in loaded
            for name, each in run.scores.items()
            if (run.name, name) not in left_out
        },
        problems=problems + too_small,
        directories={run.name: run.directory for run in loaded},
        dynamics={run.name: run.record.theory["dynamics"] for run in loaded if "dynamics" in run.record.theory},
    )


def find(paths: Iterable[Path | str]) -> tuple[dict[str, Path], list[Problem]]:
    """Run directories at or below the paths, by a name that tells them apart, and what turned out not to be one."""
    directories: list[Path] = []
    problems: list[Problem] = []
    for given in dict.fromkeys(Path(path) for path in paths):
        if not given.is_dir():
            problems.append(Problem(str(given), "is not a directory"))
            continue
        before = len(directories) + len(problems)
        for folder, below, files in os.walk(given):
            below[:] = sorted(name for name in below if not name.startswith("."))  # hidden: something half-written
            if "run.json" in files:
                directories.append(Path(folder))
                below.clear()
            elif "recipe.yaml" in files:
                problems.append(Problem(folder, "holds no run.json: the run has not finished"))
                below.clear()
        if len(directories) + len(problems) == before:
            problems.append(Problem(str(given), "holds no run"))
    unique = {path.resolve(): path for path in directories}
    found = sorted(unique.values())
    common = os.path.commonpath([path.parent for path in found]) if found else ""
    return {os.path.relpath(path, common) if len(found) > 1 else path.name: path for path in found}, problems


# --- one run -------------------------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Metrics(_Part):
    accuracy: FiniteFloat
    normalized_margin: FiniteFloat
    tie_rate: FiniteFloat
    loss: FiniteFloat
    pairs: int


class _DataSet(_Part):
    fingerprint: str
    category: str | None = None
    training: bool
    longer_wins: FiniteFloat
    shorter_wins: FiniteFloat


class _State(_Part):
    state: str
    epoch: FiniteFloat
    sets: dict[str, _Metrics]


class _Set(_Part):
    name: str
    path: str | None = None
    source: dict[str, Any] | None = None

    @property
    def place(self) -> str:
        """Where its pairs are, or else what they are prepared by."""
        return self.path or str((self.source or {}).get("name", ""))

    @property
    def options(self) -> str:
        """What its source was told: "vertices 10, edge_probability 0.2"."""
        return ", ".join(f"{key} {value}" for key, value in (self.source or {}).items() if key != "name")


class _RecipeData(_Part):
    train: _Set
    evaluation: list[_Set]
    max_length: int | None = None


class _Recipe(_Part):
    base: dict[str, Any]
    data: _RecipeData
    training: dict[str, Any] = {}
    lora: dict[str, Any] | None = None


class _SavedRewardModel(_Part):
    reward_model: dict[str, Any]
    template_hash: str | None = None


class _Record(_Part):
    """The part of run.json that the report reads."""

    recipe: _Recipe
    reward_model: _SavedRewardModel
    data: dict[str, _DataSet]
    train_fit: _Metrics | None = None
    metrics: dict[str, _Metrics]
    history: list[_State]
    theory: dict[str, Any] = {}


@dataclass(frozen=True)
class _Loaded:
    name: str
    directory: RunDirectory
    record: _Record
    scores: dict[str, PairRewards]

    @property
    def settings(self) -> dict[str, Any]:
        return self.record.reward_model.reward_model

    @property
    def training_name(self) -> str:
        return self.record.recipe.data.train.name

    @property
    def learning_rate(self) -> float:
        return float(self.record.recipe.training.get("learning_rate", TRAINING_DEFAULTS["learning_rate"]))

    @property
    def seed(self) -> int:
        return int(self.record.recipe.training.get("seed", TRAINING_DEFAULTS["seed"]))

    @property
    def beta(self) -> float:
        """NaN for the types that have none."""
        return float(self.settings.get("beta", np.nan))

    @property
    def options(self) -> str:
        """What must be the same in runs that are compared: the training options but for seed, learning rate, ..."""
        training = TRAINING_DEFAULTS | {"batch_size": BATCH_SIZE} | self.record.recipe.training
        kept = {key: value for key, value in training.items() if key not in _FREE_OPTIONS}
        return json.dumps(kept | {"max_length": self.record.recipe.data.max_length}, sort_keys=True)

    @property
    def evaluation_sets(self) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, self.record.data[name].fingerprint) for name in self.record.metrics))

    @property
    def training_fingerprint(self) -> str:
        return self.record.data[self.training_name].fingerprint

    @property
    def training_pairs(self) -> str:
        fit = self.record.train_fit
        return f"{fit.pairs} pairs" if fit else self.training_fingerprint[:8]


def _load(name: str, path: Path) -> _Loaded:
    directory = RunDirectory(path)
    content = directory.read()
    try:
        record = _Record.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RmkitError(f"run.json: {key}: {first['msg']}.", "") from None
    if record.reward_model.reward_model.get("type") not in names.REWARD_MODELS:
        raise RmkitError("run.json: the reward model's type is not known.", "")
    missing = [each for each in (*record.metrics, record.recipe.data.train.name) if each not in record.data]
    if missing:
        raise RmkitError(f"run.json: data.{missing[0]} is missing.", "")
    scores = {each: _read_scores(directory, each) for each in record.metrics}
    for each, scored in scores.items():
        recorded = record.metrics[each].accuracy
        accuracy = float(np.mean(scored.correct))
        if abs(accuracy - recorded) > 1e-6:
            raise RmkitError(
                f"set {each}: run.json says accuracy {recorded:.4f}, rewards/{each}.parquet {accuracy:.4f}.", ""
            )
    return _Loaded(name, directory, record, scores)


def _read_scores(directory: RunDirectory, name: str) -> PairRewards:
    try:
        scores = PairRewards.read(directory.rewards(name))
    except RmkitError as error:
        raise RmkitError(error.cause.removeprefix(f"{directory.path}/"), "") from None
    broken = int((~np.isfinite(scores.rewards).all(axis=1)).sum())
    if broken:
        raise RmkitError(f"set {name}: {broken} of {len(scores)} pairs have a reward that is no finite number.", "")
    if len(scores) == 0:
        raise RmkitError(f"set {name} has no pairs.", "")
    return scores[np.argsort(scores.index)]


# --- many runs -----------------------------------------------------------------------------------------------------


def _comparable(loaded: list[_Loaded]) -> tuple[list[_Loaded], list[Problem]]:
    """Per training set, the runs with the usual evaluation sets and training options, each point of the grid once."""
    kept: list[_Loaded] = []
    problems: list[Problem] = []
    by_training: dict[str, list[_Loaded]] = {}
    for run in loaded:
        by_training.setdefault(run.training_fingerprint, []).append(run)
    for group in by_training.values():
        usual_sets = _usual(run.evaluation_sets for run in group)
        same_sets = [run for run in group if run.evaluation_sets == usual_sets]
        usual_options = _usual(run.options for run in same_sets)
        seen: dict[Hashable, str] = {}
        for run in group:
            settings = json.dumps([run.settings, run.record.recipe.lora], sort_keys=True)
            key = (names.model_key(run.record.recipe.base), settings, run.learning_rate, run.seed)
            if run.evaluation_sets != usual_sets:
                problems.append(Problem(run.name, _difference(dict(run.evaluation_sets), dict(usual_sets))))
            elif run.options != usual_options:
                problems.append(Problem(run.name, _option_difference(run.options, usual_options)))
            elif key in seen:
                problems.append(Problem(run.name, f"repeats {seen[key]}: the same recipe and seed"))
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
    return f"its evaluation set {name} holds other pairs than that of the other runs"


def _option_difference(options: str, usual: str) -> str:
    mine, others = json.loads(options), json.loads(usual)
    key = next(key for key in sorted({*mine, *others}) if mine.get(key) != others.get(key))
    return f"training option {key} is {mine.get(key)!r}, in the other runs of its training set {others.get(key)!r}"


def _runs_frame(loaded: list[_Loaded]) -> pd.DataFrame:
    models = names.model_names(run.record.recipe.base for run in loaded)
    settings = names.distinct_names({run.training_fingerprint: _setting_candidates(run) for run in loaded})
    frame = pd.DataFrame(
        {
            "run": run.name,
            "setting": settings[run.training_fingerprint],
            "training_path": run.record.recipe.data.train.place,
            "model": models[names.model_key(run.record.recipe.base)],
            "reward_model": names.REWARD_MODELS[run.settings["type"]],
            "variant": names.variant(run.settings, run.record.recipe.lora is not None),
            "seed": run.seed,
            "learning_rate": run.learning_rate,
            "beta": run.beta,
        }
        for run in loaded
    )
    frame["standard"] = frame["variant"] == frame["reward_model"]
    for _, group in frame.groupby(["setting", "reward_model"]):
        if not group["standard"].any():  # where all runs are of a variant, such as LoRA, it is the standard
            frame.loc[group.index, "standard"] = group["variant"] == _usual(group["variant"])
    frame["usual_learning_rate"] = frame["usual_beta"] = False
    for _, group in frame.groupby("setting"):
        standard = group[group["standard"]]
        rate = _usual_number(standard["learning_rate"], PAPER_LEARNING_RATE)
        at_rate = standard[standard["learning_rate"] == rate]
        beta = _usual_number(at_rate["beta"].dropna(), PAPER_BETA)
        frame.loc[group.index, "usual_learning_rate"] = group["learning_rate"] == rate
        frame.loc[group.index, "usual_beta"] = group["beta"].isna() | (group["beta"] == beta)
    frame["main"] = frame["standard"] & frame["usual_learning_rate"] & frame["usual_beta"]
    return frame


def _usual_number(values: pd.Series, papers: float) -> float:
    """The most frequent value; among equally frequent ones the paper's, else the smallest."""
    counts = values.value_counts()
    if counts.empty:
        return float("nan")
    most = counts[counts == counts.max()].index
    return papers if papers in most else float(min(most))


def _setting_candidates(run: _Loaded) -> list[str]:
    train = run.record.recipe.data.train
    label = names.training_set(train.name, train.place)
    prepared = [f"{label} ({train.options})"] if train.options else []
    return [label, *prepared, f"{label} ({run.training_pairs})", f"{label} [{run.training_fingerprint[:8]}]"]


def _metrics_frame(loaded: list[_Loaded], runs: pd.DataFrame) -> pd.DataFrame:
    rows = [row for run in loaded for row in _metric_rows(run)]
    return pd.DataFrame(rows).merge(runs, on="run", how="left", validate="many_to_one")


def _metric_rows(run: _Loaded) -> Iterable[dict[str, Any]]:
    record = run.record
    paths = {each.name: each.place for each in (record.recipe.data.train, *record.recipe.data.evaluation)}
    epochs = {state.epoch for state in record.history if state.state != FINAL}
    last = max((state.epoch for state in record.history), default=0.0)
    states = [(state.state, state.epoch, state.sets) for state in record.history if state.state != FINAL]
    final = dict(record.metrics) | ({run.training_name: record.train_fit} if record.train_fit else {})
    for state, epoch, sets in [*states, (FINAL, last, final)]:
        for name, metrics in sets.items():
            if name not in record.data:
                continue
            data = record.data[name]
            yield {
                "run": run.name,
                "set": name,
                "dataset": names.dataset(name, paths.get(name, "")) if not data.training else "training set",
                "category": "Training" if data.training else names.CATEGORIES.get(data.category, str(data.category)),
                "training": data.training,
                "state": state,
                "epoch": epoch,
                "repeats_epoch": state == FINAL and epoch in epochs,
                "longer_wins": data.longer_wins,
                "shorter_wins": data.shorter_wins,
                **metrics.model_dump(),
            }
