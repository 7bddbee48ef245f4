"""The paper's tables from runs, with the paper's own number below ours where it has one.

Tables 1 and 6 (by category), 3, 5, 8 and 10 (by data set), 2, 4, 7 and 9 (win-rates), and those of Figures 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from rmkit.report import published, statistics
from rmkit.report.aggregate import over_seeds, sets_in_order
from rmkit.report.comparison import (
    Comparison,
    count,
    papers_datasets,
    papers_tables,
    papers_value,
    slug,
    win_rates,
)
from rmkit.report.names import CATEGORIES, IM
from rmkit.report.runs import TRAINING, Runs
from rmkit.report.style import in_order
from rmkit.report.tables import Cell, Table, number, signed, spread

METRICS = {"accuracy": "accuracy", "margin": "normalized_margin"}
"""The paper's metric -> the column of `Runs.metrics`."""
PaperValue = Callable[[str, str, str, str], tuple[float, float] | None]
"""(category, dataset, reward model, metric) -> the paper's value and standard deviation."""


def show_paper_numbers(items: Iterable[object]) -> bool:
    """Whether any of the tables has a number of the paper."""
    tables = (item for item in items if isinstance(item, Table))
    return any("published" in table.data and table.data["published"].notna().any() for table in tables)


# --- means and standard deviations ---------------------------------------------------------------------------------


def by_category(comparison: Comparison) -> Table:
    """Tables 1 and 6: accuracy and margin by category."""
    categories = [name for name in CATEGORIES.values() if name in set(comparison.frame["category"])]
    numbers = papers_tables(comparison, "accuracy", False)

    def find(category: str, dataset: str, reward_model: str, metric: str) -> tuple[float, float] | None:
        datasets = set(comparison.frame.loc[comparison.frame["category"] == category, "dataset"])
        if datasets != papers_datasets(comparison.training, category):
            return None  # the paper's mean is over other sets
        return papers_value(comparison.training, category, "", reward_model, metric, numbers)

    return _means_table(comparison, "by_category", [(name, "") for name in categories], find, numbers)


def by_set(comparison: Comparison) -> Table:
    """Tables 3, 5, 8 and 10: accuracy and margin by data set."""
    category = comparison.frame.drop_duplicates("dataset").set_index("dataset")["category"]
    numbers = papers_tables(comparison, "accuracy", True)

    def find(category: str, dataset: str, reward_model: str, metric: str) -> tuple[float, float] | None:
        return papers_value(comparison.training, "", dataset, reward_model, metric, numbers)

    places = [(str(category[name]), name) for name in sets_in_order(comparison.frame)]
    return _means_table(comparison, "by_set", places, find, numbers)


def _means_table(
    comparison: Comparison,
    name: str,
    places: Sequence[tuple[str, str]],
    find: PaperValue,
    numbers: set[int],
) -> Table:
    """One row per (category, dataset), the dataset being "" in a table by category.

    Args:
        comparison: the runs.
        name: by_category or by_set.
        places: the rows, in order.
        find: looks up the paper's value.
        numbers: the paper's tables with these values.
    """
    by = ["category", "dataset"] if name == "by_set" else ["category"]
    reward_models = comparison.reward_models
    found = _mean_rows(comparison, by, places, find)
    rows, previous = [], ""
    for (category, dataset), cells in found.items():
        leading = {metric: _highest({name: cells[metric, name] for name in reward_models}) for metric in METRICS}
        heads = [category if category != previous else "", dataset][: len(by)]  # as in the paper, named once
        previous = category
        rows.append(
            [Cell(text, number=False) for text in heads]
            + [_mean_cell(row, bold=leading[metric] == name) for (metric, name), row in cells.items()]
        )
    header = [{"category": "Evaluation", "dataset": "Dataset"}[column] for column in by]
    header += [f"{name} {metric}" for metric in METRICS for name in reward_models]
    data = pd.DataFrame([row for cells in found.values() for row in cells.values()])
    words = {"by_category": "category", "by_set": "data set"}[name]
    title = f"Accuracy and reward margin by {words}, {' and '.join(reward_models)} trained on {comparison.setting}."
    note = " ".join(
        [
            comparison.described,
            f"Means over models{' and data sets' if len(by) == 1 else ''}, ± standard deviation over seeds.",
            "Margin: |r+ − r−| in standard deviations of the rewards.",
            "Bold: ahead by more than 0.01 after subtracting both standard deviations.",
            *_paper_note(data, numbers, "in standard errors"),
        ]
    )
    return Table(_file(comparison, name), title, header, rows, data, note)


