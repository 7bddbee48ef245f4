"""`rmkit explain`: a reward, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmkit.commands.score import (
    Base,
    BatchSize,
    Beta,
    DateString,
    DType,
    NoVerify,
    Pooling,
    Reference,
    SpecialTokens,
    Trust,
    Type,
    load_scorer,
)
from rmkit.errors import RmkitError, exit_on_error

if TYPE_CHECKING:
    from rmkit.evaluation.scorer import RewardScorer
    from rmkit.runs.directory import RunDirectory
    from rmkit.runs.explanation import Explanation

_LARGEST = 10


def explain(
    model: Annotated[str, typer.Argument(help="A run, its model/ folder, any transformers model folder, or a hub id.")],
    prompt: Annotated[str | None, typer.Option(help="The prompt.")] = None,
    response: Annotated[str | None, typer.Option(help="The response.")] = None,
    against: Annotated[str | None, typer.Option(help="A second reward model: a run or its model/ folder.")] = None,
    worst: Annotated[
        int | None,
        typer.Option(min=1, help="Instead of texts: so many of the most wrong pairs of each set, into RUN/explain/."),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers.")] = None,
    type: Type = None,
    pooling: Pooling = None,
    reference: Reference = None,
    beta: Beta = None,
    batch_size: BatchSize = 8,
    dtype: DType = None,
    date_string: DateString = None,
    special_tokens: SpecialTokens = None,
    trust_remote_code: Trust = False,
    base: Base = None,
    no_verify: NoVerify = False,
) -> None:
    """Show what each token adds to a reward: an implicit reward's terms, or an explicit one's rewards of prefixes."""
    with exit_on_error():
        run = _run(model)
        if worst is None and (prompt is None or response is None):
            raise RmkitError("There is nothing to explain.", "Give --prompt and --response, or a run and --worst.")
        if worst is not None and (run is None or (prompt, response, output, json) != (None, None, None, None)):
            raise RmkitError("--worst takes its texts from a run.", "Give a run, and no texts, --output or --json.")
        common = (dtype, None, date_string, trust_remote_code)
        ways: dict[str, Any] = {"special_tokens": special_tokens, "verify": not no_verify}
        scorer = load_scorer(_place(model), type, pooling, reference, beta, *common, base=base, **ways)
        other = None
        if against is not None:
            other = load_scorer(_place(against), None, None, None, None, *common, **ways)
        if worst is not None and run is not None:
            _explain_worst(run, worst, scorer, other, batch_size)
            return
        from rmkit.evaluation.token_rewards import explain as explained
        from rmkit.evaluation.token_rewards import merge_explanations
        from rmkit.files import write_json, write_text
        from rmkit.report.explanation import html

        first = explained(scorer, str(prompt), str(response), batch_size)
        second = None if other is None else explained(other, str(prompt), str(response), batch_size)
        found = [(model, first)] if second is None else [(model, first), (str(against), second)]
        for name, explanation in found:
            _show(name, explanation)
        if json is not None:
            content = merge_explanations(first, second).content()
            write_json(json, content if second is None else content | {"against": second.content()})
        if output is not None:
            write_text(output, html(found))


def _explain_worst(
    run: RunDirectory, number: int, scorer: RewardScorer, other: RewardScorer | None, batch_size: int
) -> None:
    from rich.progress import track

    from rmkit.evaluation.token_rewards import explain as explained
    from rmkit.evaluation.token_rewards import merge_explanations, most_wrong
    from rmkit.files import write_json

    responses = most_wrong(run, number)
    for each in track(responses, description="Explaining"):
        first = explained(scorer, each.prompt, each.response, batch_size)
        second = None if other is None else explained(other, each.prompt, each.response, batch_size)
        write_json(run.path / "explain" / each.file, merge_explanations(first, second).content())
    print(f"{len(responses)} responses are explained in {run.path / 'explain'}.")


def _run(model: str) -> RunDirectory | None:
    """The run that a path is, or that its model/ belongs to."""
    from rmkit.runs.directory import RunDirectory

    path = Path(model)
    for run in (RunDirectory(path), RunDirectory(path.parent)):
        if run.record.is_file() and path.resolve() in (run.path.resolve(), run.model.resolve()):
            return run
    return None


def _place(model: str) -> str:
    """Where the model is, of a run or as given."""
    run = _run(model)
    return model if run is None else str(run.model)


def _show(model: str, explanation: Explanation) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from rmkit.report.explanation import parts, shades, visible

    console = Console(highlight=False)
    console.print(f"\n{model}", style="bold", markup=False)
    for line, kind, values in parts(explanation):
        console.print(line, markup=False)
        console.print(
            Text.assemble(
                *(
                    (visible(token), _style(shade))
                    for token, shade in zip(explanation.tokens, shades(values, kind), strict=True)
                )
            )
        )
        table = Table("token", "adds", title=f"largest of {len(values)}", title_justify="left")
        table.columns[1].justify = "right"
        for at in sorted(range(len(values)), key=lambda at: -abs(values[at]))[:_LARGEST]:
            table.add_row(f"{escape(repr(explanation.tokens[at]))} ({at + 1})", f"{values[at]:+.4g}")
        console.print(table)


def _style(shade: float) -> str:
    """Blue for what raises the reward, orange for what lowers it: bold where it does so much, dim where little."""
    if abs(shade) < 0.02:
        return "dim"
    return ("bold " if abs(shade) > 0.5 else "") + ("bright_blue" if shade > 0 else "orange3")
