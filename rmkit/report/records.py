"""One run directory: the part of run.json that the report reads, checked, and the rewards of its evaluation sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from rmkit.config.training_arguments import BATCH_SIZE, TRAINING_DEFAULTS
from rmkit.errors import RmkitError, first_line
from rmkit.report import names
from rmkit.runs.directory import RunDirectory
from rmkit.runs.rewards import PairRewards

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


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class SetMetrics(_Part):
    """Metrics of one set in one state."""

    accuracy: FiniteFloat
    normalized_margin: FiniteFloat
    tie_rate: FiniteFloat
    loss: FiniteFloat
    pairs: int


class SetFacts(_Part):
    """What run.json records of a set of pairs besides its metrics."""

    fingerprint: str
    category: str | None = None
    training: bool
    longer_wins: FiniteFloat
    shorter_wins: FiniteFloat


class State(_Part):
    """Metrics at one point of training: `initial`, `step_<n>`, `epoch_<n>` or `final`."""

    state: str
    epoch: FiniteFloat
    sets: dict[str, SetMetrics]


class SetLocation(_Part):
    """Where a recipe finds a set of pairs."""

    name: str
    path: str | None = None
    source: dict[str, Any] | None = None
    weight: float = 1.0

    @property
    def place(self) -> str:
        """The path of the pairs, or the name of the source that prepares them."""
        return self.path or str((self.source or {}).get("name", ""))

    @property
    def options(self) -> str:
        """The options of the source: "vertices 10, edge_probability 0.2"."""
        return ", ".join(f"{key} {value}" for key, value in (self.source or {}).items() if key != "name")


class _RecipeData(_Part):
    train: SetLocation | list[SetLocation]
    seed: int = 0
    evaluation: list[SetLocation]
    max_length: int | None = None

    @property
    def training_sets(self) -> list[SetLocation]:
        return self.train if isinstance(self.train, list) else [self.train]


class _Recipe(_Part):
    base: dict[str, Any]
    data: _RecipeData
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    lora: dict[str, Any] | None = None


class _TypeSettings(_Part):
    """The settings of any reward model type, also of types that this rmkit does not have."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(min_length=1)


class _SavedRewardModel(_Part):
    reward_model: _TypeSettings


class RunRecord(_Part):
    """The part of run.json that the report reads; keys that other versions of rmkit write are ignored."""

    recipe: _Recipe
    reward_model: _SavedRewardModel
    data: dict[str, SetFacts]
    train_fit: SetMetrics | None = None
    metrics: dict[str, SetMetrics]
    history: list[State]
    theory: dict[str, Any] = {}


def mixture(labels: Iterable[str]) -> str:
    """The name of several training sets that are one in training: chat + code."""
    return " + ".join(labels)


