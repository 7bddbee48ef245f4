"""EX-RM, or EX-GRM, against IM-RM: which runs are compared, who wins how often, and what the paper says.

A comparison is of runs from the same language models and seeds, within one setting (training set).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pandas as pd

from rmkit.report import published
from rmkit.report.figures import sets_in_order
from rmkit.report.names import CATEGORIES, IM
from rmkit.report.runs import Runs

TIE = 0.01  # accuracies at most so far apart are a tie (Figure 2)


@dataclass(frozen=True)
class Comparison:
    """The runs of one setting that compare an explicit type with IM-RM (either may be absent).

    Attributes:
        setting: the training set as the report calls it.
        explicit: EX-RM or EX-GRM.
        frame: their rows of `Runs.final`, the same models for every seed.
        note: what was left out to make it so.
    """

    setting: str
    explicit: str
    frame: pd.DataFrame
    note: str

    @property
    def reward_models(self) -> list[str]:
        found = set(self.frame["reward_model"])
        return [name for name in (self.explicit, IM) if name in found]

    @property
    def paired(self) -> bool:
        """Whether both types are there for some model and seed."""
        return len(self.reward_models) == 2 and bool(set.intersection(*_cells(self.frame)))

    @property
    def training(self) -> str:
        """The paper's name of the training set, if it is one of the paper's."""
        return papers_training(self.setting)

    @property
    def described(self) -> str:
        models, seeds = self.frame["model"].nunique(), self.frame["seed"].nunique()
        return f"{count(models, 'model')}, {count(seeds, 'seed')}. {self.note}".strip()


def papers_training(setting: str) -> str:
    """`UltraFeedback (40 pairs)` -> `UltraFeedback`: the name without what tells it from another setting."""
    return setting.partition(" (")[0].partition(" [")[0]


def _cells(frame: pd.DataFrame) -> list[set[tuple[str, int]]]:
    """The models and seeds of each type."""
    return [set(zip(each["model"], each["seed"], strict=True)) for _, each in frame.groupby("reward_model")]


def compared(runs: Runs, setting: str, explicit: str) -> Comparison:
    """The main runs of both types; models and seeds that only one has, or seeds that not all models have, left out."""
    final = runs.final
    frame = final[(final["setting"] == setting) & final["main"] & final["reward_model"].isin([explicit, IM])]
    cells = _cells(frame)
    every = set().union(*cells)
    common = set.intersection(*cells) if cells else set()
    if not common:
        return Comparison(setting, explicit, frame, "The types share no model and seed." if len(cells) > 1 else "")
    models = {model for model, _ in common}
    complete = {seed for _, seed in common if all((model, seed) in common for model in models)}
    kept = {(model, seed) for model, seed in common if seed in complete} or common
    note = ""
    if len(kept) < len(every):
        note = f"Left out: {count(len(every - kept), 'model and seed', 'models and seeds')} that are not there for all."
    if not complete:
        note = (
            note + " The models have different seeds, so that standard deviations also hold differences of models."
        ).strip()
    chosen = [cell in kept for cell in zip(frame["model"], frame["seed"], strict=True)]
    return Comparison(setting, explicit, frame[chosen], note)


def win_rates(comparison: Comparison, by: str) -> pd.DataFrame:
    """Who is more accurate how often, in percent, over models, seeds and sets (Figures 2, 5, 8).

    Args:
        comparison: of both types.
        by: category or dataset.

    Returns:
        A frame of category, label, first (explicit), tie, second (IM-RM), comparisons.
    """
    wide = comparison.frame.pivot_table(
        index=["category", "dataset", "model", "seed"], columns="reward_model", values="accuracy", observed=True
    ).reset_index()
    difference = wide[comparison.explicit] - wide[IM]
    wide["tie"] = difference.abs() <= TIE + 1e-9  # accuracies are multiples of 1/200: 0.01 itself is within
    wide["first"] = (difference > 0) & ~wide["tie"]
    wide["second"] = (difference < 0) & ~wide["tie"]
    order = list(CATEGORIES.values()) if by == "category" else sets_in_order(comparison.frame)
    rows = []
    for label in order:
        each = wide[wide[by] == label]
        if len(each):
            rates = {name: 100.0 * float(each[name].mean()) for name in ("first", "tie", "second")}
            rows.append({"category": each["category"].iloc[0], "label": label, **rates, "comparisons": len(each)})
    return pd.DataFrame(rows)


# --- the paper's numbers -------------------------------------------------------------------------------------------


def papers_tables(comparison: Comparison, metric: str, by_set: bool) -> set[int]:
    """The tables that hold the paper's numbers for this comparison: empty if it is not one of the paper's."""
    frame = published.published()
    chosen = (
        (frame["training"] == comparison.training)
        & (frame["metric"] == metric)
        & (frame["reward_model"] == comparison.explicit)
        & ((frame["dataset"] != "") == by_set)
    )
    return set(frame.loc[chosen, "table"])


def papers_value(
    training: str, evaluation: str, dataset: str, reward_model: str, metric: str, tables: set[int]
) -> tuple[float, float] | None:
    """The paper's value and standard deviation; for a data set whatever the category, otherwise the category's."""
    found = (
        _papers_index().get((table, training, evaluation, dataset, reward_model, metric)) for table in sorted(tables)
    )
    return next((each for each in found if each is not None), None)


@cache
def _papers_index() -> dict[tuple[int, str, str, str, str, str], tuple[float, float]]:
    index = {}
    for row in published.published().itertuples(index=False):
        evaluation = "" if row.dataset else row.evaluation
        index[row.table, row.training, evaluation, row.dataset, row.reward_model, row.metric] = row.value, row.sd
    return index


@cache
def papers_datasets(training: str, evaluation: str) -> set[str]:
    """The data sets that the paper puts in a category of a setting."""
    frame = published.published()
    chosen = (frame["training"] == training) & (frame["evaluation"] == evaluation) & (frame["dataset"] != "")
    return set(frame.loc[chosen, "dataset"])


# --- words ----------------------------------------------------------------------------------------------------


def count(number: int, one: str, many: str | None = None) -> str:
    """1 seed, 3 seeds."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def slug(text: str) -> str:
    """A name for files."""
    return "_".join("".join(each if each.isalnum() else " " for each in text.lower()).split())
