"""`rmkit generate`: samples of the models of runs on the Hamiltonian cycle task, and how many are correct."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmkit.commands.options import Base, ChatTemplate, LoadIn, NoVerify
from rmkit.config.resources import read_template
from rmkit.errors import RmkitError, exit_on_error

if TYPE_CHECKING:
    from rmkit.evaluation.generation import GenerationSettings
    from rmkit.evaluation.scorer import RewardScorer
    from rmkit.runs.directory import RunDirectory

FOLDER = "generation"


def generate(
    runs: Annotated[list[Path], typer.Argument(help="Directories of finished runs on Hamiltonian cycles.")],
    samples: Annotated[int, typer.Option(min=1, help="Responses per prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of a response, in tokens.")] = 300,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses per batch.")] = 64,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N prompts of every set.")] = None,
    chat_template: ChatTemplate = None,
    load_in: LoadIn = None,
    base: Base = None,
    no_verify: NoVerify = False,
) -> None:
    """Sample Hamiltonian cycles from IM-RMs (Section 3.2). Writes RUN/generation/SET.json."""
    with exit_on_error():
        from rmkit.runs.directory import RunDirectory

        records = {path: RunDirectory(path).read() for path in runs}  # all, before the first model loads
        from rmkit.evaluation.generation import GenerationSettings

        settings = GenerationSettings(
            samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        requested = settings.model_dump(mode="json") | {"limit": limit}
        requested |= {} if chat_template is None else {"chat_template": read_template(chat_template)}
        requested |= {} if load_in is None else {"load_in": load_in}
        loading = {"chat_template": chat_template, "load_in": load_in, "base": base, "verify": not no_verify}
        for path, record in records.items():
            _generate_run(RunDirectory(path), list(record["data"]), settings, batch_size, requested, loading)


def _generate_run(
    run_dir: RunDirectory,
    sets: list[str],
    settings: GenerationSettings,
    batch_size: int,
    requested: dict[str, Any],
    loading: dict[str, Any],
) -> None:
    """Generate for every set of a run, except those finished with the same settings, and print the counts.

    Args:
        requested: the settings to record, by which a finished result is recognised.
        loading: options of `load_reward_model`.
    """
    from rich.console import Console
    from rich.table import Table

    from rmkit.api import load_reward_model
    from rmkit.data.sources.hamiltonian import is_hamiltonian_cycle
    from rmkit.files import write_json

    scorer = None
    table = Table(
        "set", "prompts", "correct", "ln π(C|x)", "ln π_ref(C|x)", title=str(run_dir.path), title_justify="left"
    )
    for name in sets:
        file = run_dir.path / FOLDER / f"{name}.json"
        content = _read_finished(file, requested)
        if content is None:
            texts = _read_texts(run_dir, name, requested["limit"])
            for prompt in texts["prompt"]:
                is_hamiltonian_cycle(prompt, "")  # stops now, not after hours, at a prompt that describes no graph
            if scorer is None:
                scorer = load_reward_model(str(run_dir.model), **loading)
                for note in scorer.checkpoint.notes:
                    print(note)
            content = {"set": name, "settings": requested, **_generate_set(scorer, name, texts, settings, batch_size)}
            write_json(file, content)
        log_probs = content["log_probs"] or {}
        numbers = [log_probs.get("chosen"), log_probs.get("chosen_reference")]
        cells = ["" if number is None else f"{number:.2f}" for number in numbers]
        table.add_row(name, str(content["prompts"]), f"{content['correct']:.4f}", *cells)
    Console().print(table)


def _generate_set(
    scorer: RewardScorer, name: str, texts: dict[str, list[str]], settings: GenerationSettings, batch_size: int
) -> dict[str, Any]:
    """Likelihoods of the responses of a set, and samples for its prompts with the share that is correct."""
    from rmkit.data.sources.hamiltonian import is_hamiltonian_cycle
    from rmkit.evaluation.generation import generate as generate_samples
    from rmkit.evaluation.generation import likelihoods, verify_samples

    samples = generate_samples(scorer, texts["prompt"], settings, batch_size=batch_size, description=name)
    log_probs = likelihoods(scorer, texts["prompt"], texts["chosen"], texts["rejected"], batch_size=batch_size)
    verified = verify_samples(texts["prompt"], texts["chosen"], samples, is_hamiltonian_cycle)
    return {"log_probs": log_probs, **verified}


def _read_texts(run_dir: RunDirectory, name: str, limit: int | None) -> dict[str, list[str]]:
    import pyarrow.parquet as pq

    try:
        conversations = {"messages", "chosen_messages"} & set(pq.read_schema(run_dir.examples(name)).names)
        rows = pq.read_table(run_dir.examples(name), columns=["prompt", "chosen", "rejected"])
    except (OSError, ValueError) as error:
        raise RmkitError(
            f"{run_dir.examples(name)} cannot be read: {error}.",
            "Run the recipe again, with evaluation.train_fit: true.",
        ) from None
    if conversations:
        raise RmkitError(f"{name} holds conversations, which describe no graph.", "Give a run on Hamiltonian cycles.")
    return {column: rows[column].to_pylist()[:limit] for column in rows.column_names}


def _read_finished(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result of an earlier call with the same settings."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if content.get("settings") == settings else None
