"""What the paper lacks: tests on the same pairs, train fit, calibration, response lengths, agreement, wrong pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from rmkit.report import statistics
from rmkit.report.comparison import Comparison, count, papers_training, slug
from rmkit.report.figures import over_seeds, sets_in_order
from rmkit.report.html import Texts
from rmkit.report.names import EX, GRM, IM
from rmkit.report.runs import Runs
from rmkit.report.statistics import Calibration, Floats
from rmkit.report.style import in_order
from rmkit.report.tables import Cell, Table, number, signed, spread

LOSS_LIMITS = {"UltraFeedback": 0.04, "RewardMATH": 0.005}
ACCURACY_LIMIT = 0.993
"""Appendix D.3: the mean loss and accuracy on the training set that make the comparison of EX-RM and IM-RM fair."""
LEVEL = 0.05
ALL = "all models"
WRONG_PAIRS = 10
LONGEST_TEXT = 1500  # characters of a text shown; examples/ holds the whole
MOST_RUNS_IN_MATRIX = 24


@dataclass(frozen=True)
class SetPairs:
    """One evaluation set of a setting: the main runs' scores side by side, a missing pair being NaN.

    Attributes:
        dataset: as the report calls the set.
        name: as the runs call it.
        frame: a row a run: run, model, seed, reward_model, variant.
        index: the pairs [pairs] that any run holds.
        correct: 1, 1/2 or 0 [runs, pairs].
        normalized: margins in standard deviations of the run's rewards [runs, pairs].
        prompts: a number [pairs] that pairs of the same prompt share; None where the texts are missing.
    """

    dataset: str
    name: str
    category: str
    frame: pd.DataFrame
    index: np.ndarray
    correct: Floats
    normalized: Floats
    prompts: np.ndarray | None

    @cached_property
    def rows(self) -> dict[tuple[str, str, int], int]:
        """(reward model, model, seed) -> row."""
        keys = zip(self.frame["reward_model"], self.frame["model"], self.frame["seed"], strict=True)
        return {key: row for row, key in enumerate(keys)}


def sets_of_pairs(runs: Runs, setting: str) -> list[SetPairs]:
    """Every evaluation set of a setting, for its main runs."""
    final = runs.final[(runs.final["setting"] == setting) & runs.final["main"]]
    return [_set_pairs(runs, dataset, final[final["dataset"] == dataset]) for dataset in sets_in_order(final)]


def _set_pairs(runs: Runs, dataset: str, frame: pd.DataFrame) -> SetPairs:
    frame = frame.reset_index(drop=True)
    name = str(frame["set"].iloc[0])
    scores = [runs.scores[run, name] for run in frame["run"]]
    index = np.unique(np.concatenate([each.index for each in scores]))
    correct, normalized = (np.full((len(frame), len(index)), np.nan) for _ in range(2))
    for row, each in enumerate(scores):
        at = np.searchsorted(index, each.index)
        correct[row, at], normalized[row, at] = each.correct, each.normalized
    prompts = _prompts(runs, frame, name, index)
    return SetPairs(dataset, name, str(frame["category"].iloc[0]), frame, index, correct, normalized, prompts)


def _prompts(runs: Runs, frame: pd.DataFrame, name: str, index: np.ndarray) -> np.ndarray | None:
    """A number for each prompt, from as few runs' texts as hold all pairs (a tokenizer may have left some out)."""
    texts: dict[int, str] = {}
    for run in frame.drop_duplicates("model")["run"]:
        read = runs.examples(run, name, ["prompt"])
        if read is not None:
            texts |= dict(zip(read.index, read["prompt"], strict=True))
        if all(each in texts for each in index):
            return np.unique([texts[each] for each in index], return_inverse=True)[1]
    return None


# --- EX against IM on the same pairs -------------------------------------------------------------------------------


def paired_rows(comparison: Comparison, sets: Sequence[SetPairs]) -> pd.DataFrame:
    """A row a set and model (and one for all models): the difference in accuracy with its interval and its tests.

    The difference is averaged over seeds (and models) pair by pair; the interval is over prompts, for these models.
    """
    rows = []
    cells = set(zip(comparison.frame["model"], comparison.frame["seed"], strict=True))
    models = sorted({model for model, _ in cells})
    for each in sets:
        for model in [ALL, *(models if len(models) > 1 else [])]:
            chosen = [cell for cell in sorted(cells) if model in (ALL, cell[0])]
            rows.append({"evaluation": each.category, "dataset": each.dataset, "model": model})
            rows[-1] |= _paired(comparison.explicit, each, chosen)
    return pd.DataFrame(rows)


