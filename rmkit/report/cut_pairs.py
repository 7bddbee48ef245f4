"""Rewrites that end in the middle, and accuracy without them (the released rewrites were cut at 512 tokens)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rmkit.data.rewriting.endings import ends_early
from rmkit.report.aggregate import over_seeds
from rmkit.report.comparison import slug
from rmkit.report.runs import Runs
from rmkit.report.set_pairs import SetPairs
from rmkit.report.style import in_order
from rmkit.report.tables import Cell, Table, spread

_TEXTS = ["prompt", "chosen", "rejected"]


def cut_pairs_table(runs: Runs, setting: str, sets: Sequence[SetPairs]) -> Table | None:
    """Accuracy on all pairs of a rewritten set, and on those whose responses are not cut; None if no pair is cut.

    `ultrafeedback_french` is a rewrite of `ultrafeedback`: its name begins with that of the other set of the same run,
    and most of its prompts are the same at the same index.
    """
    rows: list[dict[str, Any]] = []
    counts: dict[str, tuple[int, int]] = {}
    for pairs in sets:
        cut = _cut(runs, str(pairs.frame["run"].iloc[0]), pairs, sets)
        if not cut:
            continue
        whole = ~np.isin(pairs.index, list(cut))
        counts[pairs.dataset] = (len(cut), len(pairs.index))
        for run, correct in zip(pairs.frame.to_dict("records"), pairs.correct, strict=True):
            row = {key: run[key] for key in ("dataset", "reward_model", "model", "seed")}
            rows.append(row | {"accuracy": np.nanmean(correct), "whole": np.nanmean(correct[whole])})
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    by = ["dataset", "reward_model"]
    means = [over_seeds(frame, by, column).set_index(by) for column in ("accuracy", "whole")]
    body: list[list[Cell]] = []
    data: list[dict[str, Any]] = []
    for dataset, (number, total) in counts.items():
        for reward_model in in_order(frame["reward_model"]):
            every, whole_pairs = (found.loc[(dataset, reward_model)] for found in means)
            heads = [Cell(dataset, number=False), Cell(f"{number} of {total}"), Cell(reward_model, number=False)]
            cells = [Cell(spread(float(of["mean"]), float(of["sd"]), 3)) for of in (every, whole_pairs)]
            body.append([*heads, *cells])
            data.append(
                {
                    "training": setting,
                    "dataset": dataset,
                    "cut_pairs": number,
                    "pairs": total,
                    "reward_model": reward_model,
                    "accuracy": float(every["mean"]),
                    "whole": float(whole_pairs["mean"]),
                }
            )
    note = (
        "A pair counts as cut if one of its responses ends in a letter or digit, and that response's original does "
        "not. Means over models, ± standard deviation over seeds."
    )
    header = ["Dataset", "Cut", "Reward model", "Accuracy", "Without cut pairs"]
    return Table(
        f"{slug(setting)}_cut_pairs", "Rewrites that end in the middle.", header, body, pd.DataFrame(data), note
    )


def _cut(runs: Runs, run: str, pairs: SetPairs, sets: Sequence[SetPairs]) -> set[int]:
    """The indices of the pairs of a rewritten set with a response that is cut."""
    rewrites = runs.examples(run, pairs.name, _TEXTS)
    for other in sets:
        if rewrites is None or other.name == pairs.name or not pairs.name.startswith(other.name):
            continue
        originals = runs.examples(run, other.name, _TEXTS)
        if originals is None:
            continue
        both = rewrites.join(originals, how="inner", rsuffix="_original")
        same = both[both["prompt"] == both["prompt_original"]]
        if len(same) > len(rewrites) / 2:
            return {
                int(str(index))
                for index, row in same.iterrows()
                if any(ends_early(row[f"{name}_original"], row[name]) for name in ("chosen", "rejected"))
            }
    return set()
