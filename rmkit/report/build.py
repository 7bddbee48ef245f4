"""The whole report: from runs to sections, and from sections to a folder.

DIR/index.html    everything, in one file
DIR/tables/       each table as .md, .csv and .tex
DIR/figures/      each figure as .svg and .png
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rmkit import __version__
from rmkit.errors import RmkitError
from rmkit.files import replacing, write_text
from rmkit.report import attachments, figures, pair_statistics, paper_tables
from rmkit.report.comparison import Comparison, compared, count, papers_training, slug, win_rates
from rmkit.report.html import Drawing, Item, Section, page
from rmkit.report.names import EX, GRM, TRAINING_SETS
from rmkit.report.runs import Problem, Runs, load
from rmkit.report.style import in_order
from rmkit.report.tables import Cell, Table, plain_table

PARTS = ("index.html", "tables", "figures")
_MOST_NAMES = 3
_FIGURES_IN_WORDS = {  # these two figures have no numbers in the text
    "persona": "As Figure 4, of which the paper's text says: EX-RM perfect, IM-RM near zero on paraphrases, over four "
    "models and three seeds, standard deviation below 0.04.",
    "hamiltonian": "As Figure 3, of which the paper's text says: perfect on training graphs, near-perfect on test "
    "graphs, IM-RM slightly better, over three seeds, standard deviation under 0.008; no correct cycle generated.",
}


def report(paths: Iterable[Path | str], output: Path, theory: Iterable[Path] = ()) -> list[Problem]:
    """Read the runs and write the report; returns what was left out.

    Args:
        paths: run directories, or folders that hold some.
        output: a new or empty folder, or that of an earlier report, which is replaced.
        theory: JSON files of `rmkit theory`.

    Raises:
        RmkitError: if there is no run to report, or `output` holds anything else.
    """
    _check(output)
    runs = load(paths)
    sections, problems = build(runs, theory)
    write(sections, runs, output)
    return problems


def build(runs: Runs, theory: Iterable[Path] = ()) -> tuple[list[Section], list[Problem]]:
    """The sections of the page, and everything that was left out."""
    sections = []
    for setting in runs.settings:
        sections += _setting(runs, setting)
    explained, broken = attachments.explanations(runs)
    generated, unusable = attachments.generations(runs)
    proofs, unreadable = attachments.theory(runs, theory)
    problems = [*runs.problems, *broken, *unusable, *unreadable]
    sections.append(
        Section("Token by token", explained, "Blue raises the reward, orange lowers it." if explained else "")
    )
    sections.append(Section("Generation", generated))
    sections.append(Section("Theory", proofs))
    sections.append(Section("Runs", [_runs_table(runs)]))
    if problems:
        sections.append(Section("Left out", [_problems_table(problems)]))
    return sections, problems


def write(sections: Sequence[Section], runs: Runs, output: Path) -> None:
    """tables/, figures/ and index.html: all of them, or none."""
    items = [item for section in sections for item in section.items]
    with replacing(output / "tables") as tables, replacing(output / "figures") as drawings:
        for folder in (tables, drawings):
            folder.mkdir()
        for item in items:
            if isinstance(item, Table):
                for ending, text in item.forms().items():
                    (tables / f"{item.name}.{ending}").write_text(text, encoding="utf-8")
            elif isinstance(item, Drawing):
                item.save(drawings)
        html = page("Reward models: explicit, implicit, generative", sections, _lead(runs), _facts(runs))
    write_text(output / "index.html", html)


def _check(output: Path) -> None:
    if output.is_file():
        raise RmkitError(f"--output {output} is a file.", "Give a folder.")
    there = [each.name for each in output.iterdir()] if output.is_dir() else []
    foreign = sorted(name for name in there if name not in PARTS and not name.startswith("."))
    if foreign:
        raise RmkitError(f"--output {output} holds {foreign[0]}, which no report writes.", "Give another folder.")


# --- the sections of a setting -------------------------------------------------------------------------------------


def _setting(runs: Runs, setting: str) -> list[Section]:
    comparisons = [compared(runs, setting, explicit) for explicit in (EX, GRM)]
    comparisons = [each for each in comparisons if each.explicit in each.reward_models] or comparisons[:1]
    sets = pair_statistics.sets_of_pairs(runs, setting)
    return [
        Section("Generalization", _results(runs, setting, comparisons), _about(runs, setting), part=setting),
        Section("Hyperparameters and variants", _sweeps(runs, setting), part=setting),
        Section("How sure one can be", _certainty(runs, setting, comparisons, sets), part=setting),
        Section("Calibration, lengths, agreement", _habits(runs, setting, sets), part=setting),
        Section(
            "Most confidently wrong",
            [texts for each in sets for texts in pair_statistics.wrong_pairs(runs, each)],
            part=setting,
        ),
    ]


def _about(runs: Runs, setting: str) -> str:
    frame = runs.runs[(runs.runs["setting"] == setting) & runs.runs["main"]]
    rate, beta = frame["learning_rate"].iloc[0], frame["beta"].dropna().unique()
    shown = f"Learning rate {rate:g}" + (f", β {beta[0]:g}" if len(beta) else "")
    papers = papers_training(setting) in TRAINING_SETS.values()
    models = sorted(frame["model"].unique(), key=str.casefold)
    variants = [name for name in in_order(frame["variant"]) if name not in set(frame["reward_model"])]
    shown += f"; {', '.join(variants)}" if variants else ""
    named = ", ".join(models[:8]) + (" …" if len(models) > 8 else "")
    beside = " The paper's numbers are of six models of 1B to 8B, three seeds and 200 pairs a set." if papers else ""
    return f"{shown}; {count(len(models), 'language model')}: {named}.{beside}"


def _results(runs: Runs, setting: str, comparisons: Sequence[Comparison]) -> list[Item]:
    items: list[Item] = []
    stem = slug(setting)
    for each in comparisons:
        if each.paired:
            rates = win_rates(each, "category")
            number = {EX: {"UltraFeedback": 2, "RewardMATH": 5}.get(each.training), GRM: 8}[each.explicit]
            shape = f" As Figure {number}." if number and each.training in TRAINING_SETS.values() else ""
            compared_runs = int(rates["comparisons"].sum())
            items.append(
                Drawing(
                    f"{stem}_win_rates_{slug(each.explicit)}",
                    f"How often {each.explicit} or IM-RM is more accurate, trained on {setting}.",
                    figures.win_rates(rates, each.explicit),
                    f"Of {compared_runs} comparisons of the same model, seed and data set; within 1% is a tie.{shape}",
                )
            )
        if each.frame["category"].nunique():
            items += [paper_tables.by_category(each), paper_tables.by_set(each)]
        if each.paired:
            items.append(paper_tables.win_rate_table(each))
    told = [words for task, words in _FIGURES_IN_WORDS.items() if setting_has(runs, setting, task)]
    if told or not items:
        items.insert(0, paper_tables.accuracy_table(runs, setting, note=" ".join(told)))
    main = runs.metrics[(runs.metrics["setting"] == setting) & runs.metrics["main"]]
    if len(main[~main["training"] & ~main["repeats_epoch"]]["epoch"].unique()) > 1:
        items.append(
            Drawing(
                f"{stem}_accuracy_by_epoch",
                f"Accuracy by epoch, trained on {setting}.",
                figures.accuracy_by_epoch(main),
                "Means over models, bands of one standard deviation over seeds; epoch 0 is before training, the dashed "
                "line is chance.",
            )
        )
    final = runs.final[(runs.final["setting"] == setting) & runs.final["main"]]
    models = final["model"].nunique()
    like = {"UltraFeedback": " As Figure 9.", "RewardMATH": " As Figure 10."}.get(papers_training(setting), "")
    shown = f" The first {figures.MAX_PANELS} of {models} models." if models > figures.MAX_PANELS else ""
    items.append(
        Drawing(
            f"{stem}_accuracy_by_model",
            f"Accuracy by language model and data set, trained on {setting}.",
            figures.accuracy_bars(final, "model"),
            f"Error bars are one standard deviation over seeds.{shown}{like}",
        )
    )
    return items


def setting_has(runs: Runs, setting: str, word: str) -> bool:
    """Whether the setting's training set is, by its name or place, one of this task."""
    frame = runs.runs[runs.runs["setting"] == setting]
    return bool(frame["training_path"].str.lower().str.contains(word).any() or word in setting.lower())