def _paired(explicit: str, pairs: SetPairs, cells: Sequence[tuple[str, int]]) -> dict[str, Any]:
    first = pairs.correct[[pairs.rows[explicit, *cell] for cell in cells]]
    second = pairs.correct[[pairs.rows[IM, *cell] for cell in cells]]
    present = ~np.isnan(first - second)
    some = present.any(axis=0)
    difference = np.nanmean((first - second)[:, some], axis=0)
    clusters = None if pairs.prompts is None else pairs.prompts[some]
    interval = statistics.bootstrap_mean(difference, clusters)
    tests = [
        statistics.mcnemar(first[row, seen], second[row, seen], None if pairs.prompts is None else pairs.prompts[seen])
        for row, seen in enumerate(present)
    ]
    discordant = float(np.mean((first != second)[present]))
    prompts = int(some.sum()) if clusters is None else len(np.unique(clusters))
    return {
        "pairs": int(some.sum()),
        "prompts": prompts,
        "explicit_accuracy": float(np.nanmean(first[present])),
        "implicit_accuracy": float(np.nanmean(second[present])),
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "mcnemar_tests": len(tests),
        "explicit_better": sum(test.p_value < LEVEL and test.first_only > test.second_only for test in tests),
        "implicit_better": sum(test.p_value < LEVEL and test.first_only < test.second_only for test in tests),
        "median_p_value": float(np.median([test.p_value for test in tests])),
        "discordant": discordant,
        "detectable_difference": statistics.detectable_difference(prompts, discordant),
    }


def paired_table(comparison: Comparison, rows: pd.DataFrame) -> Table:
    """The difference of all models together by set, with its interval and tests."""
    body = []
    for row in rows[rows["model"] == ALL].to_dict("records"):
        prompts = f"{row['prompts']} prompts" if row["prompts"] < row["pairs"] else ""
        body.append(
            [
                Cell(row["dataset"], number=False),
                Cell(f"{row['pairs']}", prompts),
                _difference(row),
                Cell(f"{row['explicit_better']} : {row['implicit_better']}", f"of {row['mcnemar_tests']}"),
                Cell(_p_value(row["median_p_value"])),
                Cell(number(100 * row["detectable_difference"], 1)),
            ]
        )
    note = (
        "Difference in accuracy in percentage points, mean over seeds and models, with its 95% interval (paired "
        "bootstrap over prompts, 2000 resamples), bold where that leaves out 0. McNemar: of the pairs of runs with the "
        f"same model and seed, those in which {comparison.explicit} : IM-RM is better at p < 0.05 (by chance 1 in 20), "
        "and the median p. Detectable: the smallest true difference, in points, that one such test finds with "
        "probability 0.8, given how often the two disagree."
    )
    header = ["Dataset", "Pairs", f"{comparison.explicit} − IM-RM", "McNemar", "Median p", "Detectable"]
    name = f"{slug(comparison.setting)}_paired_{slug(comparison.explicit)}"
    title = f"{comparison.explicit} against IM-RM on the same pairs, trained on {comparison.setting}."
    return Table(name, title, header, body, rows.assign(training=comparison.setting), note)


def paired_by_model(comparison: Comparison, rows: pd.DataFrame) -> Table:
    """The same difference for each model: a row a set, a column a model."""
    shown = rows[rows["model"] != ALL]
    models, datasets = sorted(shown["model"].unique(), key=str.casefold), list(dict.fromkeys(shown["dataset"]))
    cells = {(row["dataset"], row["model"]): _difference(row) for row in shown.to_dict("records")}
    body = [[Cell(name, number=False), *(cells[name, model] for model in models)] for name in datasets]
    note = "Mean over seeds, in percentage points, with its 95% interval; bold where that leaves out 0."
    name = f"{slug(comparison.setting)}_paired_by_model_{slug(comparison.explicit)}"
    title = f"{comparison.explicit} − IM-RM on the same pairs by language model, trained on {comparison.setting}."
    return Table(name, title, ["Dataset", *models], body, shown.assign(training=comparison.setting), note)


def _difference(row: dict[str, Any]) -> Cell:
    low, high = (signed(100 * row[end]) for end in ("low", "high"))
    return Cell(signed(100 * row["difference"]), f"{low} to {high}", bold=row["low"] > 0 or row["high"] < 0)


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


