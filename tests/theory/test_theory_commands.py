"""`rmkit theory` as a user calls it: tables, JSON, figures, and two-line errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner, Result

from rmkit.commands.theory import theory_app
from rmkit.config.recipe import Recipe
from rmkit.data.preferences import load_preferences
from rmkit.report import build
from rmkit.report import theory_figures as figures
from rmkit.report import theory_summary as summary
from rmkit.theory.model_dynamics import same_prompts

WORDINGS = {
    "original": [("Mix flour, water and salt.", "No. The quick brown fox."), ("Wait. Bake it.", "12 + 30 = 42; why?")],
    "reworded": [("Bake salt and flour.", "Question: why?"), ("The lazy dog.", "Yes, brown bread.")],
    "single": [("Yes", "No"), ("a", "b")],
}
PROMPTS = ["How do I bake bread?", "Why is the dog lazy?"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("theory")
    for architecture in ("llama", "gpt_neox"):
        (folder / architecture).symlink_to(models[architecture])
    for name, pairs in WORDINGS.items():
        rows = [
            {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            for prompt, (chosen, rejected) in zip(PROMPTS, pairs, strict=True)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def invoke(*arguments: Any, code: int = 0) -> Result:
    result = CliRunner().invoke(theory_app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def read_checked(file: Path, theory: str, figure_files: list[str]) -> dict[str, Any]:
    """The content of a JSON file, after checks that apply to all of them."""
    content: dict[str, Any] = json.loads(file.read_text())
    assert content["theory"] == theory
    assert content["figures"] == figure_files
    for name in figure_files:
        assert (file.parent / name).stat().st_size > 2000
    for table in summary.tables(content):
        assert table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    return content


def test_dynamics(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "dynamics.json"
    data = [place / "original.jsonl", "--unseen", place / "reworded.jsonl"]
    output = invoke("dynamics", place / "gpt_neox", *data, "--json", file).output
    content = read_checked(file, "dynamics", ["dynamics-rho.png", "dynamics-margins.png"])
    assert list(content["types"]) == ["explicit", "implicit", "generative"]
    assert list(content["types"]["implicit"]["groups"]) == ["the pair itself", "another pair", "reworded"]
    for result in content["types"].values():
        assert result["errors"][0]["relative"] < 1e-3
        assert all("trainable" in row for row in result["changes"])
    assert "Eq. 5" in output
    assert "Pad token" in output
    shown = content["heat_map"]
    assert len(shown["rho"]) == len(shown["target_tokens"])
    assert len(shown["rho"][0]) == len(shown["source_tokens"])


def test_dynamics_of_one_type_without_the_backbone(place: Path, tmp_path: Path) -> None:
    data = [place / "original.jsonl", "--pairs", 1, "--date-string", "26 Jul 2024", "--no-backbone"]
    file, figure = tmp_path / "one.json", tmp_path / "one.svg"
    invoke("dynamics", place / "llama", *data, "--type", "explicit", "--json", file, "--figure", figure)
    content = read_checked(file, "dynamics", ["one-margins.svg"])
    (result,) = content["types"].values()
    assert list(result["groups"]) == ["the pair itself"]
    assert "trainable" not in result["changes"][0]


def test_separator(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "separator.json"
    data = [place / "original.jsonl", "--unseen", place / "reworded.jsonl"]
    invoke("separator", place / "gpt_neox", *data, "--json", file)
    content = read_checked(file, "separator", ["separator.png"])
    assert content["separable"]
    assert content["unseen"]["reworded"]["pairs"] == 2
    assert content["smallest_training_product"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("command", ["separator", "dynamics", "unseen-tokens"])
def test_a_chat_template_replaces_the_model_s_own(place: Path, tmp_path: Path, command: str) -> None:
    """The model's own template as a file changes nothing; another one changes the numbers."""
    own, other, latin = (tmp_path / name for name in ("own.jinja", "other.jinja", "latin.jinja"))
    own.write_text(tiny.LLAMA3)
    other.write_text(tiny.LLAMA3.replace("Today Date", "Day"))
    latin.write_bytes(b"\xe9")
    data, day = tmp_path / "single.jsonl", ["--date-string", "26 Jul 2024"]
    rows = [{"prompt": f"{number}?", "chosen": "a", "rejected": "b"} for number in range(2)]
    rows += [{"prompt": "why?", "chosen": "x", "rejected": "1"}]
    data.write_text("\n".join(map(json.dumps, rows)))
    arguments = {
        "separator": [place / "llama", place / "original.jsonl", *day],
        "dynamics": [place / "llama", place / "original.jsonl", *day, "--type", "implicit", "--no-backbone"],
        "unseen-tokens": ["--model", place / "llama", "--data", data, *day, "--training-pairs", 2, "--steps", 20],
    }[command]
    results = []
    for template in (None, own, other):
        file = tmp_path / "numbers.json"
        invoke(command, *arguments, *([] if template is None else ["--chat-template", template]), "--json", file)
        results.append(json.loads(file.read_text()))
    assert results[0] == results[1] != results[2]
    refused = invoke(command, *arguments, "--chat-template", tmp_path / "none.jinja", code=2).output
    assert f"Chat template not found: {tmp_path / 'none.jinja'}" in refused
    assert "cannot be read" in invoke(command, *arguments, "--chat-template", latin, code=2).output