def _sweeps(runs: Runs, setting: str) -> list[Item]:
    items: list[Item] = []
    stem = slug(setting)
    frame = runs.final[runs.final["setting"] == setting]
    standard = frame[frame["standard"]]
    sweeps = {
        "learning_rate": (standard[standard["usual_beta"]], "learning rate"),
        "beta": (standard[standard["usual_learning_rate"]], "β"),
    }
    for name, (rows, words) in sweeps.items():
        swept = _swept(rows, name)
        if swept.empty:
            continue
        items.append(
            Drawing(
                f"{stem}_accuracy_by_{name}",
                f"Accuracy by {words}, trained on {setting}.",
                figures.accuracy_by_hyperparameter(swept, name),
                f"Of {', '.join(sorted(swept['model'].unique()))}. Bands are one standard deviation over seeds; a "
                "dashed level is a type that has no such hyperparameter. As Figure 6.",
            )
        )
    if items:
        items.append(paper_tables.accuracy_table(runs, setting, hyperparameters=True))
    variants = frame[frame["usual_learning_rate"] & (~frame["standard"] | frame["usual_beta"])]
    others = variants[~variants["standard"]]
    if len(others):
        alike = variants["reward_model"].isin(others["reward_model"].unique())
        shown = variants[variants["model"].isin(others["model"].unique()) & alike]
        items.append(
            Drawing(
                f"{stem}_accuracy_by_variant",
                f"Accuracy of variants of the reward models, trained on {setting}.",
                figures.accuracy_bars(shown),
                f"Of {', '.join(sorted(shown['model'].unique()))}. Error bars are one standard deviation over seeds. "
                "all repr: the head on the mean of the response's hidden representations; no ref: the log-probability "
                "without a reference. As Figure 7.",
            )
        )
    return items


