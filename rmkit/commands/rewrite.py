"""`rmkit rewrite`: token-level shifts of a set of preference pairs, with a language model or without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rmkit.commands.extras import require_extra
from rmkit.errors import RmkitError, exit_on_error

if TYPE_CHECKING:  # heavy, and not needed for --help
    from rmkit.data.preferences import PreferenceData
    from rmkit.data.rewriting.checks import Bounds
    from rmkit.data.rewriting.client import Endpoint, Request
    from rmkit.data.rewriting.sets import Rewrites
    from rmkit.data.rewriting.styles import Style

_SHOWN_PROBLEMS = 5


def rewrite(
    data: Annotated[str, typer.Argument(help="A hub id, save_to_disk folder, .parquet or .jsonl file.")],
    style: Annotated[
        str,
        typer.Option(
            help="paraphrase, a language by its English name, a file that holds a prompt with {response}, or "
            "local:typos, local:casing, local:punctuation, local:formatting, local:whitespace."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The folder to write. Answers are kept in OUTPUT.journal.jsonl.")],
    model: Annotated[str | None, typer.Option(help="The model to ask, for example gpt-4.1-2025-04-14.")] = None,
    split: Annotated[str, typer.Option(help="The split to rewrite.")] = "test",
    subset: Annotated[str | None, typer.Option(help="The configuration of a hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="The revision of a hub data set.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs.")] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="An endpoint that speaks OpenAI's protocol (vLLM, llama.cpp).", show_default="OpenAI"),
    ] = None,
    api_key_variable: Annotated[
        str, typer.Option(help="The environment variable that holds the API key.")
    ] = "OPENAI_API_KEY",
    batch_api: Annotated[bool, typer.Option("--batch-api", help="Ask through the Batch API: cheaper, slower.")] = False,
    poll_seconds: Annotated[float, typer.Option(min=0, help="Time between two looks at a batch.")] = 30.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer.")] = 600.0,
    temperature: Annotated[float | None, typer.Option(min=0, show_default="the endpoint's")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Limit of one answer.", show_default="the endpoint's")
    ] = None,
    on_bad: Annotated[
        Literal["keep-out", "retry", "keep", "error"],
        typer.Option(
            help="A pair with a rewrite that is empty, refused, cut, unchanged, in another language, or far too long "
            "or short: leave it out; ask again, then leave it out; keep it; or stop.",
        ),
    ] = "keep-out",
    attempts: Annotated[int, typer.Option(min=1, help="With --on-bad retry: how often a text is asked for.")] = 3,
    length_ratio: Annotated[
        tuple[float, float], typer.Option(help="Bounds of a rewrite's length by its original's, in characters.")
    ] = (0.2, 5.0),
    tokenizer: Annotated[
        str | None, typer.Option(help="The tokenizer of the overlap statistic.", show_default="words and marks")
    ] = None,
    input_price: Annotated[float | None, typer.Option(min=0, help="Price of a million input tokens.")] = None,
    output_price: Annotated[float | None, typer.Option(min=0, help="Price of a million output tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the local rewriters.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a set rewritten otherwise.")] = False,
) -> None:
    """Rewrite the responses of a set: paraphrased, translated, or in another form."""
    with exit_on_error():
        require_extra("rewrite", "rmkit rewrite")
        from rmkit.data.preferences import load_preferences
        from rmkit.data.rewriting import sets
        from rmkit.data.rewriting.checks import Bounds
        from rmkit.data.rewriting.client import Endpoint, Request
        from rmkit.data.rewriting.styles import load_local_style, load_style
        from rmkit.data.rewriting.token_overlap import load_tokenize

        local = load_local_style(style)
        asked = load_style(style) if local is None else None
        if asked is not None and model is None:
            raise RmkitError(f"--style {style} needs a --model to ask.", "Name one, or give a local: style.")
        tokenize = load_tokenize(tokenizer)
        source = load_preferences(data, split=split, subset=subset, revision=revision, limit=limit)
        settings: dict[str, Any] = {"source": data, "split": split, "style": style}
        if asked is None:
            settings |= {"seed": seed}
        else:
            settings |= {"prompt": asked.prompt, "model": model, "temperature": temperature, "max_tokens": max_tokens}
            settings |= {"on_bad": on_bad, "attempts": attempts, "length_ratio": length_ratio}
        identity = sets.identity(source.fingerprint, settings)
        card = sets.read_finished(output, identity, overwrite)
        if card is not None:
            print(f"{output} is finished: nothing was asked for.")
        else:
            tokens: dict[str, int] = {}
            texts = sets.distinct_responses(source)
            if local is not None:
                rewrites = sets.rewrite_all_locally(texts, local, seed)
            else:
                assert asked is not None
                requests = {text: Request(str(model), asked.request(text), temperature, max_tokens) for text in texts}
                endpoint = Endpoint(base_url, api_key_variable, concurrency, timeout)
                rewrites, tokens = _ask(
                    requests,
                    asked,
                    endpoint,
                    output.with_name(f"{output.name}.journal.jsonl"),
                    attempts=attempts if on_bad == "retry" else 1,
                    bounds=Bounds(*length_ratio),
                    poll_seconds=poll_seconds if batch_api else None,
                )
                _print_problems(source, rewrites, stop=on_bad == "error")
            rows, left_out = sets.assemble(source, rewrites, keep_bad=on_bad == "keep")
            card = {"identity": identity, **settings, "pairs": len(rows["prompt"]), "left_out": dict(left_out)}
            card |= {
                "fingerprint": source.fingerprint,
                "problems": _problems_by_row(source, rewrites),
                "tokens": tokens,
            }
            sets.write_set(output, split, rows, card)
        _print_summary(output, card, sets.overlaps(sets.read_set(output, split), tokenize), tokenizer)
        _print_cost(card["tokens"], input_price, output_price)


def _ask(
    requests: Mapping[str, Request],
    style: Style,
    endpoint: Endpoint,
    journal_path: Path,
    *,
    attempts: int,
    bounds: Bounds,
    poll_seconds: float | None,
) -> tuple[Rewrites, dict[str, int]]:
    """The rewrites of texts and the tokens that all answers took, the ones of earlier commands included."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    from rmkit.data.rewriting.batch import ask_in_batches
    from rmkit.data.rewriting.checks import language_is_checked
    from rmkit.data.rewriting.client import Unanswered, ask
    from rmkit.data.rewriting.journal import open_journal
    from rmkit.data.rewriting.sets import ask_for_rewrites

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    if style.language is not None and not language_is_checked(style):
        print(f"warning: whether rewrites are in {style.name} is not checked, the detector does not know it.")
    with open_journal(journal_path) as journal, Progress(*columns, console=Console(stderr=True)) as progress:
        keys = {request.key for request in requests.values()}
        before = len(journal.answers_to(keys))
        task = progress.add_task(f"rewriting ({style.name})", total=len(keys), completed=min(before, len(keys)))

        def ask_waiting(waiting: Mapping[str, Request]) -> Unanswered:
            def advance(number: int) -> None:
                progress.advance(task, number)

            progress.update(task, total=len(keys), completed=len(keys) - len(waiting))
            if poll_seconds is None:
                return ask(endpoint, waiting, journal, advance)
            return ask_in_batches(endpoint, waiting, journal, advance, poll_seconds=poll_seconds)

        rewrites = ask_for_rewrites(requests, style, journal, ask_waiting, attempts=attempts, bounds=bounds)
        answers = journal.answers_to(keys)
        tokens = {
            "answers": len(answers),
            "input": sum(answer.prompt_tokens for answer in answers),
            "output": sum(answer.completion_tokens for answer in answers),
        }
        progress.update(task, completed=len(keys))
    print(
        f"{len(answers)} answers for {len(keys)} texts; {before} were in the journal, {len(answers) - before} are new."
    )
    return rewrites, tokens


