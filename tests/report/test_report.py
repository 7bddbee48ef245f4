"""The report: from synthetic run directories with known answers to tables, figures and the page."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import typer
from synthetic_runs import CATEGORIES, SETTINGS, from_scores, with_accuracy, write_run
from typer.testing import CliRunner

from rmkit.commands.report import report as report_command
from rmkit.errors import RmkitError
from rmkit.report import attachments, build, figures, pair_statistics, paired_tests, paper_tables, sections
from rmkit.report.comparison import compare, win_rates
from rmkit.report.cut_pairs import cut_pairs_table
from rmkit.report.html import Drawing, Section, Texts, page
from rmkit.report.published import COLUMNS, published, to_csv
from rmkit.report.runs import Problem, load
from rmkit.report.set_pairs import sets_of_pairs
from rmkit.report.style import spread_out
from rmkit.report.tables import Cell, Table, number, signed, spread
from rmkit.report.train_fit import train_fit_table
from rmkit.report.wrong_pairs import wrong_pairs

HERE = Path(__file__).resolve().parents[1]
PAIRS = 200
LLAMA, QWEN = "meta-llama/Llama-3.2-1B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct"

# set -> type -> model -> right pairs of 200, by seed. Differences cover a clear win, 0.01 exactly (a tie) and 0.015.
RIGHT = {
    "ultrafeedback": {
        "explicit": {LLAMA: [150, 152], QWEN: [154, 156]},
        "implicit": {LLAMA: [130, 150], QWEN: [156, 159]},
    },
    "ultrafeedback_french": {
        "explicit": {LLAMA: [140, 120], QWEN: [130, 130]},
        "implicit": {LLAMA: [120, 121], QWEN: [100, 127]},
    },
    "ultrafeedback_spanish": {
        "explicit": {LLAMA: [110, 110], QWEN: [110, 110]},
        "implicit": {LLAMA: [110, 110], QWEN: [110, 110]},
    },
}
SETS = {"ultrafeedback": "UF", "ultrafeedback_french": "UF: French", "ultrafeedback_spanish": "UF: Spanish"}
UF_CATEGORIES = {name: CATEGORIES["ultrafeedback"][name] for name in SETS}


def name_of(type_name: str, model: str, seed: int) -> str:
    return f"{type_name}_{model.split('/')[1]}_{seed}"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 types x 2 models x 2 seeds x 3 sets with the accuracies of RIGHT."""
    folder = tmp_path_factory.mktemp("grid")
    for type_name in ("explicit", "implicit"):
        for model in (LLAMA, QWEN):
            for seed in (0, 1):
                sets = {name: with_accuracy(right[type_name][model][seed], PAIRS) for name, right in RIGHT.items()}
                history = [{name: with_accuracy(100, PAIRS) for name in SETS}] + [
                    {name: with_accuracy(100 + 10 * epoch + seed, PAIRS) for name in SETS} for epoch in (1, 2)
                ]
                write_run(
                    folder / name_of(type_name, model, seed),
                    sets,
                    settings=type_name,
                    model=model,
                    seed=seed,
                    history=history,
                )
    return folder


