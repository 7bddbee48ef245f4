"""The paper's tables from runs, each number beside the paper's own where there is one.

Tables 1 and 6 (by category), 3, 5, 8 and 10 (by data set), 2, 4, 7 and 9 (win-rates), and those of Figures 3 and 4.
A comparison is of an explicit type (EX-RM or EX-GRM) with IM-RM, from the same language models and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from rmkit.report import published, statistics
from rmkit.report.comparison import (
    Comparison,
    count,
    papers_datasets,
    papers_tables,
    papers_value,
    slug,
    win_rates,
)
from rmkit.report.figures import over_seeds, sets_in_order
from rmkit.report.names import CATEGORIES, IM
from rmkit.report.runs import Runs
from rmkit.report.style import in_order
from rmkit.report.tables import Cell, Table, number, signed, spread

METRICS = {"accuracy": "accuracy", "margin": "normalized_margin"}
"""The paper's metric -> the column of `Runs.metrics`."""

# --- means and standard deviations ---------------------------------------------------------------------------------


def by_category(comparison: Comparison) -> Table:
    """Tables 1 and 6: accuracy and margin by category."""
    places = [name for name in CATEGORIES.values() if name in set(comparison.frame["category"])]
    rows = [(place, "") for place in places]
    papers_table = {"EX-RM": 1, "EX-GRM": 6}[comparison.explicit]

    def find(category: str, dataset: str, reward_model: str, metric: str) -> tuple[float, float] | None:
        datasets = set(comparison.frame.loc[comparison.frame["category"] == category, "dataset"])
        if datasets != papers_datasets(comparison.training, category):
            return None  # the paper's mean is over other sets
        return papers_value(comparison.training, category, "", reward_model, metric, {papers_table})

    return _means_table(
        comparison,
        "by_category",
        f"Accuracy and reward margin by category, {comparison.explicit} and IM-RM trained on {comparison.setting}",
        ["category"],
        rows,
        find,
        f"As Table {papers_table}",
    )


def by_set(comparison: Comparison) -> Table:
    """Tables 3, 5, 8 and 10: accuracy and margin by data set."""
    found = comparison.frame.drop_duplicates("dataset").set_index("dataset")["category"]
    rows = [(str(found[name]), name) for name in sets_in_order(comparison.frame)]
    numbers = papers_tables(comparison, "accuracy", True)

    def find(category: str, dataset: str, reward_model: str, metric: str) -> tuple[float, float] | None:
        return papers_value(comparison.training, "", dataset, reward_model, metric, numbers)

    return _means_table(
        comparison,
        "by_set",
        f"Accuracy and reward margin by data set, {comparison.explicit} and IM-RM trained on {comparison.setting}",
        ["category", "dataset"],
        rows,
        find,
        _as_table(numbers),
    )


def _means_table(
    comparison: Comparison,
    name: str,
    title: str,
    by: list[str],
    places: Sequence[tuple[str, str]],
    find: Callable[[str, str, str, str], tuple[float, float] | None],
    shape: str,
) -> Table:
    reward_models = comparison.reward_models
    means = {
        metric: over_seeds(comparison.frame, [*by, "reward_model"], column).set_index([*by, "reward_model"])
        for metric, column in METRICS.items()
    }
    data, rows, seen = [], [], ""
    for category, dataset in places:
        place = (category, dataset)[: len(by)]
        cells = {}
        for metric in METRICS:
            for reward_model in reward_models:
                ours = means[metric].loc[(*place, reward_model)]
                row = _mean_row(comparison, category, dataset, reward_model, metric, ours)
                row |= _beside(row, find(category, dataset, reward_model, metric))
                data.append(row)
                cells[metric, reward_model] = row
        highest = {metric: _highest({name: cells[metric, name] for name in reward_models}) for metric in METRICS}
        heads = [Cell(text, number=False) for text in place]
        if category == seen:
            heads[0] = Cell("", number=False)  # as in the paper, a category is named once
        seen = category
        rows.append(heads + [_mean_cell(row, bold=highest[metric] == each) for (metric, each), row in cells.items()])
    header = [{"category": "Evaluation", "dataset": "Dataset"}[each] for each in by]
    header += [f"{each} {metric}" for metric in METRICS for each in reward_models]
    note = (
        f"{comparison.described} {shape}: means over models{' and data sets' if len(by) == 1 else ''}, "
        "± standard deviation over seeds; margins |r+ − r−| in standard deviations of the rewards; bold as in the "
        "paper, where the lead is over 0.01 beyond both standard deviations. Below: the paper's number, and the "
        "difference in standard errors."
    )
    return Table(_file(comparison, name), title + ".", header, rows, pd.DataFrame(data), note)


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


def _beside(row: Mapping[str, Any], papers: tuple[float, float] | None) -> dict[str, float]:
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
    """The type in bold: the one that leads by more than 0.01 after taking off both standard deviations (Table 1)."""
    if len(rows) < 2:
        return None
    low, high = sorted(rows, key=lambda name: rows[name]["value"])
    spreads = sum(0.0 if math.isnan(rows[name]["sd"]) else rows[name]["sd"] for name in rows)
    return high if rows[high]["value"] - rows[low]["value"] - spreads > 0.01 else None


# --- win-rates -----------------------------------------------------------------------------------------------------


