"""`rmkit -h` and the help of every command: complete, with an example that parses, in short functions."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from conftest import REPOSITORY
from typer.main import get_command
from typer.testing import CliRunner

import rmkit
from rmkit.cli import app
from rmkit.commands.options import group_options

ROOT = get_command(app)
COMMANDS = {(name,): command for name, command in ROOT.commands.items() if name != "theory"}
COMMANDS |= {("theory", name): command for name, command in ROOT.commands["theory"].commands.items()}


def words(text: str) -> str:
    return " ".join(text.split())


def test_all_commands_are_here():
    assert len(COMMANDS) == 16
    assert ("prepare",) in COMMANDS
    assert ("theory", "unseen-tokens") in COMMANDS


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("path", [(), ("theory",), *COMMANDS], ids=" ".join)
def test_every_help_shows_its_texts_in_full(path, flag):
    """The text of the source, brackets included: rich's markup would drop [key=value ...]."""
    result = CliRunner().invoke(app, [*path, flag], terminal_width=10_000)
    assert result.exit_code == 0, result.output
    shown = words(result.output)
    command = COMMANDS.get(path, ROOT)
    if path in COMMANDS:
        assert words(inspect.getdoc(command.callback)) in shown
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        assert text, f"{parameter.name} has no help text"
        if path in COMMANDS or path == ():
            assert words(text) in shown


def test_brackets_of_help_texts_are_printed():
    assert "VALUE may be a list [a, b]." in words(CliRunner().invoke(app, ["sweep", "-h"]).output)
    assert "its hub id[@revision]" in words(CliRunner().invoke(app, ["push", "-h"]).output)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_help_ends_with_an_example_that_parses(path):
    shown = CliRunner().invoke(app, [*path, "-h"]).output
    examples = re.split(r"^  Examples?:$", shown, flags=re.MULTILINE)[1].strip().splitlines()
    for line in examples:
        program, *arguments = shlex.split(line)
        assert program == "rmkit"
        assert tuple(arguments[: len(path)]) == path
        COMMANDS[path].make_context(" ".join(path), arguments[len(path) :])  # raises on unknown options and bad values


@pytest.mark.parametrize("page", ["recipes"])
def test_the_commands_of_a_page_parse(page):
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(lines) >= 3
    for line in lines:
        program, name, *arguments = shlex.split(line, comments=True)
        assert program == "rmkit"
        COMMANDS[(name,)].make_context(name, arguments)


def test_the_list_of_commands_is_not_cut_off():
    shown = CliRunner().invoke(app, ["-h"]).output
    assert "..." not in shown.partition("Commands:")[2]
    assert "compare explicit, implicit and generative reward models" in words(shown)


def test_the_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"rmkit {rmkit.__version__}\n")


@pytest.mark.parametrize("file", sorted((REPOSITORY / "rmkit" / "commands").glob("*.py")), ids=lambda file: file.stem)
def test_commands_are_short(file):
    """No body over 40 lines."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.body[-1].end_lineno - node.body[0].lineno < 40, node.name


# --- options as dataclasses ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """A group of options."""

    width: Annotated[int, typer.Option(min=1, help="The width.")]
    tall: Annotated[bool, typer.Option("--tall", help="Whether it is tall.")] = False


@group_options
def draw(
    shape: Annotated[str, typer.Argument(help="The shape.")],
    size: Size,
    colours: Annotated[list[str] | None, typer.Argument(help="The colours.")] = None,
    scale: Annotated[float, typer.Option(help="The scale.")] = 1.0,
) -> None:
    """Draw a shape."""
    print((shape, size, colours, scale))


def test_a_group_of_options_is_passed_as_its_dataclass():
    program = typer.Typer()
    program.command()(draw)
    for arguments, expected in [
        (["circle", "--width", "3"], ("circle", Size(3), None, 1.0)),
        (["circle", "red", "blue", "--tall", "--scale", "2", "--width", "1"], None),
    ]:
        expected = expected or ("circle", Size(1, True), ["red", "blue"], 2.0)
        result = CliRunner().invoke(program, arguments)
        assert result.output == f"{expected}\n"
    assert CliRunner().invoke(program, ["circle"]).exit_code == 2  # --width is required
    assert CliRunner().invoke(program, ["circle", "--width", "0"]).exit_code == 2
    shown = words(CliRunner().invoke(program, ["--help"]).output)
    assert re.search(r"Draw a shape\..*--width.*--tall.*--scale", shown)