def test_a_chat_template_without_a_model_is_refused(tmp_path: Path) -> None:
    output = invoke("unseen-tokens", "--chat-template", tmp_path / "own.jinja", code=2).output
    assert "--chat-template has no use without --model." in output


def test_separator_of_pairs_that_contradict_each_other(place: Path, tmp_path: Path) -> None:
    (pair, _) = WORDINGS["original"]
    rows = [{"prompt": "x", "chosen": one, "rejected": other} for one, other in (pair, pair[::-1])]
    data = tmp_path / "both.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "separator.json"
    output = invoke("separator", place / "gpt_neox", data, "--json", file, code=2).output
    assert "No linear head ranks all 2 pairs right: rows 0, 1 (2 in all) contradict each other" in " ".join(
        output.split()
    )
    content = read_checked(file, "separator", [])
    assert content["certificate"]["weights"] == pytest.approx([0.5, 0.5])


def test_unseen_tokens(tmp_path: Path) -> None:
    file = tmp_path / "unseen.json"
    invoke("unseen-tokens", "--steps", 300, "--json", file)
    content = read_checked(file, "unseen-tokens", ["unseen.png"])
    assert content["implicit"].keys() == {"train_accuracy", "unseen_accuracy"}
    assert set(content["implicit"]["unseen_accuracy"]) == {0.5}
    assert content["explicit"].keys() == {"train_accuracy", "unseen_accuracy", "separator_unseen_accuracy"}
    assert content["control"].keys() == {"explicit_unseen_accuracy", "separator_unseen_accuracy"}
    assert len(content["implicit"]["unseen_accuracy"]) == len(content["history"]["step"])


