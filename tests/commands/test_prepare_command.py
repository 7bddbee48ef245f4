"""`rmkit prepare` as a user runs it."""

from __future__ import annotations

import json

import datasets
import pytest
import typer
from typer.testing import CliRunner

from rmkit.commands.prepare import prepare

APP = typer.Typer()
APP.command()(prepare)


def run(*arguments):
    return CliRunner().invoke(APP, list(map(str, arguments)))


def test_a_generated_set(tmp_path):
    arguments = ("hamiltonian", "vertices=6", "edge_probability=0.1", "--train", 12, "--test", 5, "--seed", 3)
    result = run(*arguments, "--output", tmp_path / "graphs")
    assert result.exit_code == 0, result.output
    assert "graphs of 6 vertices" in result.output
    card = json.loads((tmp_path / "graphs" / "card.json").read_text())
    assert {key: card["options"][key] for key in ("vertices", "edge_probability", "train", "test", "seed")} == {
        "vertices": 6, "edge_probability": 0.1, "train": 12, "test": 5, "seed": 3,
    }  # fmt: skip
    again = run(*arguments, "--output", tmp_path / "graphs")
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    assert run(*arguments, "--output", tmp_path / "graphs", "--overwrite").exit_code == 0


def test_overlap_of_a_set_is_reported(tmp_path):
    rows = [
        {"problem": f"p{row % 4}", "eval_solution_A": ["a"], "eval_solution_B": [f"b{row}"], "chosen_position": "A"}
        for row in range(20)
    ]
    source = tmp_path / "test.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("rewardmath", "held_out=6", "--source", source, "--tokenizer", "none", "--test", 0)
    result = run(*common, "--output", tmp_path / "mixed")
    assert result.exit_code == 0, result.output
    assert "of the 6 pairs of test, 6 share their prompt" in result.output
    result = run(*common, "--output", tmp_path / "clean", "--split-by", "prompt")
    assert result.exit_code == 0, result.output
    assert "share their prompt" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "Unknown source of preference pairs: nothing"),
        (["hamiltonian", "vertices"], "key=value"),
        (["hamiltonian", "vertices=[1"], "is not valid YAML"),
        (["hamiltonian", "vertices=2"], "vertices"),
        (["hamiltonian", "edge_probability=-0.1"], "edge_probability"),
        (["hamiltonian", "--tokenizer", "x"], "tokenizer is not a known key"),
        (["persona", "--split-by", "prompt"], "split_by is not a known key"),
        (["released", "--seed", "3"], "seed is not a known key"),
        (["released", "--source", "nowhere"], "nowhere is not a clone"),
    ],
)
def test_mistakes_are_two_lines_and_leave_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert [line.split(":")[0].strip() for line in result.output.splitlines()] == ["error", "fix"]
    assert not list(tmp_path.iterdir())


def test_released_sets(tmp_path):
    for name in (
        "rewardmath_seed_982_ntrain_2_ntest_2",
        "ultrafeedback_seed_982_ntrain_2_ntest_2_no_translate_prompts",
    ):
        rows = datasets.Dataset.from_dict({"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]})
        splits = datasets.DatasetDict({"train": rows, "test": rows})
        splits.save_to_disk(str(tmp_path / "clone" / "data_files" / f"{name}_2025_04_13-18_27_54"))
    shard = next((tmp_path / "clone" / "data_files").glob("ultrafeedback*/test/*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-8])
    result = run("released", "--source", tmp_path / "clone", "--output", tmp_path / "data")
    assert result.exit_code == 0, result.output
    assert "ultrafeedback is left out" in result.output
    assert "is truncated" in result.output
    assert [folder.name for folder in (tmp_path / "data").iterdir()] == ["rewardmath"]
