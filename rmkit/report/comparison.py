"""A reward model type against IM-RM: which runs are compared, how often each wins, and the paper's numbers.

A comparison is between runs with the same language model and seed, within one setting (training set). The paper
compares EX-RM and EX-GRM with IM-RM; any other type is compared the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pandas as pd

from rmkit.report import published
from rmkit.report.aggregate import sets_in_order
from rmkit.report.names import CATEGORIES, EX, IM, TRAINING_SETS, types_in_order
from rmkit.report.runs import Runs

TIE = 0.01  # a smaller or equal difference in accuracy is a tie (Figure 2)


@dataclass(frozen=True)
class Comparison:
    """The runs of one setting that compare a type with IM-RM (runs of either may be missing).

    Attributes:
        setting: the training set as the report calls it.
        first: the type compared with IM-RM, such as EX-RM.
        frame: rows of `Runs.final` of both types, with the same models for every seed.
        note: which runs were left out, and why.
    """

    setting: str
    first: str
    frame: pd.DataFrame
    note: str

    @property
    def reward_models(self) -> list[str]:
        found = set(self.frame["reward_model"])
        return [name for name in (self.first, IM) if name in found]

    @property
    def paired(self) -> bool:
        """Whether both types have a run of the same model and seed."""
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
    """`UltraFeedback (40 pairs)` -> `UltraFeedback`: the name without what distinguishes it from another setting."""
    return setting.partition(" (")[0].partition(" [")[0]


def is_paper_training(setting: str) -> bool:
    """Whether the paper trains on this set."""
    return papers_training(setting) in TRAINING_SETS.values()


def _cells(frame: pd.DataFrame) -> list[set[tuple[str, int]]]:
    """The (model, seed) of every run, for each type."""
    return [set(zip(rows["model"], rows["seed"], strict=True)) for _, rows in frame.groupby("reward_model")]


def compare(runs: Runs, setting: str, first: str) -> Comparison:
    """The main runs of a type and of IM-RM, for the models and seeds that both have."""
    final = runs.final
    frame = final[(final["setting"] == setting) & final["main"] & final["reward_model"].isin([first, IM])]
    cells = _cells(frame)
    every = set().union(*cells)
    common = set.intersection(*cells) if cells else set()
    if not common:
        note = "The types have no model and seed in common." if len(cells) > 1 else ""
        return Comparison(setting, first, frame, note)
    models = {model for model, _ in common}
    complete = {seed for _, seed in common if all((model, seed) in common for model in models)}
    kept = {(model, seed) for model, seed in common if seed in complete} or common
    notes = []
    if len(kept) < len(every):
        left_out = count(len(every - kept), "combination of model and seed", "combinations of model and seed")
        notes.append(f"Left out: {left_out} not available for all.")
    if not complete:
        notes.append("Models have different seeds, so standard deviations include differences between models.")
    chosen = [cell in kept for cell in zip(frame["model"], frame["seed"], strict=True)]
    return Comparison(setting, first, frame[chosen], " ".join(notes))


def comparisons(runs: Runs, setting: str) -> list[Comparison]:
    """Every type among the main runs against IM-RM; if IM-RM is the only one, EX-RM (without runs) against it."""
    main = runs.runs[(runs.runs["setting"] == setting) & runs.runs["main"]]
    others = [name for name in types_in_order(main["reward_model"]) if name != IM]
    return [compare(runs, setting, first) for first in others or [EX]]


def win_rates(comparison: Comparison, by: str) -> pd.DataFrame:
    """How often each type is more accurate, in percent, over models, seeds and sets (Figures 2, 5, 8).

    Args:
        comparison: with runs of both types.
        by: category or dataset.

    Returns:
        A frame of category, label, first, tie, second (IM-RM), comparisons (their number).
    """
    wide = comparison.frame.pivot_table(
        index=["category", "dataset", "model", "seed"], columns="reward_model", values="accuracy", observed=True
    ).reset_index()
    difference = wide[comparison.first] - wide[IM]
    wide["tie"] = difference.abs() <= TIE + 1e-9  # accuracies are multiples of 1/200: exactly 0.01 is a tie
    wide["first"] = (difference > 0) & ~wide["tie"]
    wide["second"] = (difference < 0) & ~wide["tie"]
    order = list(CATEGORIES.values()) if by == "category" else sets_in_order(comparison.frame)
    rows = []
    for label in order:
        chosen = wide[wide[by] == label]
        if len(chosen):
            rates = {name: 100.0 * float(chosen[name].mean()) for name in ("first", "tie", "second")}
            rows.append({"category": chosen["category"].iloc[0], "label": label, **rates, "comparisons": len(chosen)})
    return pd.DataFrame(rows)


# --- the paper's numbers -------------------------------------------------------------------------------------------


def papers_tables(comparison: Comparison, metric: str, by_set: bool) -> set[int]:
    """The paper's tables with numbers for this comparison; empty if the paper does not make it."""
    frame = published.published()
    chosen = (
        (frame["training"] == comparison.training)
        & (frame["metric"] == metric)
        & (frame["reward_model"] == comparison.first)
        & ((frame["dataset"] != "") == by_set)
    )
    return set(frame.loc[chosen, "table"])


def papers_value(
    training: str, evaluation: str, dataset: str, reward_model: str, metric: str, tables: set[int]
) -> tuple[float, float] | None:
    """The paper's value and standard deviation, of a category if `dataset` is empty; None if it has none."""
    found = (
        _papers_index().get((table, training, evaluation, dataset, reward_model, metric)) for table in sorted(tables)
    )
    return next((value for value in found if value is not None), None)


@cache
def _papers_index() -> dict[tuple[int, str, str, str, str, str], tuple[float, float]]:
    index = {}
    for row in published.published().itertuples(index=False):
        evaluation = "" if row.dataset else row.evaluation
        index[row.table, row.training, evaluation, row.dataset, row.reward_model, row.metric] = row.value, row.sd
    return index


@cache
def papers_datasets(training: str, evaluation: str) -> set[str]:
    """The data sets of a category in the paper, for a training set."""
    frame = published.published()
    chosen = (frame["training"] == training) & (frame["evaluation"] == evaluation) & (frame["dataset"] != "")
    return set(frame.loc[chosen, "dataset"])


# --- text ----------------------------------------------------------------------------------------------------------


def count(number: int, singular: str, plural: str | None = None) -> str:
    """1 seed, 3 seeds."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def slug(text: str) -> str:
    """`UF: French` -> uf_french, for file names."""
    return "_".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())