def _mean_rows(
    comparison: Comparison, by: list[str], places: Sequence[tuple[str, str]], find: PaperValue
) -> dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]]:
    """(category, dataset) -> (metric, reward model) -> our mean and the paper's."""
    means = {
        metric: over_seeds(comparison.frame, [*by, "reward_model"], column).set_index([*by, "reward_model"])
        for metric, column in METRICS.items()
    }
    found: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for category, dataset in places:
        found[category, dataset] = {}
        for metric, reward_model in product(METRICS, comparison.reward_models):
            ours = means[metric].loc[(*(category, dataset)[: len(by)], reward_model)]
            row = _mean_row(comparison, category, dataset, reward_model, metric, ours)
            papers = find(category, dataset, reward_model, metric)
            found[category, dataset][metric, reward_model] = row | _paper_columns(row, papers)
    return found


def _paper_note(data: pd.DataFrame, numbers: set[int], unit: str) -> list[str]:
    """What the small print of a table is; nothing if none of its cells has a number of the paper."""
    if not data["published"].notna().any():
        return []
    tables = " and ".join(str(number) for number in sorted(numbers))
    difference = f", and our difference from it {unit}" if data["standard_errors"].notna().any() else ""
    return [f"Small print: the number in Table {tables} of the paper{difference}."]


def _mean_row(
    comparison: Comparison, category: str, dataset: str, reward_model: str, metric: str, ours: pd.Series
) -> dict[str, Any]:
    return {
        "training": comparison.setting,
        "evaluation": category,
        "dataset": dataset,
        "reward_model": reward_model,
        "metric": metric,
        "value": float(ours["mean"]),
        "sd": float(ours["sd"]),
        "seeds": int(ours["seeds"]),
        "models": comparison.frame["model"].nunique(),
    }


def _paper_columns(row: Mapping[str, Any], papers: tuple[float, float] | None) -> dict[str, float]:
    value, sd = papers or (math.nan, math.nan)
    errors = statistics.standard_errors(row["value"], row["sd"], row["seeds"], value, sd, published.SEEDS)
    return {"published": value, "published_sd": sd, "standard_errors": errors}


def _mean_cell(row: Mapping[str, Any], bold: bool) -> Cell:
    papers = row["published"]
    below = _below(f"paper {spread(papers, row['published_sd'])}", row["standard_errors"]) if papers == papers else ""
    return Cell(spread(row["value"], row["sd"]), below, bold)


def _below(papers: str, errors: float) -> str:
    return f"{papers}\n{signed(errors)} SE" if math.isfinite(errors) else papers


