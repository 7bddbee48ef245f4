"""`rmkit explain`: a reward, token by token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmkit.commands.options import BatchSize, ModelOptions, group_options
from rmkit.commands.score import load_scorer
from rmkit.errors import RmkitError, exit_on_error

if TYPE_CHECKING:
    from rmkit.evaluation.scorer import RewardScorer
    from rmkit.runs.directory import RunDirectory


@group_options
def explain(
    model: Annotated[str, typer.Argument(help="A run, its model/ folder, any transformers model folder, or a hub id.")],
    options: ModelOptions,
    prompt: Annotated[str | None, typer.Option(help="The prompt.")] = None,
    response: Annotated[str | None, typer.Option(help="The response.")] = None,
    against: Annotated[
        str | None, typer.Option(help="A second reward model to compare: a run or its model/ folder.")
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(min=1, help="Explain the N most wrong pairs of every set of a run, into RUN/explain/."),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers.")] = None,
    batch_size: BatchSize = 8,
) -> None:
    """Show what each token adds to a reward. Terms for implicit models, rewards of prefixes for explicit ones."""
    with exit_on_error():
        run_dir = _find_run(model)
        if worst is None and (prompt is None or response is None):
            raise RmkitError("There is nothing to explain.", "Give --prompt and --response, or a run and --worst.")
        if worst is not None and (run_dir is None or (prompt, response, output, json) != (None, None, None, None)):
            raise RmkitError(
                "--worst takes its texts from a run.", "Give a run, without --prompt, --response, --output or --json."
            )
        scorer = load_scorer(_model_path(model), options)
        other = None
        if against is not None:
            as_recorded = replace(options, type=None, pooling=None, reference=None, beta=None, base=None)
            other = load_scorer(_model_path(against), as_recorded)
        if worst is not None and run_dir is not None:
            _explain_worst(run_dir, worst, scorer, other, batch_size)
            return
        models = [(model, scorer)] if other is None else [(model, scorer), (str(against), other)]
        _explain_text(models, str(prompt), str(response), batch_size, output, json)


def _explain_text(
    models: list[tuple[str, RewardScorer]],
    prompt: str,
    response: str,
    batch_size: int,
    output: Path | None,
    json: Path | None,
) -> None:
    """Print the explanations of one response by one or two models; write the page and the numbers."""
    from rmkit.evaluation.token_rewards import explain as explain_response
    from rmkit.evaluation.token_rewards import merge_explanations
    from rmkit.files import write_json, write_text
    from rmkit.report.explanation import html, show

    named = [(name, explain_response(scorer, prompt, response, batch_size)) for name, scorer in models]
    for name, explanation in named:
        show(name, explanation)
    first, second = named[0][1], named[1][1] if len(named) > 1 else None
    if json is not None:
        content = merge_explanations(first, second).content()
        write_json(json, content if second is None else content | {"against": second.content()})
    if output is not None:
        write_text(output, html(named))


def _explain_worst(
    run_dir: RunDirectory, number: int, scorer: RewardScorer, other: RewardScorer | None, batch_size: int
) -> None:
    """Explain the responses of the most wrong pairs of a run, one file per response."""
    from rich.progress import track

    from rmkit.evaluation.token_rewards import explain as explain_response
    from rmkit.evaluation.token_rewards import merge_explanations, most_wrong
    from rmkit.files import write_json

    responses = most_wrong(run_dir, number)
    for wrong in track(responses, description="Explaining"):
        first = explain_response(scorer, wrong.prompt, wrong.response, batch_size)
        second = None if other is None else explain_response(other, wrong.prompt, wrong.response, batch_size)
        write_json(run_dir.path / "explain" / wrong.file, merge_explanations(first, second).content())
    print(f"Wrote explanations of {len(responses)} responses to {run_dir.path / 'explain'}.")


def _find_run(model: str) -> RunDirectory | None:
    """The run at a path, or the run that a model/ folder belongs to."""
    from rmkit.runs.directory import RunDirectory

    path = Path(model)
    for run_dir in (RunDirectory(path), RunDirectory(path.parent)):
        if run_dir.record.is_file() and path.resolve() in (run_dir.path.resolve(), run_dir.model.resolve()):
            return run_dir
    return None


def _model_path(model: str) -> str:
    """The model folder of a run; any other path or id unchanged."""
    run_dir = _find_run(model)
    return model if run_dir is None else str(run_dir.model)
