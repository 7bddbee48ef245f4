"""What is measured: the setting shared by all measurements of a table, and the job of one worker. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveInt

from benchmarks.arithmetic import Counts, Work
from benchmarks.shapes import SHAPES, Shape
from rmkit.config.strict_yaml import StrictModel

Baseline = Literal["stock", "stock_best", "padded", "plain"]
Side = Literal["stock", "stock_best", "padded", "plain", "ours"]
SCORING_BATCH = 8
LEARNING_RATE = 1e-6
BETA = 0.01
SEED = 0


class Setting(StrictModel):
    """Everything that must be equal for measurements to be comparable.

    Attributes:
        source: the released sets, or synthetic pairs ("made").
        pairs: training pairs of an epoch.
        scoring_pairs: pairs per scored set.
        batch_size: pairs per optimizer step.
        warm_up: run every workload once before the measured run (compilation on a GPU).
    """

    size: Literal["tiny", "19m", "1b", "3b"]
    source: Literal["released", "made"]
    pairs: PositiveInt
    scoring_pairs: PositiveInt
    batch_size: PositiveInt
    warm_up: bool = False

    @property
    def shape(self) -> Shape:
        return SHAPES[self.size]


class Job(StrictModel):
    """One measurement of one side."""

    setting: Setting
    workspace: str
    work: Work
    micro_batch: PositiveInt
    side: Side


class Measurement(StrictModel):
    """What a worker measured: seconds of one epoch (or of scoring) and of the reference pass; peak memory in MiB.

    `losses` per optimizer step and `rewards` [pairs, 2] of scoring show that both sides agree. `matmul_rate` (FLOP/s)
    is measured right afterwards, see `benchmarks.machine`.
    """

    seconds: NonNegativeFloat
    reference_seconds: NonNegativeFloat = 0.0
    peak_mib: NonNegativeFloat
    losses: list[float] = []
    rewards: list[tuple[float, float]] = []
    matmul_rate: NonNegativeFloat = 0.0
    machine: dict[str, Any] = {}


class Workspace:
    """The folder that all workers share, written once by `benchmarks.prepare`."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @property
    def base(self) -> Path:
        """The language model that training starts from."""
        return self.path / "base"

    @property
    def classifier(self) -> Path:
        """The base with a reward head, which is scored."""
        return self.path / "classifier"

    @property
    def train(self) -> Path:
        return self.path / "train.jsonl"

    @property
    def scored(self) -> list[Path]:
        return sorted((self.path / "scored").glob("*.jsonl"))

    @property
    def counts(self) -> Path:
        return self.path / "counts.json"

    def read_counts(self) -> dict[Work, Counts]:
        """Token counts by workload."""
        return {work: Counts(**entry) for work, entry in json.loads(self.counts.read_text(encoding="utf-8")).items()}
