"""The numbers of a table, its results file (a JSON list, one object per line) and its printout. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.arithmetic import Counts, Work, flops, spread
from benchmarks.setting import Baseline, Measurement, Setting
from rmkit.config.strict_yaml import StrictModel
from rmkit.files import write_text

PAPER_EPOCHS = 5
BASELINES = {
    "stock": "TRL",
    "stock_best": "TRL at its best",
    "padded": "rmkit, padded",
    "plain": "transformers loop",
}


@dataclass(frozen=True)
class Line:
    """One comparison of the table."""

    work: Work
    micro_batch: int
    baseline: Baseline

    def __str__(self) -> str:
        return f"{self.work} at {self.micro_batch} against {BASELINES[self.baseline]}"

    @property
    def epochs(self) -> int:
        """Epochs that `seconds` cover: the paper's for implicit models, whose reference pass is computed once."""
        return PAPER_EPOCHS if self.work == "implicit" else 1

    @property
    def reference_passes(self) -> int:
        return 1 if self.work == "implicit" else 0


class Couple(StrictModel):
    """A measurement of the baseline and one of rmkit right after it.

    Seconds are for one epoch (or scoring) and for the reference pass. `matmul_rate` is the better of the two
    measurements; versions and machine are in `machine`.
    """

    baseline_seconds: float
    baseline_reference_seconds: float
    baseline_peak_mib: float
    seconds: float
    reference_seconds: float
    peak_mib: float
    difference: float | None
    matmul_rate: float
    machine: dict[str, Any]

    @classmethod
    def of(cls, baseline: Measurement, ours: Measurement, difference: float | None) -> Couple:
        """Combine two measurements."""
        return cls(
            baseline_seconds=baseline.seconds,
            baseline_reference_seconds=baseline.reference_seconds,
            baseline_peak_mib=baseline.peak_mib,
            seconds=ours.seconds,
            reference_seconds=ours.reference_seconds,
            peak_mib=ours.peak_mib,
            difference=difference,
            matmul_rate=max(baseline.matmul_rate, ours.matmul_rate),
            machine=ours.machine,
        )

    def totals(self, epochs: int) -> tuple[float, float]:
        """Seconds of the baseline and of rmkit for the reference pass and `epochs` epochs."""
        return (
            self.baseline_reference_seconds + epochs * self.baseline_seconds,
            self.reference_seconds + epochs * self.seconds,
        )


class Entry(BaseModel):
    """A line of the results file.

    Ratios are seconds of the baseline over seconds of rmkit, per couple. `seconds` and `baseline_seconds` are medians,
    for `epochs` epochs with their reference pass; memory and `matmul_rate` (FLOP/s) are maxima over all couples;
    `differ_by` is the largest difference of losses or rewards between the two sides (null if they see the pairs in
    different orders).
    """

    work: Work
    micro_batch: int
    baseline: Baseline
    ratio_min: float
    ratio_median: float
    ratio_max: float
    seconds: float
    baseline_seconds: float
    matmul_share: float
    peak_mib: float
    baseline_matmul_share: float
    baseline_peak_mib: float
    tokens_per_second: float
    baseline_tokens_per_second: float
    differ_by: float | None
    epochs: int
    repeats: int
    size: str
    parameters: int
    counts: dict[str, int]
    setting: Setting
    matmul_rate: float
    couples: list[Couple]

    @property
    def line(self) -> Line:
        return Line(self.work, self.micro_batch, self.baseline)

    @classmethod
    def of(cls, line: Line, couples: Sequence[Couple], setting: Setting, counted: Counts) -> Entry:
        """Summarize the couples of a line."""
        totals = [couple.totals(line.epochs) for couple in couples]
        baseline_seconds, seconds = (spread([total[side] for total in totals])[1] for side in (0, 1))
        least, median, most = spread([theirs / mine for theirs, mine in totals])
        arithmetic = flops(line.work, setting.shape, counted, line.epochs, line.reference_passes)
        possible = max(couple.matmul_rate for couple in couples)
        tokens = line.epochs * counted.unique_tokens
        differences = [couple.difference for couple in couples if couple.difference is not None]
        return cls(
            work=line.work,
            micro_batch=line.micro_batch,
            baseline=line.baseline,
            ratio_min=least,
            ratio_median=median,
            ratio_max=most,
            seconds=seconds,
            baseline_seconds=baseline_seconds,
            matmul_share=arithmetic / seconds / possible,
            peak_mib=max(couple.peak_mib for couple in couples),
            baseline_matmul_share=arithmetic / baseline_seconds / possible,
            baseline_peak_mib=max(couple.baseline_peak_mib for couple in couples),
            tokens_per_second=tokens / seconds,
            baseline_tokens_per_second=tokens / baseline_seconds,
            differ_by=max(differences, default=None),
            epochs=line.epochs,
            repeats=len(couples),
            size=setting.size,
            parameters=setting.shape.parameters,
            counts=counted.as_dict(),
            setting=setting,
            matmul_rate=possible,
            couples=list(couples),
        )


def read(path: Path) -> list[Entry]:
    """The entries of a results file; empty if the file is missing or has another format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Entry.model_validate_json(json.dumps(entry)) for entry in content]
    except (OSError, ValueError, ValidationError):
        return []


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Write the results file atomically."""
    write_text(path, json.dumps([entry.model_dump(mode="json") for entry in entries], indent=1) + "\n")


def print_table(entries: Sequence[Entry], console: Console) -> None:
    """Print one row per line, and a caption that explains the columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("workload", "mb", "baseline"):
        table.add_column(name, justify="right" if name == "mb" else "left", no_wrap=True)
    for name in ("ratio", "seconds", "theirs", "tokens/s", "share", "MiB", "theirs"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        table.add_row(
            entry.work,
            str(entry.micro_batch),
            BASELINES[entry.baseline],
            f"{entry.ratio_median:.2f}x ({entry.ratio_min:.2f}-{entry.ratio_max:.2f})",
            f"{entry.seconds:.1f}",
            f"{entry.baseline_seconds:.1f}",
            f"{entry.tokens_per_second:.0f}",
            f"{entry.matmul_share:.0%}",
            f"{entry.peak_mib:.0f}",
            f"{entry.baseline_peak_mib:.0f}",
        )
    console.print(table)
    console.print(CAPTION, highlight=False, soft_wrap=True)


CAPTION = f"""\
mb: pairs (scoring: responses) per micro-batch. ratio: seconds of the baseline over seconds of rmkit, per couple.
seconds: medians, of an epoch or of scoring; implicit: of {PAPER_EPOCHS} epochs and the pass of a precomputed reference.
tokens/s: the unique tokens of pairs. share: FLOP/s of the linear layers on these tokens, as a fraction of the measured
rate of matrix products. MiB: peak memory of the process, or of its GPU."""