def _problems_by_row(source: PreferenceData, rewrites: Rewrites) -> list[dict[str, Any]]:
    return [
        {"index": pair.index, "response": side, "problem": rewrites.problems[text]}
        for pair in source
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
        if text in rewrites.problems
    ]


def _print_problems(source: PreferenceData, rewrites: Rewrites, stop: bool) -> None:
    """How many rewrites the checks found to be bad, and the first few of them.

    Raises:
        RmkitError: if there are any and `stop` is on.
    """
    problems = _problems_by_row(source, rewrites)
    if not problems:
        return
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(rewrites.problems.values()).most_common())
    first = problems[0]
    if stop:
        raise RmkitError(
            f"Bad rewrites: {counts}; the first is the {first['response']} response of row {first['index']}.",
            "Look at them in the journal; --on-bad retry asks again, keep-out leaves their pairs out.",
        )
    print(f"warning: bad rewrites: {counts}")
    for each in problems[:_SHOWN_PROBLEMS]:
        text = next(getattr(pair, each["response"]) for pair in source if pair.index == each["index"])
        print(
            f"  row {each['index']}, {each['response']}: {each['problem']}: {_shown(text)} -> "
            f"{_shown(rewrites.texts.get(text, ''))}"
        )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _print_summary(output: Path, card: Mapping[str, Any], overlaps: Sequence[float], tokenizer: str | None) -> None:
    left_out = ", ".join(f"{count} {reason}" for reason, count in card["left_out"].items())
    print(f"{output}: {card['pairs']} pairs, left out: {left_out or 'none'}.")
    itself, rewritten = overlaps
    print(
        f"Token overlap ({tokenizer or 'words and marks; --tokenizer counts tokens'}): originals with themselves "
        f"{itself:.4f}, with their rewrites {rewritten:.4f}."
    )


def _print_cost(tokens: Mapping[str, int], input_price: float | None, output_price: float | None) -> None:
    if not tokens:
        return
    cost = ""
    if input_price is not None and output_price is not None:
        total = (tokens["input"] * input_price + tokens["output"] * output_price) / 1e6
        cost = f", {total:.4f} at the prices given"
    print(f"{tokens['answers']} answers: {tokens['input']} input tokens, {tokens['output']} output tokens{cost}.")
