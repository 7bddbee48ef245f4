"""The sections of the report on one setting (training set)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rmkit.report import figures, pair_statistics, paired_tests, paper_tables
from rmkit.report.comparison import (
    Comparison,
    comparisons,
    count,
    is_paper_training,
    papers_training,
    slug,
    win_rates,
)
from rmkit.report.cut_pairs import cut_pairs_table
from rmkit.report.html import Drawing, Item, Section
from rmkit.report.names import EX, GRM
from rmkit.report.runs import Runs
from rmkit.report.set_pairs import SetPairs, sets_of_pairs
from rmkit.report.style import in_order
from rmkit.report.tables import plain_table
from rmkit.report.train_fit import mixed_fit_table, train_fit_table
from rmkit.report.wrong_pairs import wrong_pairs

_PAPER_TEXT = {  # two figures whose numbers the paper gives only in words
    "persona": "Figure 4 of the paper shows this experiment: EX-RMs perfect and IM-RMs near zero on paraphrases, over "
    "four models and three seeds, standard deviation below 0.04.",
    "hamiltonian": "Figure 3 of the paper shows this experiment: perfect on training graphs, near-perfect on test "
    "graphs with IM-RMs slightly better, over three seeds, standard deviation below 0.008; no correct cycle generated.",
}
_WIN_RATE_FIGURES = {("UltraFeedback", EX): 2, ("RewardMATH", EX): 5, ("UltraFeedback", GRM): 8, ("RewardMATH", GRM): 8}
_MODEL_FIGURES = {"UltraFeedback": 9, "RewardMATH": 10}
_MOST_MODELS = 8


def setting_sections(runs: Runs, setting: str) -> list[Section]:
    """All sections on one setting; those without items are omitted from the page."""
    compared = comparisons(runs, setting)
    sets = sets_of_pairs(runs, setting)
    wrong = [texts for pairs in sets for texts in wrong_pairs(runs, pairs)]
    results = _results(runs, setting, compared)
    return [
        Section("Generalization", results, _summary(runs, setting, results), part=setting),
        Section("Hyperparameters and variants", [*_sweeps(runs, setting), *_variants(runs, setting)], part=setting),
        Section("Statistical tests and fit", _tests(runs, setting, compared, sets), part=setting),
        Section("Calibration, lengths, agreement", _pair_statistics(runs, setting, sets), part=setting),
        Section("Most confidently wrong", wrong, part=setting),
    ]


def _summary(runs: Runs, setting: str, results: Sequence[Item]) -> str:
    """What was trained, in a line or two."""
    frame = runs.runs[(runs.runs["setting"] == setting) & runs.runs["main"]]
    rate = f"Learning rate {frame['learning_rate'].iloc[0]:g}"
    betas = [f"β {beta:g}" for beta in frame["beta"].dropna().unique()]
    variants = [name for name in in_order(frame["variant"]) if name not in set(frame["reward_model"])]
    models = sorted(frame["model"].unique(), key=str.casefold)
    named = ", ".join(models[:_MOST_MODELS]) + (" …" if len(models) > _MOST_MODELS else "")
    trained = f"{', '.join([rate, *betas, *variants])}. {count(len(models), 'language model')}: {named}."
    papers = " The paper's numbers are over six models of 1B to 8B, three seeds and 200 pairs per set."
    return trained + (papers if paper_tables.show_paper_numbers(results) else "")


def _paper_figure(number: int | None, setting: str) -> str:
    """Names the paper's figure of the same kind, for the paper's own training sets."""
    return f" The same plot as Figure {number} of the paper." if number and is_paper_training(setting) else ""


def _results(runs: Runs, setting: str, compared: Sequence[Comparison]) -> list[Item]:
    items: list[Item] = []
    for comparison in compared:
        if comparison.paired:
            items.append(_win_rate_figure(comparison))
        if comparison.frame["category"].nunique():
            items += [paper_tables.by_category(comparison), paper_tables.by_set(comparison)]
        if comparison.paired:
            items.append(paper_tables.win_rate_table(comparison))
    notes = [text for word, text in _PAPER_TEXT.items() if _is_about(runs, setting, word)]
    if notes or not items:
        items.insert(0, paper_tables.accuracy_table(runs, setting, note=" ".join(notes)))
    main = runs.metrics[(runs.metrics["setting"] == setting) & runs.metrics["main"]]
    if main.loc[~main["training"] & ~main["repeats_epoch"], "epoch"].nunique() > 1:
        items.append(
            Drawing(
                f"{slug(setting)}_accuracy_by_epoch",
                f"Accuracy by epoch, trained on {setting}.",
                figures.accuracy_by_epoch(main),
                "Means over models; bands: one standard deviation over seeds. Epoch 0 is before training; the dashed "
                "line is chance.",
            )
        )
    final = runs.final[(runs.final["setting"] == setting) & runs.final["main"]]
    models = final["model"].nunique()
    shown = f" The first {figures.MAX_PANELS} of {models} models." if models > figures.MAX_PANELS else ""
    items.append(
        Drawing(
            f"{slug(setting)}_accuracy_by_model",
            f"Accuracy by language model and data set, trained on {setting}.",
            figures.accuracy_bars(final, "model"),
            "Error bars: one standard deviation over seeds."
            + shown
            + _paper_figure(_MODEL_FIGURES.get(papers_training(setting)), setting),
        )
    )
    return items


def _win_rate_figure(comparison: Comparison) -> Drawing:
    rates = win_rates(comparison, "category")
    number = _WIN_RATE_FIGURES.get((comparison.training, comparison.first))
    return Drawing(
        f"{slug(comparison.setting)}_win_rates_{slug(comparison.first)}",
        f"How often {comparison.first} or IM-RM is more accurate, trained on {comparison.setting}.",
        figures.win_rates(rates, comparison.first),
        f"{int(rates['comparisons'].sum())} comparisons of the same model, seed and data set; differences within 1% "
        f"are ties.{_paper_figure(number, comparison.setting)}",
    )


def _is_about(runs: Runs, setting: str, word: str) -> bool:
    """Whether the name or path of the setting's training set contains the word."""
    paths = runs.runs.loc[runs.runs["setting"] == setting, "training_path"]
    return bool(paths.str.lower().str.contains(word).any() or word in setting.lower())


