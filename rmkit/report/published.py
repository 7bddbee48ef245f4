"""The paper's numbers: Tables 1 to 10, every cell as printed. (The paper gives no numbers for its figures.)

`published()` has one row per cell: table, training, evaluation, dataset, reward_model, metric, value, sd.
Win-rates and ties are in percent and have no sd; Tables 1 and 6 have no dataset; a tie has no reward model.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pandas as pd

from rmkit.report.names import EX, GRM, IM

COLUMNS = ["table", "training", "evaluation", "dataset", "reward_model", "metric", "value", "sd"]
SEEDS = 3
"""Every value of Tables 1, 3, 5, 6, 8 and 10 is a mean over three random seeds (and six models)."""
COMPARISONS_PER_SET = 18
"""Every win-rate of Tables 2, 4, 7 and 9 is over six models and three seeds."""

# Tables 1 and 6: evaluation; accuracy of the explicit type and of IM-RM; margin of the explicit type and of IM-RM.
_BY_CATEGORY = {
    (1, EX): {
        "UltraFeedback": """
            In-Distribution   | 0.752 ± 0.009 | 0.646 ± 0.006 | 1.014 ± 0.023 | 0.813 ± 0.003
            Token-Level Shift | 0.665 ± 0.005 | 0.602 ± 0.003 | 0.976 ± 0.008 | 0.763 ± 0.003
            Domain Shift      | 0.621 ± 0.012 | 0.720 ± 0.004 | 0.807 ± 0.006 | 0.726 ± 0.001
        """,
        "RewardMATH": """
            In-Distribution   | 0.971 ± 0.003 | 0.972 ± 0.002 | 1.602 ± 0.011 | 1.377 ± 0.007
            Token-Level Shift | 0.988 ± 0.003 | 0.515 ± 0.007 | 1.667 ± 0.017 | 1.035 ± 0.011
            Domain Shift      | 0.505 ± 0.012 | 0.517 ± 0.001 | 0.755 ± 0.008 | 0.604 ± 0.004
        """,
    },
    (6, GRM): {
        "UltraFeedback": """
            In-Distribution   | 0.714 ± 0.005 | 0.646 ± 0.006 | 1.075 ± 0.007 | 0.813 ± 0.003
            Token-Level Shift | 0.666 ± 0.002 | 0.602 ± 0.003 | 0.915 ± 0.012 | 0.763 ± 0.003
            Domain Shift      | 0.616 ± 0.004 | 0.720 ± 0.004 | 0.707 ± 0.004 | 0.726 ± 0.001
        """,
        "RewardMATH": """
            In-Distribution   | 0.979 ± 0.003 | 0.972 ± 0.002 | 1.724 ± 0.014 | 1.377 ± 0.007
            Token-Level Shift | 0.918 ± 0.006 | 0.515 ± 0.007 | 1.339 ± 0.032 | 1.035 ± 0.011
            Domain Shift      | 0.563 ± 0.005 | 0.517 ± 0.001 | 0.251 ± 0.004 | 0.604 ± 0.004
        """,
    },
}

# Tables 2, 4, 7 and 9: evaluation; data set; win-rate of the explicit type, ties, win-rate of IM-RM, in percent.
_WIN_RATES = {
    (2, EX, "UltraFeedback"): """
        In-Distribution   | UF              | 100  | 0    | 0
        Token-Level Shift | UF: Paraphrased | 100  | 0    | 0
        Token-Level Shift | UF: French      | 72.2 | 16.7 | 11.1
        Token-Level Shift | UF: Spanish     | 88.9 | 11.1 | 0
        Domain Shift      | RB: Math        | 22.2 | 0    | 77.8
        Domain Shift      | RewardMATH      | 38.9 | 22.2 | 38.9
        Domain Shift      | RB: Code        | 0    | 27.8 | 72.2
    """,
    (4, EX, "RewardMATH"): """
        In-Distribution   | RewardMATH      | 16.7 | 66.6 | 16.7
        Token-Level Shift | RB: Math        | 100  | 0    | 0
        Domain Shift      | UF              | 38.9 | 11.1 | 50.0
        Domain Shift      | UF: Paraphrased | 55.5 | 16.7 | 27.8
        Domain Shift      | UF: French      | 38.9 | 22.2 | 38.9
        Domain Shift      | UF: Spanish     | 55.6 | 22.2 | 22.2
        Domain Shift      | RB: Code        | 11.1 | 0    | 88.9
    """,
    (7, GRM, "UltraFeedback"): """
        In-Distribution   | UF              | 100  | 0    | 0
        Token-Level Shift | UF: Paraphrased | 100  | 0    | 0
        Token-Level Shift | UF: French      | 72.2 | 27.8 | 0
        Token-Level Shift | UF: Spanish     | 88.9 | 11.1 | 0
        Domain Shift      | RB: Math        | 0    | 0    | 100
        Domain Shift      | RewardMATH      | 33.3 | 11.1 | 55.6
        Domain Shift      | RB: Code        | 11.1 | 22.2 | 66.7
    """,
    (9, GRM, "RewardMATH"): """
        In-Distribution   | RewardMATH      | 44.4 | 44.4 | 11.2
        Token-Level Shift | RB: Math        | 100  | 0    | 0
        Domain Shift      | UF              | 83.3 | 5.6  | 11.1
        Domain Shift      | UF: Paraphrased | 83.3 | 16.7 | 0
        Domain Shift      | UF: French      | 88.9 | 11.1 | 0
        Domain Shift      | UF: Spanish     | 100  | 0    | 0
        Domain Shift      | RB: Code        | 22.2 | 0    | 77.8
    """,
}

# Tables 3, 5, 8 and 10: evaluation; data set; accuracy of the explicit type and of IM-RM; the same for the margin.
# Table 10 heads its first margin column EX-RM; its numbers are those of the EX-GRMs (compare Table 6).
_BY_SET = {
    (3, EX, "UltraFeedback"): """
        In-Distribution   | UF              | 0.752 ± 0.009 | 0.646 ± 0.006 | 1.014 ± 0.023 | 0.813 ± 0.003
        Token-Level Shift | UF: Paraphrased | 0.687 ± 0.005 | 0.579 ± 0.002 | 0.954 ± 0.010 | 0.730 ± 0.008
        Token-Level Shift | UF: French      | 0.645 ± 0.004 | 0.616 ± 0.004 | 0.991 ± 0.008 | 0.785 ± 0.004
        Token-Level Shift | UF: Spanish     | 0.662 ± 0.010 | 0.612 ± 0.002 | 0.984 ± 0.007 | 0.774 ± 0.004
        Domain Shift      | RB: Math        | 0.513 ± 0.041 | 0.737 ± 0.008 | 1.092 ± 0.024 | 1.056 ± 0.002
        Domain Shift      | RewardMATH      | 0.594 ± 0.022 | 0.593 ± 0.007 | 0.922 ± 0.021 | 0.802 ± 0.001
        Domain Shift      | RB: Code        | 0.754 ± 0.014 | 0.830 ± 0.002 | 0.409 ± 0.003 | 0.319 ± 0.005
    """,
    (5, EX, "RewardMATH"): """
        In-Distribution   | RewardMATH      | 0.971 ± 0.003 | 0.972 ± 0.002 | 1.602 ± 0.011 | 1.377 ± 0.007
        Token-Level Shift | RB: Math        | 0.988 ± 0.003 | 0.515 ± 0.007 | 1.667 ± 0.017 | 1.035 ± 0.011
        Domain Shift      | UF              | 0.487 ± 0.018 | 0.475 ± 0.005 | 0.881 ± 0.013 | 0.697 ± 0.003
        Domain Shift      | UF: Paraphrased | 0.467 ± 0.017 | 0.433 ± 0.002 | 0.872 ± 0.021 | 0.703 ± 0.003
        Domain Shift      | UF: French      | 0.484 ± 0.018 | 0.475 ± 0.005 | 0.891 ± 0.002 | 0.698 ± 0.005
        Domain Shift      | UF: Spanish     | 0.485 ± 0.004 | 0.462 ± 0.002 | 0.883 ± 0.006 | 0.693 ± 0.006
        Domain Shift      | RB: Code        | 0.604 ± 0.008 | 0.740 ± 0.008 | 0.247 ± 0.003 | 0.228 ± 0.003
    """,
    (8, GRM, "UltraFeedback"): """
        In-Distribution   | UF              | 0.714 ± 0.005 | 0.646 ± 0.006 | 1.075 ± 0.007 | 0.813 ± 0.003
        Token-Level Shift | UF: Paraphrased | 0.667 ± 0.004 | 0.579 ± 0.002 | 0.923 ± 0.010 | 0.730 ± 0.008
        Token-Level Shift | UF: French      | 0.660 ± 0.004 | 0.616 ± 0.004 | 0.909 ± 0.006 | 0.785 ± 0.004
        Token-Level Shift | UF: Spanish     | 0.672 ± 0.001 | 0.612 ± 0.002 | 0.914 ± 0.019 | 0.774 ± 0.004
        Domain Shift      | RB: Math        | 0.497 ± 0.015 | 0.737 ± 0.008 | 0.844 ± 0.012 | 1.056 ± 0.002
        Domain Shift      | RewardMATH      | 0.565 ± 0.004 | 0.593 ± 0.007 | 0.882 ± 0.010 | 0.802 ± 0.001
        Domain Shift      | RB: Code        | 0.786 ± 0.008 | 0.830 ± 0.002 | 0.395 ± 0.003 | 0.319 ± 0.005
    """,
    (10, GRM, "RewardMATH"): """
        In-Distribution   | RewardMATH      | 0.979 ± 0.002 | 0.972 ± 0.002 | 1.724 ± 0.014 | 1.377 ± 0.007
        Token-Level Shift | RB: Math        | 0.918 ± 0.006 | 0.515 ± 0.007 | 1.339 ± 0.032 | 1.035 ± 0.011
        Domain Shift      | UF              | 0.540 ± 0.004 | 0.475 ± 0.005 | 0.325 ± 0.002 | 0.697 ± 0.003
        Domain Shift      | UF: Paraphrased | 0.530 ± 0.001 | 0.433 ± 0.002 | 0.315 ± 0.007 | 0.703 ± 0.003
        Domain Shift      | UF: French      | 0.552 ± 0.003 | 0.475 ± 0.005 | 0.214 ± 0.006 | 0.698 ± 0.005
        Domain Shift      | UF: Spanish     | 0.548 ± 0.001 | 0.462 ± 0.002 | 0.228 ± 0.007 | 0.693 ± 0.006
        Domain Shift      | RB: Code        | 0.645 ± 0.018 | 0.740 ± 0.008 | 0.174 ± 0.008 | 0.228 ± 0.003
    """,
}


@cache
def published() -> pd.DataFrame:
    """Every cell of Tables 1 to 10, in the order of the paper; missing values are empty texts or NaN."""
    cells = [*_category_cells(), *_win_rate_cells(), *_set_cells()]
    return pd.DataFrame(cells, columns=COLUMNS).sort_values("table", kind="stable").reset_index(drop=True)


def to_csv() -> str:
    """`published()` as CSV, numbers with the paper's digits."""
    frame = published()
    percent = frame["metric"].isin(["win_rate", "tie_rate"])
    value = frame["value"].map("{:g}".format).where(percent, frame["value"].map("{:.3f}".format))
    sd = frame["sd"].map("{:.3f}".format).where(frame["sd"].notna(), "")
    return str(frame.assign(value=value, sd=sd).to_csv(index=False, lineterminator="\n"))


