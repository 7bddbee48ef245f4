"""A reward model type that rmkit's schema does not list is reported like the others; runs of the first build too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import SETTINGS, with_accuracy, write_run

from rmkit.files import write_table
from rmkit.report import build, names, palette, style
from rmkit.report.comparison import comparisons
from rmkit.report.html import Drawing
from rmkit.report.runs import Runs, load
from rmkit.report.tables import Table
from rmkit.runs.directory import RunDirectory

NEW = {"type": "mean_pool", "beta": 5.0, "sharpness": 2.0}
LABEL, COLOUR = "Mean pool", palette.TYPES[3].colour.light
RIGHT = {"explicit": 9, "implicit": 5, "generative": 7, "mean_pool": 8}
SETS = ("ultrafeedback", "ultrafeedback_french")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """4 types x 2 seeds x 2 sets of 10 pairs, of which RIGHT are right, and one run of a variant of the new type."""
    folder = tmp_path_factory.mktemp("types")
    for name, right in RIGHT.items():
        for seed in (0, 1):
            sets = {set_name: with_accuracy(right, 10) for set_name in SETS}
            write_run(
                folder / f"{name}{seed}",
                sets,
                settings=SETTINGS.get(name, NEW),
                seed=seed,
                history=[sets, sets],
                log_rewards=sets if name == "generative" else None,
            )
    write_run(folder / "other", {name: with_accuracy(6, 10) for name in SETS}, settings=NEW | {"reference": "none"})
    return load([folder])


@pytest.fixture(scope="module")
def items(runs: Runs) -> dict[str, list[Table | Drawing]]:
    """Section -> its tables and figures."""
    sections, problems = build.build(runs)
    assert not problems
    return {
        section.title: [item for item in section.items if isinstance(item, Table | Drawing)] for section in sections
    }


def texts(table: Table) -> Iterator[str]:
    yield from table.header
    yield from (cell.text for row in table.rows for cell in row)


def test_a_new_type_is_labelled_by_its_name_after_the_types_of_the_paper():
    assert [names.type_label(name) for name in RIGHT] == ["EX-RM", "IM-RM", "EX-GRM", LABEL]
    assert style.in_order([LABEL, "EX-GRM", "IM-RM (no ref)", "EX-RM", "IM-RM"]) == [
        "EX-RM", "IM-RM", "IM-RM (no ref)", "EX-GRM", LABEL,
    ]  # fmt: skip
    assert names.variant(NEW | {"reference": "none"}, lora=True) == f"{LABEL} (no ref, LoRA)"


def test_the_schema_gives_the_order_of_types():
    assert list(names.TYPE_LABELS) == ["explicit", "implicit", "generative"]


def test_types_have_colours_and_markers_of_their_own():
    types = ["EX-RM", "IM-RM", "EX-GRM", "A", "B", "C"]
    assert len(set(style.colours(types).values())) == len(set(style.markers(types).values())) == 6
    assert style.colours([LABEL])[LABEL] == style.colours([*types[:3], LABEL])[LABEL] == COLOUR
    assert set(style.colours([*types, "D"])) == {*types, "D"}  # with more than six, colours repeat


def test_runs_of_the_new_type_at_its_own_beta_are_main_runs(runs: Runs):
    main = runs.runs[runs.runs["main"]]
    assert dict(main.groupby("reward_model")["beta"].first().dropna()) == {"IM-RM": 0.01, LABEL: 5.0}
    assert set(main["reward_model"].value_counts()) == {2}


def test_the_new_type_is_compared_with_im_rm(runs: Runs):
    assert [found.first for found in comparisons(runs, "UltraFeedback")] == ["EX-RM", "EX-GRM", LABEL]


def test_the_new_type_is_in_every_table(items: dict[str, list[Table | Drawing]]):
    general = [item for item in items["Generalization"] if isinstance(item, Table)]
    by_set = next(table for table in general if table.name == "ultrafeedback_by_set_mean_pool")
    accuracy = by_set.data[(by_set.data["reward_model"] == LABEL) & (by_set.data["metric"] == "accuracy")]
    assert list(accuracy["value"]) == [0.8, 0.8]
    wins = next(table for table in general if table.name == "ultrafeedback_win_rates_mean_pool")
    assert [cell.text for cell in wins.rows[0][2:]] == ["100.0", "0.0", "0.0"]
    others = [
        item
        for title in ("Statistical tests and fit", "Calibration, lengths, agreement", "Runs")
        for item in items[title]
        if isinstance(item, Table)
    ]
    shown = [table.name for table in others if any(LABEL in text for text in texts(table))]
    assert shown == [
        "ultrafeedback_paired_mean_pool",
        "ultrafeedback_train_fit",
        "ultrafeedback_calibration",
        "ultrafeedback_lengths",
        "ultrafeedback_agreement",
        "runs",
    ]
    fit = next(table for table in others if table.name == "ultrafeedback_train_fit")
    assert fit.data.set_index("reward_model").loc[LABEL, "verdict"] == "no limit"


def test_the_new_type_is_in_every_figure_in_its_colour(items: dict[str, list[Table | Drawing]]):
    drawn = {item.name: str(item.svg) for found in items.values() for item in found if isinstance(item, Drawing)}
    coloured = {name for name, svg in drawn.items() if f"var(--type-4, {COLOUR})" in svg}
    explicit_only = {
        f"ultrafeedback_{figure}_{name}" for figure in ("win_rates", "paired") for name in ("ex_rm", "ex_grm")
    }
    assert coloured == set(drawn) - explicit_only - {"ultrafeedback_agreement"}  # a heat map, labelled by name
    assert "ultrafeedback_accuracy_by_variant" in coloured


# --- captions ------------------------------------------------------------------------------------------------------


def test_captions_name_the_paper_only_where_its_numbers_are_shown(items: dict[str, list[Table | Drawing]]):
    tables = {item.name: item for item in items["Generalization"] if isinstance(item, Table)}
    figures = [item for item in items["Generalization"] if isinstance(item, Drawing)]
    numbered = {name for name, table in tables.items() if "of the paper" in table.note}
    shown = {name for name, table in tables.items() if any(cell.below for row in table.rows for cell in row)}
    assert numbered == shown
    # The mean over categories is not over the paper's sets, but that of the in-distribution set is.
    stems = [f"ultrafeedback_{table}" for table in ("by_category", "by_set", "win_rates")]
    assert numbered == {f"{stem}_{name}" for stem in stems for name in ("ex_rm", "ex_grm")}
    assert [figure.name for figure in figures if "of the paper" in figure.caption] == [
        "ultrafeedback_win_rates_ex_rm", "ultrafeedback_win_rates_ex_grm", "ultrafeedback_accuracy_by_model",
    ]  # fmt: skip


def test_a_report_on_other_sets_does_not_promise_numbers_of_the_paper(tmp_path: Path):
    for name in ("explicit", "implicit"):
        sets = {set_name: with_accuracy(3, 5) for set_name in ("mine", "yours")}
        categories = {"mine": "in-distribution", "yours": "domain shift"}
        write_run(tmp_path / "runs" / name, sets, settings=name, training="mine", categories=categories, history=[sets])
    build.report([tmp_path / "runs"], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Accuracy and reward margin by data set, EX-RM and IM-RM trained on Mine" in page
    assert "of the paper" not in page
    assert "paper's number" not in page.replace("&#39;", "'")


# --- runs of the first build ---------------------------------------------------------------------------------------


def test_a_run_of_the_first_build_is_reported(tmp_path: Path):
    """run.json, rewards and texts as the first build wrote them, its theory section included (versions removed)."""
    written = json.loads((Path(__file__).parent / "first_build_run.json").read_text(encoding="utf-8"))
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.record.write_text(json.dumps(written["run.json"]))
    for name, columns in written["rewards"].items():
        write_table(run.rewards(name), columns)
    for name, columns in written["examples"].items():
        write_table(run.examples(name), columns)
    assert build.report([run.path], tmp_path / "report") == []
    accuracies = {name: metrics["accuracy"] for name, metrics in written["run.json"]["metrics"].items()}
    assert accuracies["swapped_test"] == 0.25
    (path,) = (tmp_path / "report" / "tables").glob("*_by_set_ex_rm.csv")
    table = pd.read_csv(path)
    table = table[table["metric"] == "accuracy"].set_index("dataset")
    assert dict(table["value"]) == accuracies
    assert set(table["reward_model"]) == {"IM-RM"}
    dynamics = (tmp_path / "report" / "tables" / "dynamics_run_0.csv").read_text()
    assert [line.split(",")[0] for line in dynamics.splitlines()[1:]] == ["before", "after"]
    scored = np.array([written["rewards"]["swapped_test"][f"{side}_reward"] for side in ("chosen", "rejected")])
    assert np.mean(scored[0] > scored[1]) == 0.25