# --- train fit -----------------------------------------------------------------------------------------------------


def train_fit(runs: Runs, setting: str) -> Table | None:
    """Loss and accuracy of each type on the training set, flagged outside the limits of Appendix D.3."""
    frame = runs.train_fit[(runs.train_fit["setting"] == setting) & runs.train_fit["main"]]
    if frame.empty:
        return None
    limit = LOSS_LIMITS.get(papers_training(setting))
    rows, data = [], []
    for name in in_order(frame["reward_model"]):
        each = frame[frame["reward_model"] == name]
        loss, accuracy = float(each["loss"].mean()), float(each["accuracy"].mean())
        # A verifier's reward is a probability: its Bradley-Terry loss is over ln(1 + 1/e) = 0.31 however good it is.
        loss_outside = limit is not None and name != GRM and loss >= limit
        accuracy_outside = limit is not None and accuracy <= ACCURACY_LIMIT
        verdict = "outside" if loss_outside or accuracy_outside else "within" if limit is not None else "no limit"
        rows.append(
            [
                Cell(name, number=False),
                Cell(str(len(each))),
                Cell(number(loss, 4), warning=loss_outside),
                Cell(number(float(each["loss"].max()), 4)),
                Cell(number(accuracy, 4), warning=accuracy_outside),
                Cell(number(float(each["accuracy"].min()), 4)),
                Cell(verdict, warning=verdict == "outside", number=False),
            ]
        )
        row = {"training": setting, "reward_model": name, "runs": len(each), "loss": loss, "accuracy": accuracy}
        data.append(
            row | {"loss_limit": limit, "accuracy_limit": ACCURACY_LIMIT if limit else None, "verdict": verdict}
        )
    asked = (
        f"The paper: mean loss below {limit:g}, mean accuracy above {ACCURACY_LIMIT:g} (Appendix D.3). An EX-GRM's "
        "loss is of probabilities and has no limit."
        if limit is not None
        else "The paper gives no limit for this training set."
    )
    header = ["Reward model", "Runs", "Mean loss", "Highest", "Mean accuracy", "Lowest", "Limits"]
    title = f"Fit of the training set, {setting}."
    return Table(f"{slug(setting)}_train_fit", title, header, rows, pd.DataFrame(data), asked)


# --- calibration and lengths ---------------------------------------------------------------------------------------


def calibration_curves(runs: Runs, sets: Sequence[SetPairs]) -> dict[str, dict[str, Calibration]]:
    """category -> reward model -> calibration over all pairs of its sets and all main runs."""
    margins: dict[str, dict[str, list[Floats]]] = {}
    for each in sets:
        for run, name in zip(each.frame["run"], each.frame["reward_model"], strict=True):
            margins.setdefault(each.category, {}).setdefault(name, []).append(runs.scores[run, each.name].margins)
    return {
        category: {name: statistics.calibration(np.concatenate(parts)) for name, parts in by_name.items()}
        for category, by_name in margins.items()
    }


def calibration_table(runs: Runs, setting: str, sets: Sequence[SetPairs]) -> Table:
    """ECE and Brier score of sigma(margin) by set and type, means over runs."""
    rows: list[dict[str, Any]] = []
    for each in sets:
        for run, model, seed, name in _keys(each.frame):
            found = statistics.calibration(runs.scores[run, each.name].margins)
            rows.append({"dataset": each.dataset, "category": each.category, "reward_model": name, "model": model})
            rows[-1] |= {"seed": seed, "ece": found.ece, "brier": found.brier}
    note = (
        "σ(r+ − r−) read as the probability that the chosen response is better; ECE over 10 bins of σ(|margin|), in "
        "percentage points; Brier score, the mean of (1 − σ(margin))², 0.25 for a coin. Of each run, then means "
        "over models, ± standard deviation over seeds. An EX-GRM's rewards are probabilities, so that its "
        "confidence is between 0.5 and 0.73."
    )
    return _by_set_and_type(setting, "calibration", "Calibration.", rows, {"ece": "ECE", "brier": "Brier"}, note)