def test_unseen_tokens_of_a_model(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "unseen.json"
    data = ["--data", place / "single.jsonl", "--training-pairs", 1]
    invoke("unseen-tokens", "--model", place / "gpt_neox", *data, "--steps", 200, "--json", file)
    content = read_checked(file, "unseen-tokens", ["unseen.png"])
    assert (content["training_pairs"], content["unseen_pairs"]) == (1, 1)
    assert set(content["implicit"]["unseen_accuracy"]) == {0.5}
    assert content["implicit"]["train_accuracy"] == 1


def test_verification(tmp_path: Path) -> None:
    file = tmp_path / "verification.json"
    invoke("verification", "--largest", 6, "--graphs", 2, "--delta", 0.5, "--json", file)
    content = read_checked(file, "verification", ["verification.png"])
    assert len(content["cases"]) == 6
    assert all(each["margin"] == pytest.approx(0.5) for each in content["cases"])


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["dynamics", "{}/gpt_neox", "{}/original.jsonl", "--unseen", "{}/single.jsonl", "--dtype", "half"], "--dtype"),
        (["dynamics", "{}/gpt_neox", "{}/original.jsonl", "--type", "other"], "--type other is unknown"),
        (["dynamics", "{}/gpt_neox", "{}/original.jsonl", "--learning-rate", "0"], "must be positive"),
        (["dynamics", "{}/nothing", "{}/original.jsonl"], "not a loadable model"),
        (["dynamics", "{}/gpt_neox", "{}/original.jsonl", "--figure", "a.txt"], "not a figure file"),
        (["unseen-tokens", "--learning-rate", "9"], "not below Theorem 2's bound"),
        (["unseen-tokens", "--model", "{}/gpt_neox"], "--model and --data must be given together"),
        (["unseen-tokens", "--model", "{}/gpt_neox", "--data", "{}/original.jsonl"], "not one"),
        (
            ["unseen-tokens", "--model", "{}/gpt_neox", "--data", "{}/single.jsonl"],
            "has only responses that training has not seen",
        ),
        (["verification", "--reference", "other"], "--reference other is unknown"),
        (["verification", "--beta", "0.001"], "delta / beta at most"),
        (["verification", "--smallest", "7", "--largest", "5"], "--smallest is larger"),
    ],
)
def test_mistakes(place: Path, tmp_path: Path, arguments: list[str], cause: str) -> None:
    file = tmp_path / "out.json"
    output = invoke(*[each.format(place) for each in arguments], "--json", file, code=2).output
    assert cause in " ".join(output.split())
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("theory", ["dynamics", "separator"])
def test_texts_beyond_the_last_position(tmp_path: Path, theory: str) -> None:
    tokenizer = tiny.tokenizer("qwen2")
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 60, "bos_token_id": None, "eos_token_id": None}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    pairs = [("why?", "Yes.", "No."), ("how?", "Bake it. " * 30, "No."), ("dog?", "The lazy dog", "fox")]
    rows = [dict(zip(("prompt", "chosen", "rejected"), each, strict=True)) for each in pairs]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [theory, tmp_path / "gpt2", tmp_path / "long.jsonl", "--json", tmp_path / "out.json"]
    output = " ".join(invoke(*arguments, code=2).output.split())
    assert "the model has position embeddings for 60." in output
    assert "(--max-length 60)" in output
    invoke(*arguments, "--max-length", 60)


def test_a_set_of_other_prompts_is_refused(place: Path) -> None:
    data = load_preferences(str(place / "original.jsonl"))
    assert len(same_prompts(data, PROMPTS[:1])) == 1
    with pytest.raises(Exception, match="No prompt of original"):
        same_prompts(data, ["another"])


def test_white_space_in_tokens_is_visible() -> None:
    assert figures._visible(" a\n") == "␣a\\n"
    assert figures._visible("$x_1$ and more than that") == "$x_1$␣and␣mor…"


def train_run(place: Path, output_dir: Path, settings: dict[str, Any], rate: float, **sections: Any) -> Path:
    from rmkit.train import train

    recipe = {
        "base": {"name": str(place / "gpt_neox")},
        "reward_model": settings,
        "data": {
            "root": str(place),
            "train": {"name": "train", "path": "original.jsonl"},
            "evaluation": [{"name": "reworded", "path": "reworded.jsonl"}],
        },
        "training": {"learning_rate": rate, "num_train_epochs": 1, "batch_size": 4, "seed": 3},
        "output_dir": str(output_dir),
    }
    train(Recipe.model_validate(recipe | sections))
    return output_dir


