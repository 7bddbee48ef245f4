"""Bad input on the command line: exit code 2, one line of cause and one of remedy, no traceback, nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import typer
import yaml
from conftest import REPOSITORY
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import rmkit.train as training
from rmkit import load_reward_model
from rmkit.cli import app

PAIRS = [
    {"prompt": "How do I bake bread?", "chosen": "Mix flour and water.", "rejected": "No."},
    {"prompt": "why?", "chosen": "Yes", "rejected": "Wait, why? 12"},
    {"prompt": "dog?", "chosen": "The lazy dog", "rejected": "The quick brown fox"},
    {"prompt": "1 + 1", "chosen": "30 = 42", "rejected": "12"},
]
BARS = re.compile(r"\d+%\||^\s*$")


@pytest.fixture(scope="module")
def shelf(models, tmp_path_factory):
    """Model folders, whole and broken ones."""
    folder = tmp_path_factory.mktemp("shelf")
    qwen = models["qwen2"]
    tiny.save_language_model(folder / "other", "qwen2", seed=3)
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_pretrained(qwen, num_labels=1)
    classifier.config.pad_token_id = 0
    classifier.save_pretrained(folder / "explicit")
    tiny.tokenizer("qwen2").save_pretrained(folder / "explicit")

    def broken(name, remove=(), **written):
        shutil.copytree(qwen, folder / name)
        for pattern in remove:
            for file in (folder / name).glob(pattern):
                file.unlink()
        for file, content in written.items():
            (folder / name / file.replace("__", ".")).write_bytes(content)

    broken("copy")
    broken("no_weights", ["*.safetensors"])
    broken("no_config", ["config.json"])
    broken("no_tokenizer", ["tokenizer*", "chat_template*"])
    broken("pickled", ["*.safetensors"], pytorch_model__bin=b"x")
    broken("half_weights", model__safetensors=(qwen / "model.safetensors").read_bytes()[:-999])
    broken("no_json", config__json=b"{")
    broken("half_record", reward_model__json=b'{"reward_mo')
    broken("bytes_record", reward_model__json=b"\xff\xfe")
    broken("other_record", reward_model__json=b'{"reward_model": {"type": "explict"}}')
    broken("new_record", reward_model__json=b'{"format": 99, "reward_model": {"type": "explicit"}}')
    (folder / "empty").mkdir()
    (folder / "file").write_text("x")
    shutil.copytree(folder / "explicit", folder / "three_labels")
    three = AutoModelForSequenceClassification.from_pretrained(qwen, num_labels=3)
    three.save_pretrained(folder / "three_labels")
    for name, path in models.items():
        (folder / name).symlink_to(path)
    return folder


@pytest.fixture
def place(shelf, tmp_path, monkeypatch):
    """An empty working directory with pairs and links to the models."""
    for model in shelf.iterdir():
        (tmp_path / model.name).symlink_to(model)
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield tmp_path
    os.environ.clear()  # DeepSpeed is told in it how many processes there are
    os.environ.update(before)


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def refused(place, command, *arguments):
    """Run what must be refused; the cause and the remedy."""
    before = contents(place)
    result = run(command, *arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if not BARS.search(line)]
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  fix: ")
    assert contents(place) == before, "something was written or removed"
    return lines[0], lines[1]


# --- rmkit score ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        # models
        (["no_weights", "--type", "generative"], "no_weights: it has neither model.safetensors"),
        (["pickled", "--type", "generative"], "pickled: it has neither model.safetensors"),
        (["half_weights", "--type", "generative"], "half_weights/model.safetensors cannot be read"),
        (["no_config"], "no_config is not a loadable model"),
        (["no_config", "--type", "generative"], "no_config"),
        (["no_json"], "no_json/config.json cannot be read"),
        (["no_tokenizer", "--type", "explicit"], "tokenizer of no_tokenizer knows no words"),
        (["empty"], "empty is not a loadable model"),
        (["empty", "--type", "explicit"], "No tokenizer could be loaded from empty"),
        (["file", "--type", "explicit"], "file"),
        (["nothing"], "nothing is not a loadable model"),
        (["nobody/nothing", "--type", "generative"], "nobody/nothing"),
        (["three_labels"], "three_labels is a classifier with 3 labels"),
        (["half_record"], "half_record/reward_model.json: content"),
        (["bytes_record"], "bytes_record/reward_model.json: content"),
        (["other_record"], "other_record/reward_model.json: reward_model"),
        (["new_record"], "new_record/reward_model.json has format 99"),
        # types and options
        (["qwen2"], "qwen2 is a language model and has no reward_model.json"),
        (["qwen2", "--type", "explicit"], "qwen2 has no reward head"),
        (["qwen2", "--type", "explict"], "reward_model.type is 'explict'"),
        (["qwen2", "--type", "generative", "--dtype", "float16"], "--dtype float16"),
        (["qwen2", "--type", "generative", "--beta", "1"], "reward_model.beta is not a known key"),
        (["explicit", "--pooling", "maen"], "reward_model.pooling is 'maen'"),
        (["explicit", "--reference", "none"], "reward_model.reference is not a known key"),
        (
            ["qwen2", "--type", "generative", "--chat-template", "nothing.jinja"],
            "Chat template not found: nothing.jinja",
        ),
        (["qwen2", "--type", "generative", "--chat-template", "pairs.jsonl"], "The chat template of qwen2 drops"),
        # references
        (["qwen2", "--type", "implicit"], "The reference of qwen2 is unknown"),
        (["qwen2", "--type", "implicit", "--reference", "none"], "beta must be given"),
        (["qwen2", "--type", "implicit", "--reference", "none", "--beta", "0"], "reward_model.beta is 0.0"),
        (["qwen2", "--type", "implicit", "--reference", "none", "--beta", "nan"], "reward_model.beta is nan"),
        (["qwen2", "--type", "implicit", "--reference", "qwen2"], "reference qwen2 is identical"),
        (["qwen2", "--type", "implicit", "--reference", "./qwen2/"], "reference ./qwen2/ is identical"),
        (["qwen2", "--type", "implicit", "--reference", "copy"], "reference copy is identical"),
        (["qwen2", "--type", "implicit", "--reference", "gemma2"], "gemma2 has a different tokenizer"),
        (["qwen2", "--type", "implicit", "--reference", "nothing"], "The reference of qwen2 is missing: nothing"),
        (["qwen2", "--type", "implicit", "--reference", "no_weights"], "No model could be loaded from no_weights"),
        (["qwen2", "--type", "implicit", "--reference", "base"], "The base of qwen2 is unknown"),
        # what remains
        (["explicit", "--max-length", "3"], "no pair is left (4 longer than 3 tokens)"),
    ],
)
def test_score_refuses(place, arguments, cause):
    model, *options = arguments
    error, _ = refused(place, app, "score", model, "pairs.jsonl", *options)
    assert cause in error


@pytest.mark.parametrize("data", ["nothing.jsonl", "nobody/nothing", "nothing", "../../nothing", "empty", "file"])
def test_score_refuses_data_before_it_loads_a_model(place, monkeypatch, data):
    monkeypatch.setattr("rmkit.api.load_reward_model", lambda *_, **__: pytest.fail("a model was loaded"))
    error, _ = refused(place, app, "score", "explicit", data)
    assert data.split("/")[-1] in error


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"chosen": ""}, "row 1 has an empty chosen"),
        ({"prompt": None}, "row 1, column prompt holds NoneType"),
        ({"rejected": ["No"]}, "row 1, column rejected holds list"),
        ({"margin": float("nan")}, "row 1 has the margin nan"),
    ],
)
def test_score_refuses_bad_rows(place, row, cause):
    (place / "bad.jsonl").write_text(json.dumps(PAIRS[0] | {"margin": 0.5}) + "\n" + json.dumps(PAIRS[1] | row))
    error, _ = refused(place, app, "score", "explicit", "bad.jsonl")
    assert cause in error


@pytest.mark.parametrize("output", ["empty", "file/rewards.parquet"])
def test_score_refuses_an_output_that_cannot_be_a_file(place, output):
    error, _ = refused(place, app, "score", "explicit", "pairs.jsonl", "--output", output)
    assert output in error


@pytest.mark.parametrize("output", ["empty", "file/rewards.parquet"])
def test_score_checks_the_output_before_it_scores(place, monkeypatch, output):
    monkeypatch.setattr("rmkit.api.load_reward_model", lambda *_, **__: pytest.fail("a model was loaded"))
    refused(place, app, "score", "explicit", "pairs.jsonl", "--output", output)


def test_rewards_that_are_not_finite_are_not_written(place, shelf):
    """Weights that are not finite are refused before; here config.json makes finite ones give NaN."""
    shutil.copytree(shelf / "explicit", place / "diverged")
    config = json.loads((place / "diverged" / "config.json").read_text())
    (place / "diverged" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": float("nan")}))
    error, _ = refused(place, app, "score", "diverged", "pairs.jsonl")
    assert "not finite" in error


@pytest.mark.parametrize(
    "arguments",
    [["score"], ["score", "explicit"], ["scor"], ["score", "explicit", "pairs.jsonl", "--nope"], ["train"]]
    + [["score", "explicit", "pairs.jsonl", option, value] for option, value in [("--batch-size", 0), ("--beta", "x")]],
)
def test_wrong_usage_also_exits_with_2(place, arguments):
    before = contents(place)
    result = run(app, *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert contents(place) == before


def test_score_reports_the_pairs_that_it_leaves_out(place):
    rows = [*PAIRS, PAIRS[0] | {"rejected": PAIRS[0]["chosen"]}, PAIRS[1] | {"chosen": "Yes " * 99}]
    (place / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run(app, "score", "explicit", "some.jsonl", "--max-length", 90, "--output", "deep/er/rewards.parquet")
    assert result.exit_code == 0, result.output
    assert "left out 1 identical responses, 1 longer than 90 tokens" in result.stdout
    written = pd.read_parquet("deep/er/rewards.parquet")
    assert list(written) == ["index", "chosen_reward", "rejected_reward"]
    assert written["index"].tolist() == [0, 1, 2, 3]
    assert written["chosen_reward"].dtype == np.float64


def test_score_reports_the_date_that_stands_for_todays(place):
    arguments = ["score", "llama", "pairs.jsonl", "--type", "implicit", "--reference", "none", "--beta", 1, "--output"]
    said = run(app, *arguments, "default.parquet")
    assert said.exit_code == 0, said.output
    assert (
        "prints today's date: 26 Jul 2024 is used instead (another: base.date_string or --date-string)." in said.stdout
    )
    silent = run(app, *arguments, "given.parquet", "--date-string", "26 Jul 2024")
    assert "today's date" not in silent.stdout
    assert run(app, *arguments, "other.parquet", "--date-string", "30 Jul 2024").exit_code == 0
    default, given, other = (pd.read_parquet(f"{name}.parquet") for name in ("default", "given", "other"))
    assert default.equals(given)
    assert not default.equals(other)


def test_score_with_a_template_from_a_file(place, shelf):
    """As if the model had that template, to the bit; every command that loads a model takes the option."""
    template = tiny.CHATML.replace("<|im_start|>", "<|im_start|>the ")
    (place / "own.jinja").write_text(template)
    shutil.copytree(shelf / "explicit", place / "edited")
    (place / "edited" / "chat_template.jinja").write_text(template)
    assert run(app, "score", "explicit", "pairs.jsonl", "--output", "own.parquet").exit_code == 0
    option = ["--chat-template", "own.jinja", "--output", "given.parquet"]
    assert run(app, "score", "explicit", "pairs.jsonl", *option).exit_code == 0
    assert run(app, "score", "edited", "pairs.jsonl", "--output", "edited.parquet").exit_code == 0
    own, given, edited = (pd.read_parquet(f"{name}.parquet") for name in ("own", "given", "edited"))
    assert given.equals(edited)
    assert not given.equals(own)
    for command in ("evaluate", "explain"):
        assert "--chat-template" in run(app, command, "--help").output


def test_score_takes_columns_and_says_the_format(place):
    rows = [{"system": "Be brief.", "question": pair["prompt"], **pair, "prompt": 3} for pair in PAIRS]
    (place / "named.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run(app, "score", "explicit", "named.jsonl", "--column", "prompt=question")
    assert result.exit_code == 0, result.output
    assert "named.jsonl: standard, prompt from question, with system" in result.stdout
    result = run(app, "score", "explicit", "named.jsonl", "--column", "prompt=system,question")
    assert "named.jsonl: standard, prompt from system + question" in result.stdout
    for wrong in (["prompt"], ["prompt=question", "prompt=system"]):
        options = [option for each in wrong for option in ("--column", each)]
        error, _ = refused(place, app, "score", "explicit", "named.jsonl", *options)
        assert "--column is not FIELD=COLUMN" in error


def test_score_reads_ratings_as_pairs(place):
    rows = [
        {"prompt": pair["prompt"], "texts": [pair["rejected"], "Wait", pair["chosen"]], "stars": [1, 2, 3]}
        for pair in PAIRS
    ]
    (place / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = ["--column", "responses=texts", "--column", "scores=stars"]
    assert run(app, "score", "explicit", "pairs.jsonl", "--output", "plain.parquet").exit_code == 0
    result = run(app, "score", "explicit", "rated.jsonl", *columns, "--output", "rated.parquet")
    assert result.exit_code == 0, result.output
    assert "rated.jsonl: texts by stars, pairing best_worst, standard" in result.stdout
    plain, rated = pd.read_parquet("plain.parquet"), pd.read_parquet("rated.parquet")
    assert rated.equals(plain)
    result = run(app, "score", "explicit", "rated.jsonl", *columns, "--pairing", "all", "--output", "all.parquet")
    assert "texts by stars, pairing all (index = 3 * row + number), standard" in result.stdout
    every = pd.read_parquet("all.parquet")
    assert every["index"].tolist() == list(range(3 * len(PAIRS)))
    assert every["chosen_reward"][1::3].tolist() == plain["chosen_reward"].tolist()
    error, _ = refused(place, app, "score", "explicit", "pairs.jsonl", "--pairing", "all")
    assert "is not read as several responses per row" in error


def test_score_reads_templated_texts_where_asked(place):
    prompt = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    rows = [
        pair | {"prompt": prompt.format(pair["prompt"]), "chosen": f"{pair['chosen']}<|im_end|>\n"} for pair in PAIRS
    ]
    (place / "templated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    error, _ = refused(place, app, "score", "explicit", "templated.jsonl")
    assert "templated.jsonl: row 0, column prompt spells turns of a chat template" in error
    assert run(app, "score", "explicit", "pairs.jsonl", "--output", "plain.parquet").exit_code == 0
    for mode, same in (("read", True), ("text", False)):
        result = run(app, "score", "explicit", "templated.jsonl", "--templated", mode, "--output", f"{mode}.parquet")
        assert result.exit_code == 0, result.output
        assert pd.read_parquet(f"{mode}.parquet").equals(pd.read_parquet("plain.parquet")) is same
    spelled = pytest.warns(UserWarning, match="control tokens")
    with spelled, pytest.warns(UserWarning, match=r"prompts\[1\] or responses\[1\] spells turns of a chat template"):
        load_reward_model("explicit", "explicit").score(["Hi", rows[0]["prompt"]], ["Yes", "Yes"])


def test_a_suite_reads_sets_as_they_are_described(place):
    rows = [{"q": pair["prompt"], "answers": [pair["rejected"], pair["chosen"]], "ratings": [1, 2]} for pair in PAIRS]
    (place / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets = [{"name": "rated", "path": "rated.jsonl", "columns": {"prompt": "q"}, "pairing": "all", "templated": "read"}]
    (place / "rated.yaml").write_text(json.dumps({"sets": [*sets, {"name": "plain", "path": "pairs.jsonl"}]}))
    result = run(app, "evaluate", "explicit", "--suite", "rated.yaml", "--output", "evaluated")
    assert result.exit_code == 0, result.output
    assert (
        "rated: answers by ratings, pairing all, standard, prompt from q, texts with a chat template" in result.stdout
    )
    rated, plain = (pd.read_parquet(f"evaluated/rewards/{name}.parquet") for name in ("rated", "plain"))
    assert rated.equals(plain)
    sets[0] |= {"score": "best_of", "columns": {}}
    (place / "rated.yaml").write_text(json.dumps({"sets": sets}))
    error, _ = refused(place, app, "evaluate", "explicit", "--suite", "rated.yaml")
    assert "rated has pairing, which sets with score: best_of do not take" in error


def test_score_overwrites_its_own_output(place):
    for limit in (2, 3):
        assert run(app, "score", "explicit", "pairs.jsonl", "--limit", limit).exit_code == 0
        assert len(pd.read_parquet("rewards.parquet")) == limit
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_a_reference_needs_no_tokenizer_files(place, shelf):
    shutil.copytree(shelf / "other", place / "bare")
    for file in [*(place / "bare").glob("tokenizer*"), *(place / "bare").glob("chat_template*")]:
        file.unlink()
    options = ["--type", "implicit", "--beta", 1, "--output"]
    assert run(app, "score", "qwen2", "pairs.jsonl", *options, "a", "--reference", "bare").exit_code == 0
    assert run(app, "score", "qwen2", "pairs.jsonl", *options, "b", "--reference", "other").exit_code == 0
    assert pd.read_parquet("a").equals(pd.read_parquet("b"))


# --- rmkit evaluate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suite", "cause"),
    [
        ("nothing", "Suite not found: nothing"),
        ("empty.yaml", "a suite needs at least one set"),
        ("typo.yaml", "typo.yaml: sets.0.pth is not a known key"),
        ("twice.yaml", "two sets are named a"),
        ("gone.yaml", "gone.jsonl does not exist"),
    ],
)
def test_evaluate_refuses_suites(place, suite, cause):
    (place / "empty.yaml").write_text("sets: []")
    (place / "typo.yaml").write_text("sets: [{name: a, pth: pairs.jsonl}]")
    (place / "twice.yaml").write_text("sets: [{name: a, path: pairs.jsonl}, {name: a, path: pairs.jsonl}]")
    (place / "gone.yaml").write_text("sets: [{name: a, path: pairs.jsonl}, {name: b, path: gone.jsonl}]")
    error, _ = refused(place, app, "evaluate", "explicit", "--suite", suite)
    assert cause in error


# --- training ------------------------------------------------------------------------------------------------------

trainer = typer.Typer()
trainer.command()(training.main)


@pytest.fixture
def recipe(place):
    content = {
        "base": {"name": "qwen2"},
        "reward_model": {"type": "explicit"},
        "data": {"train": {"name": "train", "path": "pairs.jsonl"}},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": 2, "batch_size": 2},
        "output_dir": "run",
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(content))
    return "recipe.yaml"


@pytest.mark.parametrize(
    ("override", "cause"),
    [
        ("reward_model.poling=mean", "recipe.yaml: reward_model.poling is not a known key"),
        ("training.max_length=512", "recipe.yaml: training.max_length is decided by rmkit"),
        ("training.learning_rte=1", "recipe.yaml: training.learning_rte is not a field"),
        ("training.batch_size=3", "training.batch_size 3 is not a multiple of 1 processes x micro-batches of 2"),
        ("distributed=zero9", "Accelerate configuration not found: zero9"),
        ("distributed=zero3", "zero3 asks for"),
        ("output_dir=file", "output_dir file is a file"),
        ("output_dir=file/run", "output_dir file/run cannot be written"),
        ("nonsense", "'nonsense' is not of the form"),
    ],
)
def test_train_refuses_recipes(place, recipe, override, cause):
    error, _ = refused(place, trainer, recipe, override)
    assert cause in error


def test_train_refuses_a_misspelt_recipe(place, recipe):
    _, remedy = refused(place, trainer, "recipes.yaml")
    assert "Did you mean recipe.yaml?" in remedy


def test_rmkit_train_refuses_before_it_launches(place, recipe, monkeypatch):
    monkeypatch.setattr("rmkit.commands.train._launch", lambda *_: pytest.fail("something was launched"))
    assert "Recipe not found: recipes.yaml" in refused(place, app, "train", "recipes.yaml")[0]
    assert "zero9" in refused(place, app, "train", recipe, "distributed=zero9")[0]
    assert "nope" in refused(place, app, "train", recipe, "--config-file", "nope")[0]


def test_train_refuses_a_directory_that_holds_anything(place, recipe):
    (place / "run").mkdir()
    (place / "run" / "run.json").write_text("{}")
    assert "run holds another run" in refused(place, trainer, recipe)[0]
    (place / "run" / "thesis.tex").write_text("x")
    assert "holds thesis.tex, which no run writes" in refused(place, trainer, recipe, "--overwrite")[0]


LATER = [
    ("data.train.path=nothing.jsonl", "nothing.jsonl does not exist"),
    ("data.evaluation=[{name: test, path: nothing.jsonl}]", "nothing.jsonl does not exist"),
    ("data.train.path=empty", "cannot be read"),
    ("data.max_length=3", "no pair is left"),
    ("data={train: {name: train, path: pairs.jsonl}, max_length: 3, over_length: error}", "takes"),
    ("base.name=nothing", "No tokenizer could be loaded from nothing"),
    ("base.name=no_tokenizer", "knows no words"),
    ("base.chat_template=nothing.jinja", "Chat template not found: nothing.jinja"),
    ("reward_model={type: generative, yes_token: Correct}", "'Correct' is not one token"),
    ("reward_model={type: implicit, reference: gemma2}", "a different tokenizer"),
    ("base.name=no_weights", "No model could be loaded from no_weights"),
    ("base.name=half_weights", "half_weights/model.safetensors cannot be read"),
]


@pytest.mark.parametrize(("override", "cause"), LATER)
def test_train_reports_mistakes_in_data_and_models(place, recipe, override, cause):
    result = run(trainer, recipe, override)
    assert result.exit_code == 2, repr(result.exception)
    error, remedy = [line for line in result.stderr.splitlines() if not BARS.search(line)]
    assert error.startswith("error: ")
    assert cause in error
    assert remedy.startswith("  fix: ")
    assert not (place / "run" / "run.json").exists()


@pytest.mark.parametrize(("override", "cause"), [LATER[0], LATER[3], LATER[5]])
def test_a_mistake_in_data_or_base_leaves_no_directory_behind(place, recipe, override, cause):
    """Else the next try, mended, is told that output_dir holds another run."""
    assert cause in refused(place, trainer, recipe, override)[0]


def test_overwriting_with_a_mistake_keeps_the_old_run(place, recipe):
    (place / "run").mkdir()
    for name in ("run.json", "recipe.yaml"):
        (place / "run" / name).write_text("old")
    assert "does not exist" in refused(place, trainer, recipe, "data.train.path=nothing.jsonl", "--overwrite")[0]


@pytest.mark.parametrize(
    "override",
    ["training.debug=x", "training.logging_steps=0", "training.optim_args=a=b=c", "lora={target_modules: [nothing]}"],
)
def test_errors_of_libraries_are_one_line_too(place, recipe, override):
    result = run(trainer, recipe, override)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2


# --- as a program ---------------------------------------------------------------------------------------------------


def test_the_program_prints_two_lines_and_exits_with_2(tmp_path):
    """Run by its path, as accelerate runs it, from another folder."""
    command = [sys.executable, str(REPOSITORY / "rmkit" / "train.py"), "nothing.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    cause, remedy = done.stderr.splitlines()
    assert cause == "error: Recipe not found: nothing.yaml."
    assert remedy.startswith("  fix: Give a file or the name of a shipped recipe: llama8b_exgrm, ")
    assert list(tmp_path.iterdir()) == []