def length_table(runs: Runs, setting: str, sets: Sequence[SetPairs]) -> Table:
    """How far rewards follow the length of responses, beside the accuracy of always choosing the longer or shorter."""
    baselines = ("accuracy", "longer_wins", "shorter_wins")
    rows: list[dict[str, Any]] = []
    for each in sets:
        correlations = _length_correlations(runs, each)
        for run in each.frame.to_dict("records"):
            row = {key: run[key] for key in ("dataset", "category", "reward_model", "model", "seed", *baselines)}
            rows.append(row | correlations[run["run"]])
    columns = {
        "reward_length": "ρ(reward, length)",
        "margin_length": "ρ(margin, difference in length)",
        "accuracy": "Accuracy",
        "longer_wins": "Longer wins",
        "shorter_wins": "Shorter wins",
    }
    note = (
        "Spearman's ρ of reward and number of tokens over all responses, and of margin and difference in tokens over "
        "pairs; accuracy beside that of always choosing the longer or the shorter response. Means over models, "
        "± standard deviation over seeds."
    )
    return _by_set_and_type(setting, "lengths", "Rewards and the length of responses.", rows, columns, note)


def _keys(frame: pd.DataFrame) -> Iterator[tuple[str, str, int, str]]:
    return zip(frame["run"], frame["model"], frame["seed"], frame["reward_model"], strict=True)


def _lengths(runs: Runs, pairs: SetPairs) -> dict[str, pd.DataFrame]:
    """model -> tokens of chosen and rejected by pair index, from one run of each: a tokenizer counts alike in all."""
    read = {
        model: runs.examples(run, pairs.name, ["chosen_tokens", "rejected_tokens"])
        for model, run in pairs.frame.drop_duplicates("model")[["model", "run"]].itertuples(index=False)
    }
    return {model: tokens for model, tokens in read.items() if tokens is not None}


def _length_correlations(runs: Runs, pairs: SetPairs) -> dict[str, dict[str, float]]:
    """run -> Spearman's rho of reward and length, and of margin and difference in length; NaN without lengths."""
    lengths = _lengths(runs, pairs)
    alike: dict[tuple[str, bytes], list[str]] = {}  # runs that hold the same pairs of the same tokenizer
    for run, model in zip(pairs.frame["run"], pairs.frame["model"], strict=True):
        alike.setdefault((model, runs.scores[run, pairs.name].index.tobytes()), []).append(run)
    found = {}
    for (model, _), group in alike.items():
        scores = [runs.scores[run, pairs.name] for run in group]
        tokens = lengths.get(model)
        rhos = np.full((2, len(group)), np.nan)
        if tokens is not None:
            counts = tokens.reindex(scores[0].index).to_numpy(dtype=np.float64)
            known = np.isfinite(counts).all(axis=1)
            rewards, counts = np.stack([each.ranking[known] for each in scores]), counts[known]
            rhos[0] = statistics.rank_correlations(rewards.reshape(len(group), -1), counts.ravel())
            rhos[1] = statistics.rank_correlations(rewards[:, :, 0] - rewards[:, :, 1], counts[:, 0] - counts[:, 1])
        for at, run in enumerate(group):
            found[run] = {"reward_length": float(rhos[0, at]), "margin_length": float(rhos[1, at])}
    return found


def _by_set_and_type(
    setting: str, name: str, title: str, rows: Sequence[dict[str, Any]], columns: dict[str, str], note: str
) -> Table:
    frame = pd.DataFrame(rows)
    by = ["category", "dataset", "reward_model"]
    means = {column: over_seeds(frame, by, column).set_index(by) for column in columns}
    body: list[list[Cell]] = []
    data: list[dict[str, Any]] = []
    for dataset in sets_in_order(frame):
        chosen = frame[frame["dataset"] == dataset]
        category = str(chosen["category"].iloc[0])
        types = in_order(chosen["reward_model"])
        for reward_model in types:
            found = {column: means[column].loc[(category, dataset, reward_model)] for column in columns}
            named = "" if reward_model != types[0] else dataset
            body.append([Cell(named, number=False), Cell(reward_model, number=False)])
            body[-1] += [_mean(each, 100.0 if column == "ece" else 1.0) for column, each in found.items()]
            data.append({"training": setting, "evaluation": category, "dataset": dataset, "reward_model": reward_model})
            for column, each in found.items():
                data[-1] |= {column: float(each["mean"]), f"{column}_sd": float(each["sd"])}
    header = ["Dataset", "Reward model", *columns.values()]
    return Table(f"{slug(setting)}_{name}", title, header, body, pd.DataFrame(data), note)


def _mean(found: pd.Series, scale: float) -> Cell:
    digits = 1 if scale == 100.0 else 3
    return Cell(spread(scale * float(found["mean"]), scale * float(found["sd"]), digits))


