"""How well each type fits its training set, or every set of a mixture, against the limits of Appendix D.3."""

from __future__ import annotations

from typing import Any

import pandas as pd

from rmkit.report.comparison import papers_training, slug
from rmkit.report.names import EX, GRM, IM
from rmkit.report.runs import Runs
from rmkit.report.style import in_order
from rmkit.report.tables import Cell, Table, number, plain_table

LOSS_LIMITS = {"UltraFeedback": 0.04, "RewardMATH": 0.005}
ACCURACY_LIMIT = 0.993
"""Mean loss and accuracy on the training set within which the paper compares reward models."""
LOSS_LIMITED, ACCURACY_LIMITED = (EX, IM), (EX, IM, GRM)
"""A verifier's reward is a probability, so its Bradley-Terry loss is at least ln(1 + 1/e) = 0.31."""


def train_fit_table(runs: Runs, setting: str) -> Table | None:
    """Loss and accuracy by type on the training set, marked where they are outside the limits; None if unknown."""
    frame = runs.train_fit[(runs.train_fit["setting"] == setting) & runs.train_fit["main"]]
    if frame.empty:
        return None
    limit = LOSS_LIMITS.get(papers_training(setting))
    rows, data = [], []
    for name in in_order(frame["reward_model"]):
        found = frame[frame["reward_model"] == name]
        loss, accuracy = float(found["loss"].mean()), float(found["accuracy"].mean())
        loss_outside = limit is not None and name in LOSS_LIMITED and loss >= limit
        accuracy_outside = limit is not None and name in ACCURACY_LIMITED and accuracy <= ACCURACY_LIMIT
        limited = limit is not None and name in ACCURACY_LIMITED
        verdict = "outside" if loss_outside or accuracy_outside else "within" if limited else "no limit"
        rows.append(
            [
                Cell(name, number=False),
                Cell(str(len(found))),
                Cell(number(loss, 4), warning=loss_outside),
                Cell(number(float(found["loss"].max()), 4)),
                Cell(number(accuracy, 4), warning=accuracy_outside),
                Cell(number(float(found["accuracy"].min()), 4)),
                Cell(verdict, warning=verdict == "outside", number=False),
            ]
        )
        row: dict[str, Any] = {"training": setting, "reward_model": name, "runs": len(found), "loss": loss}
        limits = {"loss_limit": limit, "accuracy_limit": ACCURACY_LIMIT if limit else None}
        data.append(row | {"accuracy": accuracy} | limits | {"verdict": verdict})
    note = (
        f"Limits of the paper: mean loss below {limit:g}, mean accuracy above {ACCURACY_LIMIT:g} (Appendix D.3). The "
        "loss of an EX-GRM, computed from probabilities, has no limit."
        if limit is not None
        else "The paper gives no limits for this training set."
    )
    header = ["Reward model", "Runs", "Mean loss", "Highest", "Mean accuracy", "Lowest", "Limits"]
    name = f"{slug(setting)}_train_fit"
    return Table(name, f"Fit of the training set, {setting}.", header, rows, pd.DataFrame(data), note)


def mixed_fit_table(runs: Runs, setting: str) -> Table | None:
    """Loss and accuracy by type on every set of a mixture; None for a single training set."""
    frame = runs.mixed_fit[(runs.mixed_fit["setting"] == setting) & runs.mixed_fit["main"]]
    if frame.empty:
        return None
    columns = {"set": "Training set", "reward_model": "Reward model"}
    means = frame.groupby(list(columns), sort=False).agg(
        runs=("run", "nunique"), pairs=("pairs", "max"), loss=("loss", "mean"), accuracy=("accuracy", "mean")
    )
    data = means.reset_index().rename(columns=columns)
    return plain_table(
        f"{slug(setting)}_mixture", f"Fit of every set of the mixture, {setting}.", data, "Means over runs.", digits=4
    )
