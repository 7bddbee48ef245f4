"""Calibration, response lengths and agreement of runs: what the paper does not report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rmkit.report import statistics
from rmkit.report.aggregate import over_seeds, sets_in_order
from rmkit.report.comparison import slug
from rmkit.report.runs import Runs
from rmkit.report.set_pairs import SetPairs
from rmkit.report.statistics import Calibration, Floats
from rmkit.report.style import in_order
from rmkit.report.tables import Cell, Table, spread

MOST_RUNS_IN_MATRIX = 24


def calibration_curves(runs: Runs, sets: Sequence[SetPairs]) -> dict[str, dict[str, Calibration]]:
    """Category -> type -> calibration over all pairs of its sets and all main runs."""
    margins: dict[str, dict[str, list[Floats]]] = {}
    for pairs in sets:
        for run, name in zip(pairs.frame["run"], pairs.frame["reward_model"], strict=True):
            margins.setdefault(pairs.category, {}).setdefault(name, []).append(runs.scores[run, pairs.name].margins)
    return {
        category: {name: statistics.calibration(np.concatenate(parts)) for name, parts in by_name.items()}
        for category, by_name in margins.items()
    }


def calibration_table(runs: Runs, setting: str, sets: Sequence[SetPairs]) -> Table:
    """ECE and Brier score of sigma(margin) by set and type, means over runs."""
    rows: list[dict[str, Any]] = []
    for pairs in sets:
        for run, model, seed, name in _keys(pairs.frame):
            found = statistics.calibration(runs.scores[run, pairs.name].margins)
            row = {"dataset": pairs.dataset, "category": pairs.category, "reward_model": name, "model": model}
            rows.append(row | {"seed": seed, "ece": found.ece, "brier": found.brier})
    note = (
        "σ(r+ − r−) is read as the probability that the chosen response is better. ECE: over 10 bins of σ(|margin|), "
        "in percentage points. Brier: mean of (1 − σ(margin))², 0.25 for guessing. Computed per run, then means over "
        "models, ± standard deviation over seeds. Rewards of EX-GRMs are probabilities, so their confidence is between "
        "0.5 and 0.73."
    )
    return _by_set_and_type(setting, "calibration", "Calibration.", rows, {"ece": "ECE", "brier": "Brier"}, note)


def length_table(runs: Runs, setting: str, sets: Sequence[SetPairs]) -> Table:
    """Correlation of rewards with response length, and the accuracy of always choosing the longer or shorter one."""
    baselines = ("accuracy", "longer_wins", "shorter_wins")
    rows: list[dict[str, Any]] = []
    for pairs in sets:
        correlations = _length_correlations(runs, pairs)
        for run in pairs.frame.to_dict("records"):
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
        "Spearman's ρ between reward and number of tokens (over responses), and between margin and difference in "
        "tokens (over pairs). Longer wins, shorter wins: the accuracy of always choosing the longer or shorter "
        "response. Means over models, ± standard deviation over seeds."
    )
    return _by_set_and_type(setting, "lengths", "Rewards and the length of responses.", rows, columns, note)


def tie_table(runs: Runs, setting: str, sets: Sequence[SetPairs]) -> Table | None:
    """Ties of types whose rewards are probabilities P, by ln P and by P in two precisions; None without such types."""
    rows: list[dict[str, Any]] = []
    for pairs in sets:
        for run, model, seed, name in _keys(pairs.frame):
            scored = runs.scores[run, pairs.name]
            if scored.log_rewards is None:
                continue
            single = scored.rewards.astype(np.float32)
            values: dict[str, NDArray[Any]] = {
                "log": scored.log_rewards,
                "single": single,
                "half": _as_bfloat16(single),
            }
            row = {"dataset": pairs.dataset, "category": pairs.category, "reward_model": name, "model": model}
            rows.append(row | {"seed": seed} | {key: np.mean(of[:, 0] == of[:, 1]) for key, of in values.items()})
    if not rows:
        return None
    note = (
        "Share of pairs with equal values for both responses. rmkit ranks by ln P; the released code by P in the "
        "model's dtype, where confident answers round to 1. Means over models, ± standard deviation over seeds."
    )
    columns = {"log": "ln P", "single": "P in float32", "half": "P in bfloat16"}
    return _by_set_and_type(setting, "ties", "Ties of probabilities.", rows, columns, note)


def _as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values rounded to bfloat16, the upper half of a float32, to nearest and ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def _keys(frame: pd.DataFrame) -> Iterator[tuple[str, str, int, str]]:
    return zip(frame["run"], frame["model"], frame["seed"], frame["reward_model"], strict=True)


def _lengths(runs: Runs, pairs: SetPairs) -> dict[str, pd.DataFrame]:
    """Model -> tokens of chosen and rejected by pair index, from one run: all runs of a model share its tokenizer."""
    read = {
        model: runs.examples(run, pairs.name, ["chosen_tokens", "rejected_tokens"])
        for model, run in pairs.frame.drop_duplicates("model")[["model", "run"]].itertuples(index=False)
    }
    return {model: tokens for model, tokens in read.items() if tokens is not None}


def _length_correlations(runs: Runs, pairs: SetPairs) -> dict[str, dict[str, float]]:
    """Run -> Spearman's rho of reward and length, and of margin and difference in length; NaN without lengths."""
    lengths = _lengths(runs, pairs)
    alike: dict[tuple[str, bytes], list[str]] = {}  # runs with the same pairs and the same tokenizer
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
            rewards, counts = np.stack([run.ranking[known] for run in scores]), counts[known]
            rhos[0] = statistics.rank_correlations(rewards.reshape(len(group), -1), counts.ravel())
            rhos[1] = statistics.rank_correlations(rewards[:, :, 0] - rewards[:, :, 1], counts[:, 0] - counts[:, 1])
        for at, run in enumerate(group):
            found[run] = {"reward_length": float(rhos[0, at]), "margin_length": float(rhos[1, at])}
    return found