@pytest.fixture(scope="module")
def runs(grid):
    return load([grid])


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small run."""
    folder = tmp_path_factory.mktemp("one")
    write_run(folder / "run", {"ultrafeedback": with_accuracy(3, 5)})
    return folder


def cell(frame: pd.DataFrame, **where) -> pd.Series:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


# --- the paper's numbers -------------------------------------------------------------------------------------------


def test_published_numbers_equal_a_separate_transcription():
    frame = published()
    assert len(frame) == 244
    checked = 0
    for line in (HERE / "published_columns.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        table, training, heading, cells = (part.strip() for part in line.split("|"))
        if table == "10":
            heading = heading.replace("EX-RM margin", "EX-GRM margin")
        reward_model, _, metric = heading.rpartition(" ")
        chosen = frame[(frame["table"] == int(table)) & (frame["training"] == training)]
        chosen = chosen[(chosen["reward_model"] == reward_model) & (chosen["metric"] == metric)]
        values = [[float(part) for part in each.split("±")] for each in cells.split(",")]
        assert list(chosen["value"]) == [each[0] for each in values], line
        if metric in ("accuracy", "margin"):
            assert list(chosen["sd"]) == [each[1] for each in values], line
        else:
            assert chosen["sd"].isna().all()
        checked += len(values)
    assert checked == 244


def test_published_rows_are_in_the_order_of_the_paper():
    frame = published()
    for table, training in ((3, "UltraFeedback"), (5, "RewardMATH"), (8, "UltraFeedback"), (10, "RewardMATH")):
        accuracies = frame[(frame["table"] == table) & (frame["metric"] == "accuracy")]
        first = accuracies[accuracies["reward_model"] == "IM-RM"]
        rows = list(zip(first["evaluation"], first["dataset"], strict=True))
        if training == "UltraFeedback":
            shifts = ["UF: Paraphrased", "UF: French", "UF: Spanish"], ["RB: Math", "RewardMATH", "RB: Code"]
            expected = [("In-Distribution", "UF")]
        else:
            shifts = ["RB: Math"], ["UF", "UF: Paraphrased", "UF: French", "UF: Spanish", "RB: Code"]
            expected = [("In-Distribution", "RewardMATH")]
        expected += [("Token-Level Shift", name) for name in shifts[0]] + [("Domain Shift", name) for name in shifts[1]]
        assert rows == expected
        assert set(accuracies["training"]) == {training}
    rates = frame[frame["metric"].isin(["win_rate", "tie_rate"])]
    sums = rates.groupby(["table", "dataset"])["value"].sum()
    assert len(sums) == 28
    assert sums.between(99.9, 100.1).all()


def test_published_csv_has_the_papers_digits():
    lines = to_csv().splitlines()
    assert lines[0] == "table,training,evaluation,dataset,reward_model,metric,value,sd" == ",".join(COLUMNS)
    assert "8,UltraFeedback,Token-Level Shift,UF: French,EX-GRM,accuracy,0.660,0.004" in lines
    assert "1,RewardMATH,Domain Shift,,EX-RM,accuracy,0.505,0.012" in lines
    assert "4,RewardMATH,Domain Shift,UF,IM-RM,win_rate,50," in lines
    assert "2,UltraFeedback,Domain Shift,RB: Code,,tie_rate,27.8," in lines
    assert len(lines) == 245


# --- reading -------------------------------------------------------------------------------------------------------


def test_runs_become_tidy_frames(runs):
    assert len(runs.runs) == 8
    assert runs.settings == ["UltraFeedback"]
    assert runs.runs["main"].all()
    assert set(runs.runs["model"]) == {"Llama-3.2-1B-Instruct", "Qwen2.5-1.5B-Instruct"}
    row = cell(runs.final, run=name_of("implicit", QWEN, 1), set="ultrafeedback")
    assert (row["dataset"], row["category"], row["reward_model"]) == ("UF", "In-Distribution", "IM-RM")
    assert (row["accuracy"], row["seed"], row["beta"], row["learning_rate"]) == (159 / 200, 1, 0.01, 1e-6)
    assert len(runs.final) == 8 * 3
    assert list(runs.train_fit["accuracy"]) == [0.999] * 8
    assert set(runs.metrics["state"]) == {"initial", "epoch_1", "epoch_2", "final"}


def test_models_with_the_same_short_name_get_longer_names(tmp_path):
    for at, model in enumerate(("org/base", "other/base", "org/else")):
        write_run(tmp_path / str(at), {"ultrafeedback": with_accuracy(3, 5)}, model=model)
    assert list(load([tmp_path]).runs["model"]) == ["org/base", "other/base", "else"]


def test_training_options_may_differ_between_language_models_but_not_within_one(tmp_path):
    """The released runs clip gradients on four GPUs only, so not those of the 1B model."""
    scores = {"ultrafeedback": with_accuracy(3, 5)}
    for at, (model, clip) in enumerate([(LLAMA, 0.0), (LLAMA, 0.0), (QWEN, 1.0), (QWEN, 1.0), (QWEN, 0.0)]):
        write_run(tmp_path / str(at), scores, model=model, seed=at, options={"max_grad_norm": clip})
    found = load([tmp_path])
    assert list(found.runs["run"]) == ["0", "1", "2", "3"]
    assert [problem.reason for problem in found.problems] == [
        "training option max_grad_norm is 0.0, but 1.0 in the other runs of its language model"
    ]


def test_another_template_of_a_language_model_is_a_variant(tmp_path):
    scores = {"ultrafeedback": with_accuracy(3, 5)}
    for at, template in enumerate(["released", "released", None, "mine/short.jinja"]):
        run = write_run(tmp_path / str(at), scores, seed=at % 2)
        content = json.loads((run / "run.json").read_text())
        content["recipe"]["base"]["chat_template"] = template
        (run / "run.json").write_text(json.dumps(content))
    write_run(tmp_path / "instruct", scores, model=QWEN)  # without a template of the recipe, as all runs of its model
    found = load([tmp_path])
    assert not found.problems
    assert list(found.runs["variant"]) == [
        "EX-RM",
        "EX-RM",
        "EX-RM (default template)",
        "EX-RM (short template)",
        "EX-RM",
    ]
    assert list(found.runs["main"]) == [True, True, False, False, True]


def test_another_training_set_of_the_same_name_is_another_setting(tmp_path):
    for at in range(2):
        folder = write_run(tmp_path / str(at), {"ultrafeedback": with_accuracy(3, 5)}, seed=at)
    content = json.loads((folder / "run.json").read_text())
    content["data"]["train"]["fingerprint"] = "another"
    content["train_fit"]["pairs"] = 40
    (folder / "run.json").write_text(json.dumps(content))
    found = load([tmp_path])
    assert found.settings == ["UltraFeedback (2000 pairs)", "UltraFeedback (40 pairs)"]
    assert not found.problems


def test_sets_without_a_path_are_named_after_their_source(tmp_path):
    for vertices in (8, 10):
        run = write_run(tmp_path / f"n{vertices}", {"ultrafeedback": with_accuracy(3, 5)})
        content = json.loads((run / "run.json").read_text())
        graphs = {"name": "hamiltonian", "vertices": vertices}
        content["recipe"]["data"]["train"] = {"name": "train", "path": None, "source": graphs}
        content["data"]["train"]["fingerprint"] = f"graphs of {vertices}"
        (run / "run.json").write_text(json.dumps(content))
    found = load([tmp_path])
    assert not found.problems
    label = load([tmp_path / "n8"]).settings[0]
    assert label.lower() == "hamiltonian"
    assert found.settings == [f"{label} (vertices 10)", f"{label} (vertices 8)"]


# --- Tables 1 and 3: means over models (and sets), then mean and standard deviation over seeds ---------------------


def test_accuracy_by_set_is_averaged_over_models_then_over_seeds(runs):
    table = paper_tables.by_set(compare(runs, "UltraFeedback", "EX-RM"))
    row = cell(table.data, dataset="UF", reward_model="EX-RM", metric="accuracy")
    by_seed = [(150 + 154) / 400, (152 + 156) / 400]  # 0.76, 0.77
    assert row["value"] == pytest.approx(0.765)
    assert row["sd"] == pytest.approx(abs(by_seed[0] - by_seed[1]) / math.sqrt(2))
    assert (row["seeds"], row["models"]) == (2, 2)
    assert (row["published"], row["published_sd"]) == (0.752, 0.009)
    error = math.sqrt(row["sd"] ** 2 / 2 + 0.009**2 / 3)
    assert row["standard_errors"] == pytest.approx((0.765 - 0.752) / error)


def test_accuracy_by_category_is_averaged_over_models_and_sets_then_over_seeds(runs):
    table = paper_tables.by_category(compare(runs, "UltraFeedback", "EX-RM"))
    row = cell(table.data, evaluation="Token-Level Shift", reward_model="IM-RM", metric="accuracy")
    first, second = (120 + 100 + 110 + 110) / 800, (121 + 127 + 110 + 110) / 800
    assert row["value"] == pytest.approx((first + second) / 2)
    assert row["sd"] == pytest.approx(abs(first - second) / math.sqrt(2))
    # The paper's mean is over three sets, one of which is not here: not comparable.
    assert math.isnan(row["published"])
    in_distribution = cell(table.data, evaluation="In-Distribution", reward_model="IM-RM", metric="accuracy")
    assert in_distribution["published"] == 0.646


def test_the_margin_is_in_standard_deviations_of_all_rewards(runs):
    table = paper_tables.by_set(compare(runs, "UltraFeedback", "EX-RM"))
    row = cell(table.data, dataset="UF: Spanish", reward_model="EX-RM", metric="margin")
    # 110 pairs (1, 0), 90 pairs (-1, 0): every |margin| is 1; sum of rewards 20, of squares 200, over 400 responses.
    assert row["value"] == pytest.approx(1 / math.sqrt((200 - 20**2 / 400) / 399))


def test_a_clear_lead_is_bold_and_a_close_one_is_not(runs):
    rows = {row[1].text: row for row in paper_tables.by_set(compare(runs, "UltraFeedback", "EX-RM")).rows}
    assert [cell.bold for cell in rows["UF: French"][2:4]] == [False, False]  # 0.65 +- 0.018 against 0.585 +- 0.049
    assert [cell.bold for cell in rows["UF: Spanish"][2:4]] == [False, False]  # equal
    leads = {"EX-RM": {"value": 0.665, "sd": 0.005}, "IM-RM": {"value": 0.602, "sd": 0.003}}
    assert paper_tables._highest(leads) == "EX-RM"
    # 0.487 +- 0.018 against 0.475 +- 0.005 is not bold in Table 5, 0.467 +- 0.017 against 0.433 +- 0.002 is.
    close = {"EX-RM": {"value": 0.487, "sd": 0.018}, "IM-RM": {"value": 0.475, "sd": 0.005}}
    assert paper_tables._highest(close) is None
    wide = {"EX-RM": {"value": 0.467, "sd": 0.017}, "IM-RM": {"value": 0.433, "sd": 0.002}}
    assert paper_tables._highest(wide) == "EX-RM"


def test_a_seed_that_one_model_lacks_is_left_out_for_all(grid, tmp_path):
    kept = [each for each in sorted(grid.iterdir()) if each.name != name_of("implicit", QWEN, 1)]
    comparison = compare(load(kept), "UltraFeedback", "EX-RM")
    assert set(comparison.frame["seed"]) == {0}
    assert comparison.frame["model"].nunique() == 2
    assert "Left out: 2 combinations of model and seed" in comparison.note
    row = cell(paper_tables.by_set(comparison).data, dataset="UF", reward_model="EX-RM", metric="accuracy")
    assert row["value"] == pytest.approx((150 + 154) / 400)
    assert math.isnan(row["sd"])
    assert math.isnan(row["standard_errors"])


def test_types_on_different_models_are_not_paired_and_the_rest_is_reported(tmp_path):
    for at, (type_name, model) in enumerate([("explicit", QWEN), ("implicit", LLAMA)]):
        write_run(tmp_path / str(at), {"ultrafeedback": with_accuracy(3, 5)}, settings=type_name, model=model)
    found = load(sorted(tmp_path.iterdir()))
    comparison = compare(found, "UltraFeedback", "EX-RM")
    assert not comparison.paired
    assert "no model and seed in common" in comparison.note
    built, _ = build.build(found)
    assert built


# --- Tables 2, 4, 7, 9 and Figures 2, 5, 8: win-rates --------------------------------------------------------------


def test_win_rates_count_ties_within_one_percent(runs):
    comparison = compare(runs, "UltraFeedback", "EX-RM")
    by_set = win_rates(comparison, "dataset").set_index("label")
    # UF: +0.10; +0.01, a tie; -0.01, a tie; -0.015.
    assert list(by_set.loc["UF", ["first", "tie", "second", "comparisons"]]) == [25.0, 50.0, 25.0, 4]
    # UF: French: +0.10; -0.005, a tie; +0.15; +0.015. UF: Spanish: all equal.
    assert list(by_set.loc["UF: French", ["first", "tie", "second"]]) == [75.0, 25.0, 0.0]
    assert list(by_set.loc["UF: Spanish", ["first", "tie", "second"]]) == [0.0, 100.0, 0.0]
    by_category = win_rates(comparison, "category").set_index("label")
    assert list(by_category.loc["Token-Level Shift", ["first", "tie", "second"]]) == [37.5, 62.5, 0.0]


def test_win_rates_are_compared_with_the_papers_in_errors_of_two_proportions(runs):
    data = paper_tables.win_rate_table(compare(runs, "UltraFeedback", "EX-RM")).data
    row = cell(data, dataset="UF: French", reward_model="EX-RM")
    assert (row["value"], row["published"]) == (75.0, 72.2)
    pooled = (0.75 * 4 + 0.722 * 18) / 22
    assert row["standard_errors"] == pytest.approx((0.75 - 0.722) / math.sqrt(pooled * (1 - pooled) * (1 / 4 + 1 / 18)))
    assert cell(data, dataset="UF", metric="tie_rate")["published"] == 0


# --- the same pairs ------------------------------------------------------------------------------------------------


def test_differences_on_the_same_pairs(runs):
    comparison = compare(runs, "UltraFeedback", "EX-RM")
    rows = paired_tests.paired_rows(comparison, sets_of_pairs(runs, "UltraFeedback"))
    row = cell(rows, dataset="UF", model="all models")
    assert row["difference"] == pytest.approx(((150 + 152 + 154 + 156) - (130 + 150 + 156 + 159)) / 800)
    assert (row["explicit_accuracy"], row["implicit_accuracy"]) == pytest.approx((612 / 800, 595 / 800))
    # The right pairs are always the first ones, so the two disagree on |difference| pairs, all the same way.
    assert row["discordant"] == pytest.approx((20 + 2 + 2 + 3) / 800)
    # 20 of 20 one way: p = 2 / 2^20; 2 of 2: 0.5; 3 of 3: 0.25.
    assert (row["mcnemar_tests"], row["explicit_better"], row["implicit_better"]) == (4, 1, 0)
    assert row["median_p_value"] == pytest.approx((0.25 + 0.5) / 2)
    one = cell(rows, dataset="UF", model="Llama-3.2-1B-Instruct")
    assert one["difference"] == pytest.approx((20 + 2) / 400)
    assert one["low"] < one["difference"] < one["high"]


def test_accuracy_with_and_without_rewrites_that_are_cut(tmp_path):
    """Of four French pairs the first two are cut, in one response or in both; the originals end in full stops."""
    prompts = list("abcd")
    originals = {"prompt": prompts, "chosen": ["Yes."] * 4, "rejected": ["No."] * 4}
    french = {"prompt": prompts, "chosen": ["Ou", "Ou", "Oui.", "Oui."], "rejected": ["Non.", "No", "Non.", "Non."]}
    sets = {"ultrafeedback": from_scores([1.0] * 4), "ultrafeedback_french": from_scores([0.0, 1.0, 1.0, 1.0])}
    write_run(tmp_path / "run", sets, texts={"ultrafeedback": originals, "ultrafeedback_french": french})
    found = load([tmp_path])
    table = cut_pairs_table(found, "UltraFeedback", sets_of_pairs(found, "UltraFeedback"))
    assert table.data.to_dict("records") == [
        {
            "training": "UltraFeedback",
            "dataset": "UF: French",
            "cut_pairs": 2,
            "pairs": 4,
            "reward_model": "EX-RM",
            "accuracy": 0.75,
            "whole": 1.0,
        }
    ]
    whole = {"ultrafeedback": originals, "ultrafeedback_french": originals}
    write_run(tmp_path / "whole", sets, texts=whole)
    found = load([tmp_path / "whole"])
    assert cut_pairs_table(found, "UltraFeedback", sets_of_pairs(found, "UltraFeedback")) is None


def test_pairs_with_the_same_prompt_are_one_unit(tmp_path):
    sets = {"ultrafeedback": from_scores([1.0, 1.0, 0.0, 0.0])}, {"ultrafeedback": from_scores([0.0, 0.0, 0.0, 1.0])}
    texts = {"ultrafeedback": {"prompt": ["a", "a", "b", "c"], "chosen": list("1234"), "rejected": list("5678")}}
    for type_name, each in zip(("explicit", "implicit"), sets, strict=True):
        write_run(tmp_path / type_name, each, settings=type_name, texts=texts)
    found = load([tmp_path])
    comparison = compare(found, "UltraFeedback", "EX-RM")
    row = paired_tests.paired_rows(comparison, sets_of_pairs(found, "UltraFeedback")).iloc[0]
    assert (row["pairs"], row["prompts"]) == (4, 3)
    # D = +2 for prompt a, 0 for b, -1 for c: (2 - 1)^2 / (4 + 1) = 0.2 on chi-square(1).
    assert row["median_p_value"] == pytest.approx(math.erfc(math.sqrt(0.2 / 2)))


# --- train fit, calibration, lengths, agreement --------------------------------------------------------------------


def test_train_fit_is_flagged_outside_the_papers_limits(tmp_path):
    sets = {name: with_accuracy(3, 5) for name in SETS}
    fits = {"explicit": [(0.999, 0.03), (0.996, 0.06)], "implicit": [(0.999, 0.01), (0.98, 0.02)]}
    for type_name, each in fits.items():
        for seed, fit in enumerate(each):
            write_run(tmp_path / f"{type_name}{seed}", sets, settings=type_name, seed=seed, train_fit=fit)
    write_run(tmp_path / "grm", sets, settings="generative", log_rewards=sets, train_fit=(0.999, 0.35))
    table = train_fit_table(load([tmp_path]), "UltraFeedback")
    assert table is not None
    rows = table.data.set_index("reward_model")
    assert rows.loc["EX-RM", "loss"] == pytest.approx(0.045)  # over 0.04
    assert rows.loc["IM-RM", "accuracy"] == pytest.approx(0.9895)  # under 0.993
    assert dict(rows["verdict"]) == {"EX-RM": "outside", "IM-RM": "outside", "EX-GRM": "within"}
    flagged = {row[0].text: [cell.warning for cell in row] for row in table.rows}
    assert flagged["EX-RM"] == [False, False, True, False, False, False, True]
    assert flagged["IM-RM"] == [False, False, False, False, True, False, True]


def test_ties_of_probabilities_in_three_precisions(tmp_path):
    """Four pairs: apart; apart beyond bfloat16; beyond float32, whose spacing at 1 is 6e-8; and equal."""
    chosen = np.array([0.9, 1 - 1e-4, 1 - 1e-9, 0.5])
    rewards = np.stack([chosen, np.array([0.1, 1 - 2e-4, 1 - 2e-9, 0.5])], axis=1)
    sets, logs = {"ultrafeedback": rewards}, {"ultrafeedback": np.log(rewards)}
    write_run(tmp_path / "grm", sets, settings="generative", log_rewards=logs)
    found = load([tmp_path])
    row = pair_statistics.tie_table(found, "UltraFeedback", sets_of_pairs(found, "UltraFeedback")).data.iloc[0]
    assert (row["log"], row["single"], row["half"]) == (0.25, 0.5, 0.75)
    values = np.random.default_rng(0).uniform(-3, 3, 1000).astype(np.float32)[:, None]
    rounded = torch.tensor(values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(pair_statistics._as_bfloat16(values), rounded)
    write_run(tmp_path / "exrm" / "run", sets)
    found = load([tmp_path / "exrm"])
    assert pair_statistics.tie_table(found, "UltraFeedback", sets_of_pairs(found, "UltraFeedback")) is None


def test_length_follows_tokens_and_baselines(tmp_path):
    # Rewards rise with length in one set, fall in the other.
    lengths = {"ultrafeedback": [(9, 1), (8, 2), (3, 7)], "ultrafeedback_french": [(9, 1), (8, 2), (3, 7)]}
    rising = np.array(lengths["ultrafeedback"], dtype=float)
    write_run(tmp_path / "run", {"ultrafeedback": rising, "ultrafeedback_french": -rising}, lengths=lengths)
    found = load([tmp_path])
    data = pair_statistics.length_table(found, "UltraFeedback", sets_of_pairs(found, "UltraFeedback")).data
    uf, french = cell(data, dataset="UF"), cell(data, dataset="UF: French")
    assert (uf["reward_length"], uf["margin_length"]) == pytest.approx((1.0, 1.0))
    assert (french["reward_length"], french["margin_length"]) == pytest.approx((-1.0, -1.0))
    assert (uf["longer_wins"], uf["shorter_wins"], uf["accuracy"]) == pytest.approx((2 / 3, 1 / 3, 2 / 3))
    assert french["accuracy"] == pytest.approx(1 / 3)


def test_agreement_between_runs(tmp_path):
    scores = {"a": [1, 1, 0, 0], "b": [1, 0, 0, 0], "c": [0, 0, 1, 0.5]}
    for seed, (name, each) in enumerate(scores.items()):
        write_run(tmp_path / name, {"ultrafeedback": from_scores(each)}, seed=seed)
    found = load([tmp_path])
    table, matrix, labels = pair_statistics.agreement(sets_of_pairs(found, "UltraFeedback"))
    assert labels == ["EX-RM 0", "EX-RM 1", "EX-RM 2"]
    assert matrix.tolist() == [[1, 0.75, 0], [0.75, 1, 0.25], [0, 0.25, 1]]
    assert table.loc["a", "b"] == 0.75


def test_agreement_of_many_runs_is_averaged_over_seeds_without_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(pair_statistics, "MOST_RUNS_IN_MATRIX", 3)
    for type_name, each in {"explicit": [[1, 1, 0, 0], [1, 0, 0, 0]], "implicit": [[0, 0, 1, 1], [0, 0, 1, 1]]}.items():
        for seed, scores in enumerate(each):
            write_run(
                tmp_path / f"{type_name}{seed}", {"ultrafeedback": from_scores(scores)}, settings=type_name, seed=seed
            )
    found = load([tmp_path])
    _, matrix, labels = pair_statistics.agreement(sets_of_pairs(found, "UltraFeedback"))
    assert labels == ["EX-RM", "IM-RM"]
    assert matrix.tolist() == [[0.75, 0.125], [0.125, 1.0]]


def test_the_most_confidently_wrong_pairs_come_first(tmp_path):
    margins = [3.0, -1.0, -4.0, 2.0, -2.0]
    rewards = np.stack([margins, np.zeros(5)], axis=1)
    texts = {
        "ultrafeedback": {column: [f"{column} {at}" for at in range(5)] for column in ("prompt", "chosen", "rejected")}
    }
    texts["ultrafeedback"]["prompt"][2] = "<script>alert(1)</script>"
    write_run(tmp_path / "run", {"ultrafeedback": rewards}, texts=texts)
    found = load([tmp_path])
    (texts_of_set,) = wrong_pairs(found, sets_of_pairs(found, "UltraFeedback")[0])
    sd = np.std(rewards, ddof=1)
    assert [heading for heading, _ in texts_of_set.entries] == [
        f"Pair {at}: EX-RM {signed(margins[at] / sd, 2)}" for at in (2, 4, 1)
    ]
    html = page("x", [Section("s", [texts_of_set])])
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script" not in html


# --- figures -------------------------------------------------------------------------------------------------------


def test_accuracy_by_epoch_draws_means_over_models_and_seeds(runs):
    figure = figures.accuracy_by_epoch(runs.metrics)
    panel = next(axis for axis in figure.axes if axis.get_title(loc="left") == "UF")
    lines = {line.get_color(): line for line in panel.lines if line.get_marker() != "None"}
    explicit = lines["#0072b2"]
    # Epochs 0 to 2 are of the history; epoch 5 is the final state.
    assert list(explicit.get_xdata()) == [0, 1, 2, 5]
    assert list(explicit.get_ydata()) == pytest.approx([0.5, 110.5 / 200, 120.5 / 200, 0.765])
    names = [text.get_text() for text in panel.texts]
    assert sorted(names) == ["EX-RM", "IM-RM"]


def test_win_rate_bars_are_as_wide_as_the_rates(runs):
    rates = win_rates(compare(runs, "UltraFeedback", "EX-RM"), "category")
    axis = figures.win_rates(rates, "EX-RM").axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in axis.containers]
    assert widths == [[25.0, 37.5], [50.0, 62.5], [25.0, 0.0]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["In-Distribution", "Token-Level Shift"]


def test_bars_by_model_have_the_accuracies_and_the_deviation_over_seeds(runs):
    figure = figures.accuracy_bars(runs.final, "model")
    panel = next(axis for axis in figure.axes if axis.get_title(loc="left") == "Llama-3.2-1B-Instruct")
    bars = [container for container in panel.containers if hasattr(container, "patches")]
    assert [bar.get_height() for bar in bars[0]] == pytest.approx([151 / 200, 130 / 200, 110 / 200])
    assert [bar.get_height() for bar in bars[1]] == pytest.approx([140 / 200, 120.5 / 200, 110 / 200])
    segments = bars[0].errorbar.lines[2][0].get_segments()
    assert segments[1][1][1] - segments[1][0][1] == pytest.approx(2 * 20 / 200 / math.sqrt(2))


def test_hyperparameters_and_variants_have_figures_of_their_own(grid, tmp_path):
    right = {"ultrafeedback": 150, "ultrafeedback_french": 100, "ultrafeedback_spanish": 90}
    sets = {name: with_accuracy(number, PAIRS) for name, number in right.items()}
    for seed in (0, 1):
        common = {"model": LLAMA, "seed": seed}
        for rate in (5e-7, 5e-6):
            for type_name in ("explicit", "implicit"):
                folder = tmp_path / f"{type_name}_{rate}_{seed}"
                write_run(folder, sets, settings=type_name, options={"learning_rate": rate}, **common)
        for beta in (0.005, 0.1):
            write_run(tmp_path / f"beta{beta}_{seed}", sets, settings=SETTINGS["implicit"] | {"beta": beta}, **common)
        write_run(tmp_path / f"mean_{seed}", sets, settings=SETTINGS["explicit"] | {"pooling": "mean"}, **common)
        no_reference = SETTINGS["implicit"] | {"beta": 1.0, "reference": "none"}
        write_run(tmp_path / f"none_{seed}", sets, settings=no_reference, **common)
    found = load([grid, tmp_path])
    assert not found.problems
    assert found.runs["main"].sum() == 8  # the grid alone
    assert set(found.runs.loc[~found.runs["standard"], "variant"]) == {"EX-RM (all repr)", "IM-RM (no ref)"}
    comparison = compare(found, "UltraFeedback", "EX-RM")
    assert (
        cell(paper_tables.by_set(comparison).data, dataset="UF", reward_model="EX-RM", metric="accuracy")["models"] == 2
    )
    shown = [*sections._sweeps(found, "UltraFeedback"), *sections._variants(found, "UltraFeedback")]
    items = {item.name: item for item in shown}
    assert list(items) == [
        "ultrafeedback_accuracy_by_learning_rate",
        "ultrafeedback_accuracy_by_beta",
        "ultrafeedback_accuracy_by_hyperparameters",
        "ultrafeedback_accuracy_by_variant",
    ]
    panel = items["ultrafeedback_accuracy_by_learning_rate"].figure.axes[0]
    explicit = next(line for line in panel.lines if line.get_color() == "#0072b2")
    assert list(explicit.get_xdata()) == [5e-7, 1e-6, 5e-6]
    assert list(explicit.get_ydata()) == pytest.approx([0.75, 151 / 200, 0.75])
    panel = items["ultrafeedback_accuracy_by_beta"].figure.axes[0]
    implicit = next(line for line in panel.lines if line.get_color() == "#d55e00")
    assert list(implicit.get_xdata()) == [0.005, 0.01, 0.1]
    assert list(implicit.get_ydata()) == pytest.approx([0.75, 140 / 200, 0.75])
    level = next(line for line in panel.lines if line.get_color() == "#0072b2")
    assert list(level.get_ydata()) == pytest.approx([151 / 200] * 2)
    variants = items["ultrafeedback_accuracy_by_variant"].figure
    assert [text.get_text() for text in variants.legends[0].texts] == [
        "EX-RM", "EX-RM (all repr)", "IM-RM", "IM-RM (no ref)",
    ]  # fmt: skip


def test_labels_are_moved_apart_and_stay_inside():
    assert spread_out([0.2, 0.8], 0.1, 0, 1) == [0.2, 0.8]
    assert spread_out([0.5, 0.52], 0.1, 0, 1) == pytest.approx([0.46, 0.56])
    assert spread_out([0.99, 1.0], 0.1, 0, 1) == pytest.approx([0.85, 0.95])
    assert spread_out([0.3, 0.35, 0.42], 0.1, 0, 1) == pytest.approx([0.3567 - 0.1, 0.3567, 0.3567 + 0.1], abs=1e-3)


# --- Persona and Hamiltonian ---------------------------------------------------------------------------------------


def test_a_persona_report_has_the_table_of_figure_4(tmp_path):
    right = {"explicit": {"test": 40, "paraphrased_test": 40}, "implicit": {"test": 40, "paraphrased_test": 1}}
    categories = {"test": "in-distribution", "paraphrased_test": "token-level shift"}
    for type_name, each in right.items():
        for seed in (0, 1):
            sets = {name: with_accuracy(number - (seed if number == 1 else 0), 40) for name, number in each.items()}
            write_run(
                tmp_path / f"{type_name}{seed}",
                sets,
                settings=type_name,
                seed=seed,
                training="persona",
                categories=categories,
            )
    found = load([tmp_path])
    assert found.settings == ["Persona"]
    table = paper_tables.accuracy_table(found, "Persona")
    assert table.header == ["Evaluated on", "EX-RM", "IM-RM"]
    texts = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert texts["Test"] == ["1.000 ± 0.000", "1.000 ± 0.000"]
    assert texts["Paraphrased test"] == ["1.000 ± 0.000", "0.013 ± 0.018"]  # (1/40 + 0) / 2, (1/40) / sqrt(2)
    assert texts["Training set"] == ["0.999 ± 0.000", "0.999 ± 0.000"]
    built, _ = build.build(found)
    assert built[0].items[0].name == "persona_accuracy"


# --- what cannot be used -------------------------------------------------------------------------------------------


def damaged(folder: Path, **changes) -> None:
    content = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(content | changes))


def test_bad_runs_are_listed_and_left_out(tmp_path):
    good = {
        "ultrafeedback": with_accuracy(3, 5),
        "ultrafeedback_french": with_accuracy(2, 5),
        "one": with_accuracy(1, 1),
    }
    names = [
        "good0",
        "good1",
        "good2",
        "half",
        "truncated",
        "format",
        "list",
        "missing",
        "broken",
        "nan",
        "null",
        "disagrees",
    ]
    for seed, name in enumerate(names):
        write_run(tmp_path / name, good, seed=seed)
    write_run(tmp_path / "other_sets", {"ultrafeedback": with_accuracy(3, 5)}, seed=50)
    write_run(tmp_path / "other_pairs", good, seed=51)
    write_run(tmp_path / "again", good, seed=0)
    write_run(tmp_path / "other_epochs", good, seed=52, options={"num_train_epochs": 3})
    write_run(tmp_path / "best", good, seed=53)
    recipe = json.loads((tmp_path / "best" / "run.json").read_text())["recipe"]
    damaged(tmp_path / "best", recipe=recipe | {"evaluation": {"save_best": "ultrafeedback.accuracy"}})

    (tmp_path / "half" / "run.json").unlink()
    (tmp_path / "half" / "recipe.yaml").write_text("base: {}")
    text = (tmp_path / "truncated" / "run.json").read_text()
    (tmp_path / "truncated" / "run.json").write_text(text[: len(text) // 2])
    damaged(tmp_path / "format", format=2)
    (tmp_path / "list" / "run.json").write_text("[]")
    (tmp_path / "missing" / "rewards" / "ultrafeedback.parquet").unlink()
    (tmp_path / "broken" / "rewards" / "ultrafeedback.parquet").write_bytes(b"PAR1")
    table = pq.read_table(tmp_path / "nan" / "rewards" / "ultrafeedback.parquet").to_pandas()
    table.loc[1, "chosen_reward"] = math.nan
    table.to_parquet(tmp_path / "nan" / "rewards" / "ultrafeedback.parquet")
    metrics = json.loads((tmp_path / "null" / "run.json").read_text())["metrics"]
    damaged(tmp_path / "null", metrics=metrics | {"ultrafeedback": metrics["ultrafeedback"] | {"accuracy": None}})
    damaged(tmp_path / "disagrees", metrics=metrics | {"ultrafeedback": metrics["ultrafeedback"] | {"accuracy": 0.9}})
    data = json.loads((tmp_path / "other_pairs" / "run.json").read_text())["data"]
    damaged(tmp_path / "other_pairs", data=data | {"ultrafeedback": data["ultrafeedback"] | {"fingerprint": "x"}})

    found = load([tmp_path, tmp_path / "nowhere"])
    assert sorted(found.runs["run"]) == ["again", "good1", "good2"]  # again is read before good0, which repeats it
    reasons = {Path(problem.run).name: problem.reason for problem in found.problems if problem.set is None}
    expected = {
        "half": "has not finished",
        "truncated": "cannot be read",
        "format": "format 2",
        "list": "format None",
        "missing": "rewards/ultrafeedback.parquet is missing",
        "broken": "rewards/ultrafeedback.parquet cannot be read",
        "nan": "1 of 5 pairs of ultrafeedback have a reward that is not finite",
        "null": "metrics.ultrafeedback.accuracy",
        "disagrees": "is 0.9000 in run.json, but 0.6000 in rewards/ultrafeedback.parquet",
        "other_sets": "does not evaluate on",
        "other_pairs": "contains other pairs",
        "good0": "repeats again",
        "other_epochs": "num_train_epochs is 3, but 5 in the other runs",
        "best": "but None in the other runs of its language model",
        "nowhere": "is not a directory",
    }
    assert set(reasons) == set(expected)
    for name, part in expected.items():
        assert part in reasons[name], (name, reasons[name])
    assert {problem.set for problem in found.problems if problem.set} == {"one"}
    assert set(found.final["set"]) == {"ultrafeedback", "ultrafeedback_french"}

    problems = build.report([tmp_path], tmp_path / "report")
    html = (tmp_path / "report" / "index.html").read_text()
    assert len(problems) == 14 + 3
    for name, part in expected.items():
        if name not in ("nowhere", "truncated", "broken"):
            assert part in html
    left_out = pd.read_csv(tmp_path / "report" / "tables" / "left_out.csv")
    assert len(left_out) == len(problems)


def test_runs_that_select_among_other_evaluations_are_not_repetitions(tmp_path):
    """Evaluations without a selection change no model; `every_epoch` is another name of `every_epochs: 1`."""
    best = {"save_best": "mine.accuracy"}
    evaluations = {
        "a": best | {"every_epoch": True},
        "b": best | {"every_epochs": 1},
        "other": best | {"every_steps": 5},
    }
    for seed, (name, evaluation) in enumerate(evaluations.items()):
        write_run(tmp_path / name, {"mine": with_accuracy(3, 5)}, categories={}, seed=seed)
        recipe = json.loads((tmp_path / name / "run.json").read_text())["recipe"]
        damaged(tmp_path / name, recipe=recipe | {"evaluation": evaluation})
    found = load([tmp_path])
    assert sorted(found.runs["run"]) == ["a", "b"]
    assert [(problem.run, "every_epochs is None, but 1" in problem.reason) for problem in found.problems] == [
        ("other", True)
    ]
    build.report([tmp_path], tmp_path / "report")
    assert "mine.accuracy; the numbers of a set that selects" in (tmp_path / "report" / "index.html").read_text()


def test_nothing_to_report_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RmkitError, match="contains no run"):
        build.report([tmp_path / "empty"], tmp_path / "report")
    assert not (tmp_path / "report").exists()
    write_run(tmp_path / "bad", {"ultrafeedback": with_accuracy(1, 2)}, record={"format": 9})
    with pytest.raises(RmkitError, match=r"No run to report.*format 9"):
        build.report([tmp_path / "bad"], tmp_path / "report")


def test_a_single_run_of_one_variant_makes_a_report(tmp_path):
    write_run(tmp_path / "run", {"mine": with_accuracy(3, 5)}, categories={}, record={})
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    content["recipe"]["lora"] = {"r": 16}
    (tmp_path / "run" / "run.json").write_text(json.dumps(content))
    assert build.report([tmp_path / "run"], tmp_path / "report") == []
    html = (tmp_path / "report" / "index.html").read_text()
    assert "EX-RM (LoRA)" in html
    assert "0.600" in html


def test_runs_without_texts_are_reported_without_them(tmp_path):
    for name in ("explicit", "implicit"):
        folder = write_run(tmp_path / name, {"ultrafeedback": with_accuracy(3, 5)}, settings=name)
        (folder / "examples" / "ultrafeedback.parquet").unlink()
    assert build.report([tmp_path], tmp_path / "report") == []
    assert "Pair 3: EX-RM" in (tmp_path / "report" / "index.html").read_text()


# --- results of explain and theory ----------------------------------------------------------------------------------


def test_generation_is_shown_with_verification(tmp_path):
    folder = write_run(tmp_path / "run", {"ultrafeedback": with_accuracy(3, 5)})
    (folder / "generation").mkdir()
    found = {
        "prompts": 5,
        "correct": 0.25,
        "prompts_with_a_correct_one": 0.4,
        "log_probs": {"chosen": -30.5, "chosen_reference": -28.0},
    }
    (folder / "generation" / "ultrafeedback.json").write_text(json.dumps(found))
    (folder / "generation" / "other.json").write_text("{")
    (table,), problems = attachments.generations(load([folder]))
    row = table.data.iloc[0]
    assert row["verification_accuracy"] == pytest.approx(3 / 5)
    assert (row["correct_samples"], row["prompts_with_a_correct_one"]) == (0.25, 0.4)
    assert (row["log_prob_of_planted"], row["reference_log_prob_of_planted"]) == (-30.5, -28.0)
    assert [problem.reason.split(" ")[0] for problem in problems] == ["generation/other.json"]
    assert "Verification and generation" in page("x", [Section("s", [table])])


def test_explanations_and_theory_are_shown(tmp_path):
    folder = write_run(tmp_path / "run", {"ultrafeedback": with_accuracy(3, 5)})
    explained = {
        "prompt": "Is it <b>so</b>?",
        "response": "Yes it is",
        "tokens": ["Yes", " <i>it", " is"],
        "implicit_terms": [0.1, -0.4, 0.2],
        "explicit_prefix_rewards": [5.0, 5.5, 5.25],
    }
    for name, content in {
        "a": explained,
        "b": explained | {"implicit_terms": [1.0]},
        "c": {"tokens": 3},
    }.items():
        (folder / "explain").mkdir(exist_ok=True)
        (folder / "explain" / f"{name}.json").write_text(json.dumps(content))
    (folder / "theory").mkdir()
    proof = {"pairs": [1, 2], "residual": 0.25}
    theory = {"theory": "separator", "separable": False, "certificate": proof, "figures": ["../../sep.png", "x.pdf"]}
    (folder / "theory" / "sep.json").write_text(json.dumps(theory))
    (folder / "theory" / "sep.png").write_bytes(b"\x89PNG")
    (tmp_path / "other.json").write_text(json.dumps({"theory": "something else"}))
    found = load([folder])
    items, problems = attachments.explanations(found)
    assert [item.macro for item in items] == ["tokens"]
    assert [problem.reason.split(" ")[0] for problem in problems] == ["explain/b.json", "explain/c.json"]
    implicit, explicit = items[0].rows
    assert [value for _, value, _ in implicit[1]] == [0.1, -0.4, 0.2]
    assert [shade for _, _, shade in implicit[1]] == pytest.approx([0.25, -1.0, 0.5])
    assert [value for _, value, _ in explicit[1]] == pytest.approx([5.0, 0.5, -0.25])
    assert [shade for _, _, shade in explicit[1]] == pytest.approx([0.0, 1.0, -0.5])  # the first would outweigh all
    items, problems = attachments.theory(found, [tmp_path / "other.json"])
    assert [item.macro for item in items] == ["table", "picture"]
    assert {row[0].text: row[1].text for row in items[0].rows} == {"contradicting pairs": "2", "residual": "0.25"}
    assert items[1].source.startswith("data:image/png;base64,")
    assert problems == [
        Problem(str(tmp_path / "other.json"), "is not a result of rmkit theory: no entry 'something else'")
    ]
    html = page("x", [Section("s", [*items, *attachments.explanations(found)[0]])])
    assert " &lt;i&gt;it</span>" in html


# --- the three forms, the page, the command ------------------------------------------------------------------------


def test_a_theory_result_is_shown_as_rmkit_theory_prints_it(tmp_path):
    growth = [{"vertices": 4, "exponent": None}]
    case = {"vertices": 4, "reference_mass": 0.1, "mass": 0.2, "bound": 0.3, "slack": 1.5, "margin": 1.0}
    content = {"theory": "verification", "delta": 1.0, "cases": [case, case], "growth": growth}
    (tmp_path / "t.json").write_text(json.dumps(content))
    write_run(tmp_path / "run", {"ultrafeedback": with_accuracy(3, 5)}, record={"theory": {"dynamics": {"before": {}}}})
    items, problems = attachments.theory(load([tmp_path / "run"]), [tmp_path / "t.json"])
    assert [cell.text for cell in items[0].rows[0]][:5] == ["4", "2", "0.1", "0.2", "0.3"]
    assert items[0].title.startswith("A verifier with margin 1 (Theorem 1)")
    assert [problem.reason for problem in problems] == ["run.json: theory.dynamics cannot be used: no entry 'errors'"]


def test_a_table_as_markdown_latex_and_csv():
    rows = [[Cell("a_b|c & 5%", number=False), Cell("0.75 ± 0.01", "paper 0.76\n−1.0 SE", bold=True)]]
    table = Table("some_name", "Title.", ["Dataset", "EX-RM"], rows, pd.DataFrame({"value": [0.7512345]}), "Note $x$.")
    markdown = table.to_markdown().splitlines()
    assert markdown[0] == "**Title.** Note $x$."
    assert markdown[3] == "| --- | ---: |"
    assert markdown[4] == r"| a\_b\|c & 5% | **0.75 ± 0.01** (paper 0.76; −1.0 SE) |"
    latex = table.to_latex()
    assert r"a\_b|c \& 5\%" in latex
    assert r"\shortstack[r]{\textbf{0.75 $\pm$ 0.01}\\ {\scriptsize paper 0.76}\\ {\scriptsize $-$1.0 SE}}" in latex
    assert r"\caption{Title. Note \$x\$.}" in latex
    assert latex.count("{") == latex.count("}")
    assert table.to_csv() == "value\n0.7512345\n"


def test_numbers_are_rounded_with_a_true_minus():
    assert (number(-0.1234), number(math.nan), number(-0.0)) == ("−0.123", "–", "0.000")
    assert (signed(-0.04), signed(0.06), signed(-1.26)) == ("0.0", "+0.1", "−1.3")
    assert (spread(0.5, 0.01), spread(0.5, math.nan)) == ("0.500 ± 0.010", "0.500")


class _Links(HTMLParser):
    """All links, tags and ids of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("href", "src", "xlink:href", "action", "poster", "data"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)