@dataclass(frozen=True)
class LoadedRun:
    """A run that can be reported: its name in the report, its record, and set -> the rewards after training."""

    name: str
    directory: RunDirectory
    record: RunRecord
    scores: dict[str, PairRewards]

    @property
    def settings(self) -> dict[str, Any]:
        """The reward_model section."""
        return self.record.reward_model.reward_model.model_dump()

    @property
    def training_sets(self) -> list[SetLocation]:
        return self.record.recipe.data.training_sets

    @property
    def train_fit(self) -> dict[str, tuple[SetMetrics, SetFacts]]:
        """The training set after training; of a mixture first the whole of it, then every set. Nothing if unscored."""
        fit, final = self.record.train_fit, self.record.history[-1].sets if self.record.history else {}
        names = [each.name for each in self.training_sets]
        if fit is None:
            return {}
        if len(names) == 1:
            return {names[0]: (fit, self.record.data[names[0]])}
        parts = {name: (final[name], self.record.data[name]) for name in names if name in final}
        pairs = [final[each.name].pairs * max(each.weight, 1.0) for each in self.training_sets if each.name in parts]
        longer = float(np.average([facts.longer_wins for _, facts in parts.values()], weights=pairs))
        shorter = float(np.average([facts.shorter_wins for _, facts in parts.values()], weights=pairs))
        whole = SetFacts(fingerprint=self.training_fingerprint, training=True, longer_wins=longer, shorter_wins=shorter)
        return {mixture(names): (fit, whole), **parts}

    @property
    def model_key(self) -> str:
        """Identifies the language model, see `rmkit.report.names`."""
        return names.model_key(self.record.recipe.base)

    @property
    def template(self) -> str | None:
        """The chat template that the recipe gives the language model."""
        return self.record.recipe.base.get("chat_template")

    @property
    def learning_rate(self) -> float:
        return float(self.record.recipe.training.get("learning_rate", TRAINING_DEFAULTS["learning_rate"]))

    @property
    def seed(self) -> int:
        return int(self.record.recipe.training.get("seed", TRAINING_DEFAULTS["seed"]))

    @property
    def beta(self) -> float:
        """NaN for types without beta."""
        return float(self.settings.get("beta", np.nan))

    @property
    def options(self) -> str:
        """The training options that runs must share to be compared, as JSON: all but seed, learning rate, ..."""
        training = TRAINING_DEFAULTS | {"batch_size": BATCH_SIZE} | self.record.recipe.training
        kept = {key: value for key, value in training.items() if key not in _FREE_OPTIONS}
        return json.dumps(kept | self._selection | {"max_length": self.record.recipe.data.max_length}, sort_keys=True)

    @property
    def _selection(self) -> dict[str, Any]:
        """How the final model was selected: by which metric, and among which evaluations. Nothing if it is the last."""
        evaluation = self.record.recipe.evaluation
        if evaluation.get("save_best") is None:
            return {}
        every_epochs = evaluation.get("every_epochs") or (1 if evaluation.get("every_epoch") else None)
        named = {key: evaluation.get(key) for key in ("save_best", "early_stopping", "every_steps")}
        return {key: value for key, value in (named | {"every_epochs": every_epochs}).items() if value is not None}

    @property
    def evaluation_sets(self) -> tuple[tuple[str, str], ...]:
        """Name and fingerprint of every evaluation set."""
        return tuple(sorted((name, self.record.data[name].fingerprint) for name in self.record.metrics))

    @property
    def training_fingerprint(self) -> str:
        """The fingerprint of the only training set; of several sets or a weight above 1, of all that trains."""
        parts = [(self.record.data[each.name].fingerprint, max(each.weight, 1.0)) for each in self.training_sets]
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0]
        return hashlib.sha256(json.dumps([parts, self.record.recipe.data.seed]).encode()).hexdigest()

    @property
    def training_pairs(self) -> str:
        fit = self.record.train_fit
        return f"{fit.pairs} pairs" if fit else self.training_fingerprint[:8]


def load_run(name: str, path: Path) -> LoadedRun:
    """Read a run directory.

    Raises:
        RmkitError: if run.json or a rewards file is missing, broken or inconsistent; only its cause is shown.
    """
    directory = RunDirectory(path)
    try:
        record = RunRecord.model_validate(directory.read())
    except ValidationError as error:
        raise RmkitError(f"run.json: {describe_error(error)}.", "") from None
    needed = [*record.metrics, *(each.name for each in record.recipe.data.training_sets)]
    missing = [set_name for set_name in needed if set_name not in record.data]
    if missing:
        raise RmkitError(f"run.json: data.{missing[0]} is missing.", "")
    scores = {set_name: _read_scores(directory, set_name) for set_name in record.metrics}
    for set_name, scored in scores.items():
        recorded, accuracy = record.metrics[set_name].accuracy, float(np.mean(scored.correct))
        if abs(accuracy - recorded) > 1e-6:
            raise RmkitError(
                f"Accuracy on {set_name} is {recorded:.4f} in run.json, but {accuracy:.4f} in "
                f"rewards/{set_name}.parquet.",
                "",
            )
    return LoadedRun(name, directory, record, scores)


def describe_error(error: Exception) -> str:
    """An error in one line; for a schema error the key and what is wrong with it."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".lstrip(": ")
    return first_line(error)


def _read_scores(directory: RunDirectory, name: str) -> PairRewards:
    try:
        scores = PairRewards.read(directory.rewards(name))
    except RmkitError as error:
        raise RmkitError(error.cause.removeprefix(f"{directory.path}/"), "") from None
    broken = int((~np.isfinite(scores.rewards).all(axis=1)).sum())
    if broken:
        raise RmkitError(f"{broken} of {len(scores)} pairs of {name} have a reward that is not finite.", "")
    if len(scores) == 0:
        raise RmkitError(f"rewards/{name}.parquet contains no pairs.", "")
    return scores[np.argsort(scores.index)]
