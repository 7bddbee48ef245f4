"""`rmkit prepare`: build one of the paper's sets from its public source, with a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from rmkit.commands.options import group_options
from rmkit.errors import exit_on_error

RELEASED = "released"


@dataclass(frozen=True)
class SourceOptions:
    """Options that several sources share; None leaves a source's default."""

    seed: Annotated[int | None, typer.Option(help="Seed of all random draws. Default: the paper's.")] = None
    train: Annotated[int | None, typer.Option(min=0, help="Training pairs; 0 for all.")] = None
    test: Annotated[int | None, typer.Option(min=0, help="Test pairs; 0 for all.")] = None
    tokenizer: Annotated[
        str | None, typer.Option(help="The tokenizer that counts lengths; none for no length filter.")
    ] = None
    max_prompt: Annotated[int | None, typer.Option(min=1, help="Longest prompt, in tokens.")] = None
    max_response: Annotated[int | None, typer.Option(min=1, help="Longest response, in tokens.")] = None
    source: Annotated[
        Path | None,
        typer.Option(help="A local file or folder to read instead of the hub; for `released`, a clone."),
    ] = None
    revision: Annotated[str | None, typer.Option(help="A commit of the source.")] = None
    split_by: Annotated[str | None, typer.Option(help="row, as in the paper, or prompt: no prompt in both splits.")] = (
        None
    )


@group_options
def prepare(
    name: Annotated[
        str,
        typer.Argument(
            help="ultrafeedback, rewardmath, rewardbench_math, rewardbench_code, persona, hamiltonian, or released."
        ),
    ],
    options: SourceOptions,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Other options of the source, as key=value: vertices=12 edge_probability=0.3."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The folder to write. Default: data/NAME.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier set.")] = False,
) -> None:
    """Prepare preference pairs as in the paper. Writes a save_to_disk folder with a card."""
    with exit_on_error():
        from rmkit.config.strict_yaml import override_value

        chosen = {key: value for key, value in asdict(options).items() if value is not None}
        chosen |= dict(map(override_value, settings or []))
        if name == RELEASED:
            _prepare_released(chosen, output or Path("data"), overwrite)
        else:
            _prepare_one(name, chosen, output or Path("data") / name, overwrite)


def _prepare_one(name: str, options: Mapping[str, Any], output: Path, overwrite: bool) -> None:
    from rmkit.data.sources.prepare import prepare_source

    card = prepare_source(name, options, output, error_label=f"prepare {name}", overwrite=overwrite)
    _print_card(card)
    print(f"Wrote {output}.")


def _prepare_released(options: dict[str, Any], output: Path, overwrite: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rmkit.data.sources.released import prepare_all, released_options

    kept = [] if overwrite else [folder.name for folder in output.glob("*/") if any(folder.iterdir())]
    results = prepare_all(released_options(options), output, overwrite)
    table = Table(title="The paper's own sets")
    for column in ("set", "train", "test", "test prompts in train"):
        table.add_column(column, justify="left" if column == "set" else "right")
    for name, result in results.items():
        if isinstance(result, str):
            table.add_row(name, "[yellow]left out[/]", "", "")
        else:
            rows = [str(result["splits"].get(split, {}).get("rows", "")) for split in ("train", "test")]
            title = f"{name} (was there)" if name in kept else name
            table.add_row(title, *rows, str(result["overlap"].get("test", {}).get("prompt", "")))
    console = Console()
    console.print(table)
    for name, result in results.items():
        if isinstance(result, str):
            console.print(f"[yellow]warning:[/] {name} is left out. {escape(result)}", soft_wrap=True)
    print(f"Wrote {output}.")


def _print_card(card: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    splits = list(dict.fromkeys(split for step in card["steps"] for split in step["rows"]))
    table = Table(title=escape(f"{card['name']} from {card['source']}"))
    table.add_column("step")
    for split in splits:
        table.add_column(split, justify="right")
    for step in card["steps"]:
        table.add_row(escape(step["step"]), *(str(step["rows"].get(split, "")) for split in splits))
    console.print(table)

    table = Table(title="result")
    unit = next(iter(card["splits"].values()))["lengths"]["unit"]
    for column in ("split", "pairs", f"prompt ({unit})", "chosen", "rejected", "longest", "longer wins"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in card["splits"].items():
        lengths = split["lengths"]
        means = [f"{lengths[column]['mean']:.1f}" for column in ("prompt", "chosen", "rejected")]
        longest = max(lengths["chosen"]["max"], lengths["rejected"]["max"])
        table.add_row(name, str(split["rows"]), *means, str(longest), f"{lengths['longer_wins']:.3f}")
    console.print(table)
    for name, shared in card["overlap"].items():
        if shared["prompt"]:
            console.print(
                f"[yellow]warning:[/] of the {shared['pairs']} pairs of {name}, {shared['prompt']} share their prompt, "
                f"{shared['chosen']} their chosen response and {shared['prompt_and_chosen']} both with a training "
                "pair.",
                soft_wrap=True,
            )