def _swept(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The models that were trained with several values, and of them the types that were, or that have no such value."""
    models = rows.groupby("model")[name].nunique()
    rows = rows[rows["model"].isin(models[models > 1].index)]
    values = rows.groupby("reward_model")[name].nunique()
    none = [EX] if name == "beta" else []
    return rows[rows["reward_model"].isin([*values[values > 1].index, *none])] if (values > 1).any() else rows.iloc[:0]


def _certainty(
    runs: Runs, setting: str, comparisons: Sequence[Comparison], sets: Sequence[pair_statistics.SetPairs]
) -> list[Item]:
    items: list[Item] = []
    for each in comparisons:
        if each.paired:
            rows = pair_statistics.paired_rows(each, sets)
            items.append(
                Drawing(
                    f"{slug(setting)}_paired_{slug(each.explicit)}",
                    f"{each.explicit} against IM-RM on the same pairs, trained on {setting}.",
                    figures.paired_differences(rows, each.explicit),
                    "Difference in accuracy, with the 95% interval over prompts; grey dots are the language models.",
                )
            )
            items.append(pair_statistics.paired_table(each, rows))
            if each.frame["model"].nunique() > 1:
                items.append(pair_statistics.paired_by_model(each, rows))
    fit = pair_statistics.train_fit(runs, setting)
    return [*items, *([fit] if fit else [])]


def _habits(runs: Runs, setting: str, sets: Sequence[pair_statistics.SetPairs]) -> list[Item]:
    stem = slug(setting)
    items: list[Item] = [
        Drawing(
            f"{stem}_reliability",
            f"Reliability, trained on {setting}.",
            figures.reliability(pair_statistics.calibration_curves(runs, sets)),
            "Pairs of all runs, in ten bins of confidence; a larger point holds more of them. On the dashed line "
            "confidence is right, below it too high.",
        ),
        pair_statistics.calibration_table(runs, setting, sets),
        pair_statistics.length_table(runs, setting, sets),
    ]
    table, matrix, labels = pair_statistics.agreement(sets)
    if len(labels) > 1:
        means = "" if len(labels) == len(table) else " Means over pairs of runs."
        items.append(
            Drawing(
                f"{stem}_agreement",
                f"How often two runs rank a pair alike, in percent, trained on {setting}.",
                figures.agreement_matrix(matrix, labels),
                f"Over all evaluation sets.{means}",
            )
        )
        shown = pd.DataFrame(np.round(matrix, 4), index=labels, columns=labels).rename_axis("run").reset_index()
        items.append(plain_table(f"{stem}_agreement", "Agreement.", shown, "Share of pairs that two runs rank alike."))
    return items


# --- what was read and what was not --------------------------------------------------------------------------------


def _lead(runs: Runs) -> str:
    settings = ", ".join(runs.settings)
    return (
        f"{count(len(runs.runs), 'run')} on {count(len(runs.settings), 'training set')} ({settings}). Numbers of the "
        "paper “Why is Your Language Model a Poor Implicit Reward Model?” stand below ours where it has them."
    )


def _facts(runs: Runs) -> dict[str, str]:
    left_out = len({problem.run for problem in runs.problems if problem.set is None})
    return {
        "Reward models": ", ".join(f"{count(number, 'run')} of {name}" for name, number in _counted(runs, "variant")),
        "Language models": ", ".join(name for name, _ in _counted(runs, "model")[:12]),
        "Seeds": ", ".join(str(seed) for seed in sorted(runs.runs["seed"].unique())),
        "Left out": count(left_out, "run") if left_out else "nothing",
        "rmkit": __version__,
    }


def _counted(runs: Runs, column: str) -> list[tuple[str, int]]:
    return sorted(Counter(runs.runs[column]).items())


def _runs_table(runs: Runs) -> Table:
    frame = runs.runs
    keys = ["setting", "model", "variant", "learning_rate", "beta"]
    grouped = frame.groupby(keys, dropna=False)["seed"].agg(
        lambda seeds: ", ".join(str(each) for each in sorted(seeds))
    )
    rows = [
        [Cell(str(each), number=False) for each in key[:3]]
        + [Cell(f"{key[3]:g}"), Cell("–" if pd.isna(key[4]) else f"{key[4]:g}"), Cell(seeds, number=False)]
        for key, seeds in grouped.items()
    ]
    header = ["Training set", "Language model", "Reward model", "Learning rate", "β", "Seeds"]
    columns = ["run", *keys[:3], "reward_model", "seed", *keys[3:], "main"]
    return Table("runs", "The runs of this report.", header, rows, frame[columns])


def _problems_table(problems: Sequence[Problem]) -> Table:
    """Runs, or sets of runs, by the reason why they are not in the report."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        reasons.setdefault((problem.set or "", problem.reason), []).append(problem.run)
    rows = []
    for (name, reason), found in reasons.items():
        more = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
        rows.append([", ".join(found[:_MOST_NAMES]) + more, name, reason])
    data = pd.DataFrame([vars(each) for each in problems])[["run", "set", "reason"]]
    cells = [[Cell(text, number=False) for text in row] for row in rows]
    return Table("left_out", "Not in this report.", ["Run", "Set", "Reason"], cells, data)