def measured(result: dict[str, Any]) -> list[float]:
    return [value for row in result["changes"] for value in row["measured"]]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("settings", "lora"),
    [({"type": "explicit"}, None), ({"type": "implicit"}, {"r": 2}), ({"type": "generative"}, None)],
)
def test_the_dynamics_of_a_run(
    place: Path, tmp_path: Path, settings: dict[str, str], lora: dict[str, int] | None
) -> None:
    """With a learning rate of 0 the run ends where it began, and so do its dynamics; with 0.01 they move."""
    results = {}
    for rate in (0.0, 1e-2):
        run = train_run(place, tmp_path / f"run{rate}", settings, rate, lora=lora)
        before = (run / "run.json").read_bytes()
        invoke("dynamics", run, "--pairs", 2, "--no-backbone")
        assert (run / "run.json").read_bytes() == before
        results[rate] = read_checked(run / "theory" / "dynamics.json", "dynamics", ["dynamics-margins.png"])["states"]
    still, moved = results.values()
    for state in ("before", "after"):
        assert list(still[state]["groups"]) == ["the pair itself", "another pair", "reworded"]
        assert moved[state]["errors"][0]["relative"] < 1e-3
        assert "trainable" not in still[state]["changes"][0]
    assert measured(still["after"]) == pytest.approx(measured(still["before"]), rel=1e-4, abs=1e-12)
    assert measured(moved["before"]) == pytest.approx(measured(still["before"]), rel=1e-4, abs=1e-12)
    assert measured(moved["after"]) != pytest.approx(measured(moved["before"]), rel=1e-4, abs=1e-12)
    assert summary.dynamics_tables(moved)[0]["rows"][0][0] == "before"


@pytest.mark.smoke
def test_mistakes_about_a_run(place: Path, tmp_path: Path) -> None:
    """The remedies work: remove the option, give the base's new place."""
    base = tmp_path / "base"
    shutil.copytree((place / "gpt_neox").resolve(), base)
    run = train_run(place, tmp_path / "run", {"type": "explicit"}, 1e-2, base={"name": str(base)})

    def refused(*arguments: Any) -> str:
        output = invoke("dynamics", *arguments, code=2).output
        assert "Traceback" not in output
        assert not (run / "theory").exists()
        return " ".join(output.split())

    data = place / "original.jsonl"
    assert "DATA has no use" in refused(run, data)
    assert "--seed has no use" in refused(run, "--seed", 1)
    assert "--column has no use" in refused(run, "--column", "prompt=q")
    assert "--chat-template has no use" in refused(run, "--chat-template", "own.jinja")
    assert "DATA is missing" in refused(run / "model")
    invoke("dynamics", run / "model", data, "--pairs", 1, "--no-backbone")
    base.rename(tmp_path / "moved")
    assert "The base of" in refused(run)
    assert "is not the base that" in refused(run, "--base", place / "llama")
    invoke("dynamics", run, "--base", tmp_path / "moved", "--pairs", 1, "--no-backbone")
    assert (run / "theory" / "dynamics.json").is_file()
    report = tmp_path / "report"
    assert build.report([run], report) == []
    page = (report / "index.html").read_text()
    assert "run: Predicted against measured change of rewards" in page
    assert "data:image/png" in page


def test_reports_need_no_torch() -> None:
    modules = "rmkit.report.theory_summary, rmkit.report.theory_figures, rmkit.commands.theory"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sets_with_other_columns(place: Path) -> None:
    """The numbers are those of the plain form; a run, which records its sets, takes no such option."""
    rows = [
        {"question": prompt, "answers": [rejected, chosen], "ratings": [1, 2]}
        for prompt, (chosen, rejected) in zip(PROMPTS, WORDINGS["original"], strict=True)
    ]
    (place / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--type", "explicit", "--pairs", 2, "--no-backbone", "--json"]
    plain = invoke("dynamics", place / "llama", place / "original.jsonl", *options, place / "plain.json")
    assert "pairing" not in plain.output
    columns = ["--column", "prompt=question", "--pairing", "all"]
    rated = invoke("dynamics", place / "llama", place / "rated.jsonl", *columns, *options, place / "rated.json")
    assert "rated.jsonl: answers by ratings, pairing all, standard, prompt from question" in rated.output
    first, second = (json.loads((place / f"{name}.json").read_text())["types"] for name in ("plain", "rated"))
    assert first == second
    place_of = place / "templated.jsonl"
    place_of.write_text(json.dumps({"prompt": "<|im_start|>user\nHi", "chosen": "Yes", "rejected": "No"}))
    refused = invoke("separator", place / "llama", place_of, code=2)
    assert "row 0, column prompt spells turns of a chat template" in refused.output
