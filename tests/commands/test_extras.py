"""Commands whose optional packages are missing say what to install, and all others do without them."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest
from conftest import REPOSITORY
from typer.testing import CliRunner

from rmkit.cli import app
from rmkit.commands.extras import EXTRAS, require_extra

COMMANDS = {
    "rewrite": ["rewrite", "pairs.jsonl", "--style", "local:casing", "--output", "out"],
    "theory separator": ["theory", "separator", "model", "pairs.jsonl"],
    "theory unseen-tokens": ["theory", "unseen-tokens"],
    "--launcher slurm": ["sweep", "tiny_quickstart", "--launcher", "slurm"],
}
OPTIONAL = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def packages(extra):
    """The names of an extra's requirements."""
    return [re.match(r"[\w-]+", requirement)[0] for requirement in OPTIONAL[extra]]


def test_the_extras_are_those_of_the_package():
    assert {extra: tuple(packages(extra)) for extra in EXTRAS} == EXTRAS
    assert OPTIONAL["all"] == [f"rmkit[{','.join(sorted({*EXTRAS, 'gguf', 'track'}))}]"]
    assert "rmkit[all]" in OPTIONAL["dev"]


def test_the_tested_versions_cover_the_extras():
    pinned = {line.partition("==")[0].lower() for line in (REPOSITORY / "constraints.txt").read_text().splitlines()}
    assert {name for extra in [*EXTRAS, "gguf", "qlora", "track"] for name in packages(extra)} <= pinned


@pytest.mark.parametrize(
    ("command", "extra", "module"),
    [
        ("rewrite", "rewrite", "openai"),
        ("rewrite", "rewrite", "babel"),
        ("theory separator", "theory", "qpsolvers"),
        ("theory unseen-tokens", "theory", "daqp"),
        ("--launcher slurm", "slurm", "submitit"),
    ],
)
def test_a_command_without_its_extra_says_the_pip_line(command, extra, module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # hidden from every import
    result = CliRunner().invoke(app, COMMANDS[command])
    assert result.exit_code == 2
    lines = [line for line in result.output.splitlines() if line]
    name = command if command.startswith("--") else f"rmkit {command}"
    assert lines == [
        f"error: {name} needs the package {module}, which is not installed.",
        f'  fix: Install it with `pip install "rmkit[{extra}]"`.',
    ]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    require_extra(extra, name)  # the control: with the package there is nothing to say