def _sweeps(runs: Runs, setting: str) -> list[Item]:
    """Accuracy by learning rate and by beta, where runs differ in these."""
    frame = runs.final[(runs.final["setting"] == setting) & runs.final["standard"]]
    swept = {
        "learning_rate": _swept(frame[frame["usual_beta"]], "learning_rate"),
        "beta": _swept(frame[frame["usual_learning_rate"]], "beta"),
    }
    number = 6 if papers_training(setting) == "UltraFeedback" else None
    items: list[Item] = [
        Drawing(
            f"{slug(setting)}_accuracy_by_{name}",
            f"Accuracy by {'β' if name == 'beta' else 'learning rate'}, trained on {setting}.",
            figures.accuracy_by_hyperparameter(rows, name),
            f"Language models: {', '.join(sorted(rows['model'].unique()))}. Bands: one standard deviation over seeds."
            + (" Dashed: a type without this hyperparameter." if rows[name].isna().any() else "")
            + _paper_figure(number, setting),
        )
        for name, rows in swept.items()
        if not rows.empty
    ]
    return [*items, paper_tables.hyperparameter_table(runs, setting)] if items else []


def _swept(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of the models with several values of a hyperparameter, and of the types with several values or none."""
    by_model = rows.groupby("model")[name].nunique()
    rows = rows[rows["model"].isin(by_model[by_model > 1].index)]
    by_type = rows.groupby("reward_model")[name].nunique()
    return rows[rows["reward_model"].isin(by_type[by_type != 1].index)] if (by_type > 1).any() else rows.iloc[:0]


def _variants(runs: Runs, setting: str) -> list[Item]:
    """Accuracy of variants such as IM-RM (no ref), next to the standard variants of the same types and models."""
    frame = runs.final[runs.final["setting"] == setting]
    frame = frame[frame["usual_learning_rate"] & (~frame["standard"] | frame["usual_beta"])]
    variants = frame[~frame["standard"]]
    if variants.empty:
        return []
    alike = frame["reward_model"].isin(variants["reward_model"].unique())
    shown = frame[frame["model"].isin(variants["model"].unique()) & alike]
    number = 7 if papers_training(setting) == "UltraFeedback" else None
    explained = {
        "all repr": "the head is applied to the mean of the response's hidden representations",
        "no ref": "the log-probability without a reference",
    }
    words = [f" {key}: {text}." for key, text in explained.items() if shown["variant"].str.contains(key).any()]
    return [
        Drawing(
            f"{slug(setting)}_accuracy_by_variant",
            f"Accuracy of variants of the reward models, trained on {setting}.",
            figures.accuracy_bars(shown),
            f"Language models: {', '.join(sorted(shown['model'].unique()))}. Error bars: one standard deviation over "
            f"seeds.{''.join(words)}{_paper_figure(number, setting)}",
        )
    ]


def _tests(runs: Runs, setting: str, compared: Sequence[Comparison], sets: Sequence[SetPairs]) -> list[Item]:
    items: list[Item] = []
    for comparison in compared:
        if not comparison.paired:
            continue
        rows = paired_tests.paired_rows(comparison, sets)
        several = comparison.frame["model"].nunique() > 1
        dots = "; grey dots: single language models" if several else ""
        items.append(
            Drawing(
                f"{slug(setting)}_paired_{slug(comparison.first)}",
                f"{comparison.first} against IM-RM on the same pairs, trained on {setting}.",
                figures.paired_differences(rows, comparison.first),
                f"Difference in accuracy with a 95% interval over prompts{dots}.",
            )
        )
        items.append(paired_tests.paired_table(comparison, rows))
        if several:
            items.append(paired_tests.paired_by_model(comparison, rows))
    return [*items, *filter(None, (train_fit_table(runs, setting), mixed_fit_table(runs, setting)))]


def _pair_statistics(runs: Runs, setting: str, sets: Sequence[SetPairs]) -> list[Item]:
    stem = slug(setting)
    items: list[Item] = [
        Drawing(
            f"{stem}_reliability",
            f"Reliability, trained on {setting}.",
            figures.reliability(pair_statistics.calibration_curves(runs, sets)),
            "Pairs of all runs in ten bins of confidence; larger points have more pairs. On the dashed line confidence "
            "equals accuracy; below it the model is overconfident.",
        ),
        pair_statistics.calibration_table(runs, setting, sets),
        pair_statistics.length_table(runs, setting, sets),
    ]
    extra = (pair_statistics.tie_table(runs, setting, sets), cut_pairs_table(runs, setting, sets))
    items += [table for table in extra if table is not None]
    table, matrix, labels = pair_statistics.agreement(sets)
    if len(labels) > 1:
        means = "" if len(labels) == len(table) else " Means over pairs of runs."
        items.append(
            Drawing(
                f"{stem}_agreement",
                f"Agreement: percentage of pairs that two runs rank the same way, trained on {setting}.",
                figures.agreement_matrix(matrix, labels),
                f"Over all evaluation sets.{means}",
            )
        )
        shown = pd.DataFrame(np.round(matrix, 4), index=labels, columns=labels).rename_axis("run").reset_index()
        note = "Share of pairs that two runs rank the same way."
        items.append(plain_table(f"{stem}_agreement", "Agreement.", shown, note))
    return items
