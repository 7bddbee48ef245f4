"""`rmkit generate`: Hamiltonian cycles written by the models of runs, and how many are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmkit.commands.score import Base, NoVerify
from rmkit.errors import RmkitError, exit_on_error

if TYPE_CHECKING:
    from rmkit.evaluation.generation import GenerationSettings
    from rmkit.runs.directory import RunDirectory

FOLDER = "generation"


def generate(
    runs: Annotated[list[Path], typer.Argument(help="Directories of finished runs on Hamiltonian cycles.")],
    samples: Annotated[int, typer.Option(min=1, help="Responses a prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens a response.")] = 300,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses at a time.")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts of each set.")] = None,
    base: Base = None,
    no_verify: NoVerify = False,
) -> None:
    """Let IM-RMs write Hamiltonian cycles for the graphs of their runs: RUN/generation/SET.json (Section 3.2)."""
    with exit_on_error():
        from rmkit.runs.directory import RunDirectory

        records = {path: RunDirectory(path).read() for path in runs}  # all, before the first model loads
        from rmkit.evaluation.generation import GenerationSettings

        settings = GenerationSettings(
            samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        for path, record in records.items():
            _generate(RunDirectory(path), list(record["data"]), settings, batch_size, limit, base, not no_verify)


def _generate(
    run: RunDirectory,
    sets: list[str],
    settings: GenerationSettings,
    batch_size: int,
    limit: int | None,
    base: str | None,
    verify: bool,
) -> None:
    from rich.console import Console
    from rich.table import Table

    from rmkit.api import load_reward_model
    from rmkit.data.sources.hamiltonian import is_hamiltonian_cycle
    from rmkit.evaluation.generation import generate as generated
    from rmkit.evaluation.generation import likelihoods, verify_samples
    from rmkit.files import write_json

    asked = settings.model_dump(mode="json") | {"limit": limit}
    scorer = None
    table = Table("set", "prompts", "correct", "ln π(C|x)", "ln π_ref(C|x)", title=str(run.path), title_justify="left")
    for name in sets:
        file = run.path / FOLDER / f"{name}.json"
        content = _done(file, asked)
        if content is None:
            texts = _texts(run, name, limit)
            for prompt in texts["prompt"]:
                is_hamiltonian_cycle(prompt, "")  # stops here, and not after hours, if it describes no graph
            scorer = scorer or load_reward_model(str(run.model), base=base, verify=verify)
            written = generated(scorer, texts["prompt"], settings, batch_size=batch_size, description=name)
            log_probs = likelihoods(scorer, texts["prompt"], texts["chosen"], texts["rejected"], batch_size=batch_size)
            content = {
                "set": name,
                "settings": asked,
                "log_probs": log_probs,
                **verify_samples(texts["prompt"], texts["chosen"], written, is_hamiltonian_cycle),
            }
            write_json(file, content)
        found = content["log_probs"] or {}
        numbers = [found.get("chosen"), found.get("chosen_reference")]
        shown = ["" if number is None else f"{number:.2f}" for number in numbers]
        table.add_row(name, str(content["prompts"]), f"{content['correct']:.4f}", *shown)
    Console().print(table)


def _texts(run: RunDirectory, name: str, limit: int | None) -> dict[str, list[str]]:
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(run.examples(name), columns=["prompt", "chosen", "rejected"])
    except (OSError, ValueError) as error:
        raise RmkitError(
            f"{run.examples(name)} cannot be read: {error}.", "Run the recipe again, with evaluation.train_fit: true."
        ) from None
    return {column: rows[column].to_pylist()[:limit] for column in rows.column_names}


def _done(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """What an earlier call with the same settings has left."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if content.get("settings") == settings else None