# --- agreement -----------------------------------------------------------------------------------------------------


def agreement(sets: Sequence[SetPairs]) -> tuple[pd.DataFrame, Floats, list[str]]:
    """Share of pairs, over all sets, that two runs rank alike.

    Returns:
        All runs as a frame [runs, runs], and what is drawn: the same while it can be read, else means over seeds, else
        over models too, with labels.
    """
    frame = sets[0].frame
    everywhere = set.intersection(*(set(each.frame["run"]) for each in sets))
    shared = [run for run in frame["run"] if run in everywhere]
    frame = frame.set_index("run").loc[shared].reset_index()
    order = sorted(range(len(frame)), key=lambda row: (in_order([EX, IM, GRM]).index(frame["reward_model"][row]), row))
    frame = frame.iloc[order].reset_index(drop=True)
    parts = []
    for each in sets:
        place = {run: row for row, run in enumerate(each.frame["run"])}
        scores = each.correct[[place[run] for run in frame["run"]]]
        parts.append(scores[:, ~np.isnan(scores).any(axis=0)])
    matrix = statistics.agreement(np.concatenate(parts, axis=1))
    table = pd.DataFrame(matrix, index=list(frame["run"]), columns=list(frame["run"]))
    several = frame["model"].nunique() > 1
    for keys in (["reward_model", "model", "seed"], ["reward_model", "model"], ["reward_model"]):
        labels = frame[keys].astype(str).agg(" ".join, axis=1)
        if not several and "model" in keys:
            labels = frame[[key for key in keys if key != "model"]].astype(str).agg(" ".join, axis=1)
        if labels.nunique() <= MOST_RUNS_IN_MATRIX:
            break
    names = list(dict.fromkeys(labels))
    return table, _grouped(matrix, np.array([names.index(label) for label in labels]), len(names)), names


def _grouped(matrix: Floats, groups: np.ndarray, number_of_groups: int) -> Floats:
    """Means over blocks of runs, a run with itself left out unless it is alone in its group."""
    member = np.eye(number_of_groups)[groups]  # [runs, groups]
    sizes = member.sum(axis=0)
    sums = member.T @ matrix @ member
    pairs = np.outer(sizes, sizes)
    own = np.diag(np.where(sizes > 1, sizes, 0.0))  # the diagonal of the matrix is 1
    return np.asarray((sums - own) / (pairs - own), dtype=np.float64)


# --- most confidently wrong ----------------------------------------------------------------------------------------


def wrong_pairs(runs: Runs, pairs: SetPairs) -> list[Texts]:
    """The pairs of a set that the runs of a type rank wrong by the widest margins, as text: a list a type."""
    lists = []
    types = in_order(pairs.frame["reward_model"])
    means = {}
    for name in types:
        chosen = (pairs.frame["reward_model"] == name).to_numpy()
        with np.errstate(invalid="ignore"):
            seen = ~np.isnan(pairs.normalized[chosen])
            means[name] = np.where(
                seen.any(axis=0), np.nansum(pairs.normalized[chosen], axis=0) / np.maximum(seen.sum(axis=0), 1), np.nan
            )
    for name in types:
        order = [at for at in np.argsort(means[name], kind="stable") if means[name][at] < 0][:WRONG_PAIRS]
        texts = _texts(runs, pairs, [int(pairs.index[at]) for at in order])
        entries = []
        for at in order:
            margins = ", ".join(f"{other} {signed(means[other][at], 2)}" for other in types)
            row = texts.get(int(pairs.index[at]))
            parts = {} if row is None else {label: _cut(row[label]) for label in ("prompt", "chosen", "rejected")}
            entries.append((f"Pair {pairs.index[at]}: {margins}", parts))
        if entries:
            note = "Mean signed margins over its runs, in standard deviations of each run's rewards; most wrong first."
            lists.append(Texts(f"{pairs.dataset}, {name}.", entries, note))
    return lists


def _texts(runs: Runs, pairs: SetPairs, wanted: Sequence[int]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for run in pairs.frame.drop_duplicates("model")["run"]:
        missing = [index for index in wanted if index not in found]
        if not missing:
            break
        read = runs.examples(run, pairs.name, ["prompt", "chosen", "rejected"])
        if read is not None:
            there = read.loc[[index for index in missing if index in read.index]]
            found |= {
                int(index): {str(key): str(value) for key, value in row.items()} for index, row in there.iterrows()
            }
    return found


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … ({count(len(text), 'character')} in all)"
