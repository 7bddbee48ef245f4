"""What a table measures: the setting that all measurements share, and the job of one worker. No torch."""

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
    """All that must be the same for two measurements to be of one table.

    Attributes:
        source: whether the pairs are those of the released sets or made ones.
        pairs: training pairs; an epoch goes once over them.
        scoring_pairs: pairs of each set that is scored.
        batch_size: pairs of an optimizer step.
        warm_up: whether each worker does its work once before the work that is measured (compilation on a GPU).
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

    `losses` are those of the optimizer steps and `rewards` [pairs, 2] those of scoring, to see that sides agree.
    `matmul_rate` is what the machine could do right afterwards, see `benchmarks.machine`.
    """

    seconds: NonNegativeFloat
    reference_seconds: NonNegativeFloat = 0.0
    peak_mib: NonNegativeFloat
    losses: list[float] = []
    rewards: list[tuple[float, float]] = []
    matmul_rate: NonNegativeFloat = 0.0
    machine: dict[str, Any] = {}


class Workspace:
    """The folder with what all workers share, made once by `benchmarks.prepare`."""

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
        """Of each work's pairs."""
        return {work: Counts(**each) for work, each in json.loads(self.counts.read_text(encoding="utf-8")).items()}
