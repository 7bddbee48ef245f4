"""`rmkit prepare`: one of the paper's sets from its public source, with a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rmkit.errors import exit_on_error

RELEASED = "released"


def prepare(
    name: Annotated[
        str,
        typer.Argument(
            help="ultrafeedback, rewardmath, rewardbench_math, rewardbench_code, persona, hamiltonian, or released."
        ),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Options of that source, key=value: vertices=12 edge_probability=0.3.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where the set goes; data/NAME if not given.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all draws; the paper's if not given.")] = None,
    train: Annotated[int | None, typer.Option(min=0, help="Training pairs; 0 for all.")] = None,
    test: Annotated[int | None, typer.Option(min=0, help="Test pairs; 0 for all.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="What lengths are counted with; none for no filter.")] = None,
    max_prompt: Annotated[int | None, typer.Option(min=1, help="The longest prompt, in tokens.")] = None,
    max_response: Annotated[int | None, typer.Option(min=1, help="The longest response, in tokens.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="A local file or folder with the hub's layout; a clone for `released`.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A commit of the source.")] = None,
    split_by: Annotated[str | None, typer.Option(help="row, as the paper, or prompt: none on both sides.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a set that was prepared before.")] = False,
) -> None:
    """Prepare preference pairs as the paper does: a save_to_disk folder with prompt, chosen, rejected and a card."""
    with exit_on_error():
        said: dict[str, Any] = {
            "seed": seed,
            "train": train,
            "test": test,
            "tokenizer": tokenizer,
            "max_prompt": max_prompt,
            "max_response": max_response,
            "source": source,
            "revision": revision,
            "split_by": split_by,
        }
        given = {key: value for key, value in said.items() if value is not None} | _read(settings or [])
        if name == RELEASED:
            _released(given, output or Path("data"), overwrite)
        else:
            _one(name, given, output or Path("data") / name, overwrite)


def _read(settings: list[str]) -> dict[str, Any]:
    from rmkit.config.strict_yaml import override_value

    return dict(map(override_value, settings))


def _one(name: str, given: Mapping[str, Any], output: Path, overwrite: bool) -> None:
    from rmkit.data.sources.prepare import prepare_source

    card = prepare_source(name, given, output, error_label=f"prepare {name}", overwrite=overwrite)
    _print_card(card)
    print(f"Written to {output}.")


def _released(given: dict[str, Any], output: Path, overwrite: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rmkit.data.sources.released import prepare_all, released_options

    kept = [] if overwrite else [each.name for each in output.glob("*/") if any(each.iterdir())]
    results = prepare_all(released_options(given), output, overwrite)
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
    print(f"Written to {output}.")


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

    table = Table(title="prepared")
    unit = next(iter(card["splits"].values()))["lengths"]["unit"]
    for column in ("split", "pairs", f"prompt ({unit})", "chosen", "rejected", "longest", "longer wins"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in card["splits"].items():
        of = split["lengths"]
        means = [f"{of[column]['mean']:.1f}" for column in ("prompt", "chosen", "rejected")]
        longest = max(of["chosen"]["max"], of["rejected"]["max"])
        table.add_row(name, str(split["rows"]), *means, str(longest), f"{of['longer_wins']:.3f}")
    console.print(table)
    for name, shared in card["overlap"].items():
        if shared["prompt"]:
            console.print(
                f"[yellow]warning:[/] of the {shared['pairs']} pairs of {name}, {shared['prompt']} have their prompt, "
                f"{shared['chosen']} their chosen response and {shared['prompt_and_chosen']} both together in the "
                "training set.",
                soft_wrap=True,
            )