def test_the_page_is_self_contained(grid, tmp_path):
    assert build.report([grid], tmp_path / "report") == []
    html = (tmp_path / "report" / "index.html").read_text()
    found = _Links()
    found.feed(html)
    assert found.links
    assert all(link.startswith(("#", "data:image/")) for link in found.links)
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert not {"script", "iframe", "link", "object", "embed", "base"} & set(found.tags)
    assert not re.search(r"url\((?!#)", html)
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    for each in (tmp_path / "report" / "figures").glob("*.svg"):
        ElementTree.parse(each)
    stems = {each.stem for each in (tmp_path / "report" / "figures").iterdir()}
    assert "ultrafeedback_win_rates_ex_rm" in stems
    for stem in stems:
        assert (tmp_path / "report" / "figures" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    for each in (tmp_path / "report" / "tables").glob("*.csv"):
        assert each.with_suffix(".md").exists()
        assert each.with_suffix(".tex").exists()
    assert "0.765 ± 0.007" in html  # UF, EX-RM
    assert "paper 0.752 ± 0.009" in html


def test_svgs_take_their_colours_from_the_page(runs):
    svg = str(Drawing("x", "X", figures.accuracy_by_epoch(runs.metrics)).svg)
    ElementTree.fromstring(svg)
    assert "currentColor" in svg
    assert "var(--type-1, #0072b2)" in svg
    assert "<?xml" not in svg


def test_texts_and_names_are_escaped_everywhere(tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    texts = {"ultrafeedback": {column: [bad] * 5 for column in ("prompt", "chosen", "rejected")}}
    write_run(tmp_path / "a&b <i>", {"ultrafeedback": with_accuracy(3, 5)}, model=f"org/{bad} $x_1$", texts=texts)
    build.report([tmp_path / "a&b <i>"], tmp_path / "report")
    found = _Links()
    found.feed((tmp_path / "report" / "index.html").read_text())
    assert "img" not in found.tags
    assert "i" not in found.tags
    assert isinstance(page(bad, [Section(bad, [Texts(bad, [(bad, {bad: bad})], bad)], bad, bad)], bad, {bad: bad}), str)
    found.feed(page(bad, [Section(bad, [Texts(bad, [(bad, {bad: bad})], bad)], bad, bad)], bad, {bad: bad}))
    assert "img" not in found.tags


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(report_command)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_command_writes_report_and_published_numbers(one_run, tmp_path, command):
    done = command(one_run, "--output", tmp_path / "report", "--published", tmp_path / "paper.csv")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "paper.csv").read_text() == to_csv()
    assert sorted(each.name for each in (tmp_path / "report").iterdir()) == ["figures", "index.html", "tables"]
    stale = tmp_path / "report" / "tables" / "stale.md"
    stale.write_text("x")
    assert command(one_run, "--output", tmp_path / "report").exit_code == 0
    assert not stale.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "Nothing to do"), (["GRID"], "--output is missing"), (["nowhere", "--output", "OUT"], "No run to report")],
)
def test_mistakes_exit_with_2_and_a_remedy(one_run, tmp_path, command, arguments, message, capfd):
    places = {"GRID": str(one_run), "OUT": str(tmp_path / "out")}
    done = command(*(places.get(each, each) for each in arguments))
    assert done.exit_code == 2
    assert message in done.output + capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_not_replaced(one_run, tmp_path, command):
    (tmp_path / "thesis.tex").write_text("precious")
    done = command(one_run, "--output", tmp_path)
    assert done.exit_code == 2
    assert "thesis.tex" in done.output
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_report_needs_no_torch_and_its_help_no_pandas(one_run, tmp_path):
    code = f"""
import sys
from rmkit.report import build
build.report([{str(one_run)!r}], __import__("pathlib").Path({str(tmp_path / "report")!r}))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    code = """
import sys
import rmkit.commands.report
slow = {"torch", "pandas", "matplotlib", "scipy", "numpy", "jinja2"} & set(sys.modules)
assert not slow, slow
"""
    subprocess.run([sys.executable, "-c", code], check=True)