def _by_set_and_type(
    setting: str, name: str, title: str, rows: Sequence[dict[str, Any]], columns: dict[str, str], note: str
) -> Table:
    """Means over runs of several columns: one row per set and type."""
    frame = pd.DataFrame(rows)
    by = ["category", "dataset", "reward_model"]
    means = {column: over_seeds(frame, by, column).set_index(by) for column in columns}
    body: list[list[Cell]] = []
    data: list[dict[str, Any]] = []
    for dataset in sets_in_order(frame):
        chosen = frame[frame["dataset"] == dataset]
        category, types = str(chosen["category"].iloc[0]), in_order(chosen["reward_model"])
        for reward_model in types:
            found = {column: means[column].loc[(category, dataset, reward_model)] for column in columns}
            cells = [_mean(value, 100.0 if column == "ece" else 1.0) for column, value in found.items()]
            heads = [dataset if reward_model == types[0] else "", reward_model]
            body.append([*(Cell(text, number=False) for text in heads), *cells])
            data.append({"training": setting, "evaluation": category, "dataset": dataset, "reward_model": reward_model})
            for column, value in found.items():
                data[-1] |= {column: float(value["mean"]), f"{column}_sd": float(value["sd"])}
    header = ["Dataset", "Reward model", *columns.values()]
    return Table(f"{slug(setting)}_{name}", title, header, body, pd.DataFrame(data), note)


def _mean(found: pd.Series, scale: float) -> Cell:
    digits = 1 if scale == 100.0 else 3
    return Cell(spread(scale * float(found["mean"]), scale * float(found["sd"]), digits))


# --- agreement -----------------------------------------------------------------------------------------------------


def agreement(sets: Sequence[SetPairs]) -> tuple[pd.DataFrame, Floats, list[str]]:
    """Share of pairs, over all sets, that two runs rank the same way.

    Returns:
        A frame of all runs [runs, runs]; and, for the figure, the same matrix with labels, averaged over seeds and then
        over models if there are too many runs to read.
    """
    everywhere = set.intersection(*(set(pairs.frame["run"]) for pairs in sets))
    frame = sets[0].frame
    frame = frame[frame["run"].isin(everywhere)].reset_index(drop=True)
    types = in_order(frame["reward_model"])
    order = sorted(range(len(frame)), key=lambda row: (types.index(frame["reward_model"][row]), row))
    frame = frame.iloc[order].reset_index(drop=True)
    parts = []
    for pairs in sets:
        place = {run: row for row, run in enumerate(pairs.frame["run"])}
        scores = pairs.correct[[place[run] for run in frame["run"]]]
        parts.append(scores[:, ~np.isnan(scores).any(axis=0)])
    matrix = statistics.agreement(np.concatenate(parts, axis=1))
    table = pd.DataFrame(matrix, index=list(frame["run"]), columns=list(frame["run"]))
    labels = _labels(frame)
    unique = list(dict.fromkeys(labels))
    return table, _grouped(matrix, np.array([unique.index(label) for label in labels]), len(unique)), unique


def _labels(frame: pd.DataFrame) -> list[str]:
    """A label per run; runs share labels if there are too many: those of one model, or else of one type."""
    model = ["model"] if frame["model"].nunique() > 1 else []
    for keys in (["reward_model", *model, "seed"], ["reward_model", *model], ["reward_model"]):
        labels = frame[keys].astype(str).agg(" ".join, axis=1)
        if labels.nunique() <= MOST_RUNS_IN_MATRIX:
            break
    return list(labels)


def _grouped(matrix: Floats, groups: np.ndarray, number_of_groups: int) -> Floats:
    """Means over blocks of runs, without the agreement of a run with itself unless it is alone in its group."""
    member = np.eye(number_of_groups)[groups]  # [runs, groups]
    sizes = member.sum(axis=0)
    sums = member.T @ matrix @ member
    pairs = np.outer(sizes, sizes)
    own = np.diag(np.where(sizes > 1, sizes, 0.0))  # the diagonal of the matrix is 1
    return np.asarray((sums - own) / (pairs - own), dtype=np.float64)