def _highest(rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The type in bold: the one ahead by more than 0.01 after subtracting both standard deviations (Table 1)."""
    if len(rows) < 2:
        return None
    low, high = sorted(rows, key=lambda name: rows[name]["value"])
    spreads = sum(0.0 if math.isnan(rows[name]["sd"]) else rows[name]["sd"] for name in rows)
    return high if rows[high]["value"] - rows[low]["value"] - spreads > 0.01 else None


# --- win-rates -----------------------------------------------------------------------------------------------------


def win_rate_table(comparison: Comparison) -> Table:
    """Tables 2, 4, 7 and 9: win-rates by data set."""
    numbers = papers_tables(comparison, "win_rate", True)
    data: list[dict[str, Any]] = []
    rows, previous = [], ""
    for rates in win_rates(comparison, "dataset").to_dict("records"):
        found = _win_rate_rows(comparison, rates, numbers)
        data += found
        category = "" if rates["category"] == previous else rates["category"]
        previous = rates["category"]
        rows.append([Cell(category, number=False), Cell(rates["label"], number=False), *map(_rate_cell, found)])
    frame = pd.DataFrame(data)
    note = " ".join(
        [
            comparison.described,
            "Percentage of pairs of runs (same model and seed) in which a type is more accurate; differences within 1% "
            "are ties.",
            *_paper_note(frame, numbers, "in standard errors of two proportions"),
        ]
    )
    header = ["Evaluation", "Dataset", f"{comparison.first} %", "Tie %", f"{IM} %"]
    title = f"Win-rates by data set, {comparison.first} against IM-RM trained on {comparison.setting}."
    return Table(_file(comparison, "win_rates"), title, header, rows, frame, note)


def _win_rate_rows(comparison: Comparison, rates: Mapping[str, Any], numbers: set[int]) -> list[dict[str, Any]]:
    """The wins of the first type, the ties and the wins of IM-RM on a data set, with the paper's numbers."""
    rows = []
    heads = {"first": (comparison.first, "win_rate"), "tie": ("", "tie_rate"), "second": (IM, "win_rate")}
    for column, (reward_model, metric) in heads.items():
        papers = papers_value(comparison.training, "", rates["label"], reward_model, metric, numbers)
        value = papers[0] if papers else math.nan
        errors = math.nan
        if papers:
            errors = statistics.standard_errors_of_rates(
                rates[column] / 100, rates["comparisons"], value / 100, published.COMPARISONS_PER_SET
            )
        rows.append(
            {
                "training": comparison.setting,
                "evaluation": rates["category"],
                "dataset": rates["label"],
                "reward_model": reward_model,
                "metric": metric,
                "value": rates[column],
                "comparisons": rates["comparisons"],
                "published": value,
                "standard_errors": errors,
            }
        )
    return rows


def _rate_cell(row: Mapping[str, Any]) -> Cell:
    papers = row["published"]
    below = _below(f"paper {papers:g}", row["standard_errors"]) if papers == papers else ""
    return Cell(number(row["value"], 1), below)


# --- Figures 3 and 4, and any other setting ------------------------------------------------------------------------


def accuracy_table(runs: Runs, setting: str, note: str = "") -> Table:
    """Accuracy of the main runs by set, the training set first: the tables in Figures 3 (Hamiltonian) and 4 (Persona).

    Args:
        runs: all runs.
        setting: the training set.
        note: added to the table's note.
    """
    frame = _all_sets(runs, setting)
    frame = frame[frame["main"]]
    means = over_seeds(frame, ["dataset", "reward_model"])
    columns = in_order(frame["reward_model"])
    rows = [
        [Cell(_set_words(name), number=False)]
        + [_plain_mean(means[means["dataset"] == name], "reward_model", column) for column in columns]
        for name in _sets_after_training_set(frame)
    ]
    title = f"Accuracy of reward models trained on {setting}."
    note = f"{_seeds_note(frame)} {note}".strip()
    name = f"{slug(setting)}_accuracy"
    return Table(name, title, ["Evaluated on", *columns], rows, means.assign(training=setting), note)


def hyperparameter_table(runs: Runs, setting: str) -> Table:
    """Accuracy by set, one row per type, learning rate and beta (Appendix C.3), for models with several of these."""
    frame = _all_sets(runs, setting)
    points = frame.groupby("model")[["learning_rate", "beta"]].nunique().max(axis=1)
    frame = frame[frame["model"].isin(points[points > 1].index)]
    frame = frame.assign(beta=frame["beta"].astype(object).where(frame["beta"].notna(), None))
    keys = ["reward_model", "learning_rate", "beta"]
    means = over_seeds(frame, ["dataset", *keys])
    sets, types = _sets_after_training_set(frame), in_order(frame["reward_model"])
    groups = means.sort_values(["learning_rate", "beta"]).groupby(keys, sort=False, dropna=False)
    rows = [
        [Cell(key[0], number=False), Cell(f"{key[1]:g}"), Cell("–" if pd.isna(key[2]) else f"{key[2]:g}")]
        + [_plain_mean(group, "dataset", name) for name in sets]
        for key, group in sorted(groups, key=lambda item: types.index(item[0][0]))
    ]
    header = ["Reward model", "Learning rate", "β", *map(_set_words, sets)]
    title = f"Accuracy of reward models trained on {setting} by learning rate and β."
    name = f"{slug(setting)}_accuracy_by_hyperparameters"
    return Table(name, title, header, rows, means.assign(training=setting), _seeds_note(frame))


def _all_sets(runs: Runs, setting: str) -> pd.DataFrame:
    """Final rows of the standard variants on the training set and the evaluation sets."""
    rows = pd.concat([runs.train_fit, runs.final])
    return rows[(rows["setting"] == setting) & rows["standard"]]


def _sets_after_training_set(frame: pd.DataFrame) -> list[str]:
    return sorted(sets_in_order(frame), key=lambda name: name != TRAINING)


def _seeds_note(frame: pd.DataFrame) -> str:
    models, seeds = frame["model"].nunique(), frame["seed"].nunique()
    return f"{count(models, 'model')}, {count(seeds, 'seed')}. Means over models, ± standard deviation over seeds."


def _plain_mean(means: pd.DataFrame, column: str, value: str) -> Cell:
    found = means[means[column] == value]
    return Cell(spread(float(found["mean"].iloc[0]), float(found["sd"].iloc[0])) if len(found) else "–")


def _set_words(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _file(comparison: Comparison, name: str) -> str:
    return f"{slug(comparison.setting)}_{name}_{slug(comparison.first)}"