def _category_cells() -> Iterator[tuple[object, ...]]:
    for (table, explicit), settings in _BY_CATEGORY.items():
        for training, text in settings.items():
            for evaluation, *cells in _rows(text):
                yield from _means((table, training, evaluation, ""), explicit, cells)


def _set_cells() -> Iterator[tuple[object, ...]]:
    for (table, explicit, training), text in _BY_SET.items():
        for evaluation, dataset, *cells in _rows(text):
            yield from _means((table, training, evaluation, dataset), explicit, cells)


def _win_rate_cells() -> Iterator[tuple[object, ...]]:
    for (table, explicit, training), text in _WIN_RATES.items():
        for evaluation, dataset, *rates in _rows(text):
            heads = ((explicit, "win_rate"), ("", "tie_rate"), (IM, "win_rate"))
            for (reward_model, metric), rate in zip(heads, rates, strict=True):
                yield table, training, evaluation, dataset, reward_model, metric, float(rate), float("nan")


def _means(place: tuple[object, ...], explicit: str, cells: list[str]) -> Iterator[tuple[object, ...]]:
    heads = ((explicit, "accuracy"), (IM, "accuracy"), (explicit, "margin"), (IM, "margin"))
    for (reward_model, metric), cell in zip(heads, cells, strict=True):
        value, sd = cell.split("±")
        yield *place, reward_model, metric, float(value), float(sd)


def _rows(text: str) -> Iterator[list[str]]:
    for line in text.strip().splitlines():
        yield [cell.strip() for cell in line.split("|")]