def win_rate_table(comparison: Comparison) -> Table:
    """Tables 2, 4, 7 and 9: win-rates by data set."""
    frame = win_rates(comparison, "dataset")
    numbers = papers_tables(comparison, "win_rate", True)
    heads = {"first": (comparison.explicit, "win_rate"), "tie": ("", "tie_rate"), "second": (IM, "win_rate")}
    data, rows, seen = [], [], ""
    for each in frame.to_dict("records"):
        category = "" if each["category"] == seen else each["category"]
        seen = each["category"]
        cells = [Cell(category, number=False), Cell(each["label"], number=False)]
        for column, (reward_model, metric) in heads.items():
            papers = papers_value(comparison.training, "", each["label"], reward_model, metric, numbers)
            value = papers[0] if papers else math.nan
            errors = math.nan
            if papers:
                errors = statistics.standard_errors_of_rates(
                    each[column] / 100, each["comparisons"], value / 100, published.COMPARISONS_PER_SET
                )
            data.append(
                {
                    "training": comparison.setting,
                    "evaluation": each["category"],
                    "dataset": each["label"],
                    "reward_model": reward_model,
                    "metric": metric,
                    "value": each[column],
                    "comparisons": each["comparisons"],
                    "published": value,
                    "standard_errors": errors,
                }
            )
            cells.append(Cell(number(each[column], 1), _below(f"paper {value:g}", errors) if papers else ""))
        rows.append(cells)
    note = (
        f"{comparison.described} {_as_table(numbers)}: the share of pairs of runs (same model and seed) in which each "
        "type is more accurate; within 1% is a tie. Below: the paper's number, and the difference in standard errors "
        "of two shares."
    )
    header = ["Evaluation", "Dataset", f"{comparison.explicit} %", "Tie %", f"{IM} %"]
    title = f"Win-rates by data set, {comparison.explicit} against IM-RM trained on {comparison.setting}."
    return Table(_file(comparison, "win_rates"), title, header, rows, pd.DataFrame(data), note)


# --- Figures 3 and 4, and any other setting ------------------------------------------------------------------------


def accuracy_table(runs: Runs, setting: str, hyperparameters: bool = False, note: str = "") -> Table:
    """Accuracy by set, the training set first: the tables inside Figure 3 (Hamiltonian) and Figure 4 (Persona).

    Args:
        runs: all runs.
        setting: the training set.
        hyperparameters: a row for each learning rate and beta (Appendix C.1 and C.2), else the main runs alone.
        note: what is said below the title beside the usual.
    """
    both = pd.concat([runs.train_fit, runs.final])
    frame = both[(both["setting"] == setting) & both["standard"]]
    if hyperparameters:
        points = frame.groupby("model")[["learning_rate", "beta"]].nunique().max(axis=1)
        frame = frame[frame["model"].isin(points[points > 1].index)]
    else:
        frame = frame[frame["main"]]
    frame = frame.assign(beta=frame["beta"].astype(object).where(frame["beta"].notna(), None))
    by = ["dataset", "reward_model", *(["learning_rate", "beta"] if hyperparameters else [])]
    means = over_seeds(frame, by)
    sets = sets_in_order(frame)
    sets.sort(key=lambda name: name != TRAINING)
    columns = in_order(frame["reward_model"])
    keys = ["reward_model", "learning_rate", "beta"] if hyperparameters else []
    if hyperparameters:
        groups = means.sort_values(["learning_rate", "beta"]).groupby(keys, sort=False, dropna=False)
        header = ["Reward model", "Learning rate", "β", *(_set_words(name) for name in sets)]
        order = sorted(groups, key=lambda item: columns.index(item[0][0]))
        rows = [
            [Cell(key[0], number=False), Cell(f"{key[1]:g}"), Cell("–" if pd.isna(key[2]) else f"{key[2]:g}")]
            + [_plain_mean(group, "dataset", name) for name in sets]
            for key, group in order
        ]
    else:
        header = ["Evaluated on", *columns]
        rows = [
            [Cell(_set_words(name), number=False)]
            + [_plain_mean(means[means["dataset"] == name], "reward_model", column) for column in columns]
            for name in sets
        ]
    models, seeds = frame["model"].nunique(), frame["seed"].nunique()
    usual = f"{count(models, 'model')}, {count(seeds, 'seed')}: means over models, ± standard deviation over seeds."
    note = f"{usual} {note}".strip()
    stem = "accuracy_by_hyperparameters" if hyperparameters else "accuracy"
    title = f"Accuracy of reward models trained on {setting}{' by learning rate and β' if hyperparameters else ''}."
    return Table(f"{slug(setting)}_{stem}", title, header, rows, means.assign(training=setting), note)


TRAINING = "training set"


def _plain_mean(means: pd.DataFrame, column: str, value: str) -> Cell:
    found = means[means[column] == value]
    return Cell(spread(float(found["mean"].iloc[0]), float(found["sd"].iloc[0])) if len(found) else "–")


def _set_words(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _file(comparison: Comparison, name: str) -> str:
    return f"{slug(comparison.setting)}_{name}_{slug(comparison.explicit)}"


def _as_table(numbers: set[int]) -> str:
    return f"As Table {' and '.join(str(each) for each in sorted(numbers))}" if numbers else "In the paper's shape"
