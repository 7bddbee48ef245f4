"""`rmkit rewrite`: token-level shifts of a set of preference pairs, with a language model or without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rmkit.commands.extras import require_extra
from rmkit.commands.options import Limit, SetOptions, Subset, group_options
from rmkit.errors import RmkitError, exit_on_error

if TYPE_CHECKING:  # heavy, and not needed for --help
    from rmkit.data.preferences import PreferenceData, PreferencePair
    from rmkit.data.rewriting.checks import Bounds
    from rmkit.data.rewriting.client import Endpoint, Request
    from rmkit.data.rewriting.sets import Rewrites
    from rmkit.data.rewriting.styles import Style

_SHOWN_PROBLEMS = 5
OnBad = Literal["keep-out", "retry", "keep", "error"]


@dataclass(frozen=True)
class SourceOptions:
    """The set to rewrite."""

    split: Annotated[str, typer.Option(help="The split to rewrite, or a slice: test[:100].")] = "test"
    subset: Subset = None
    revision: Annotated[str | None, typer.Option(help="The revision of a hub data set.")] = None
    limit: Limit = None


@dataclass(frozen=True)
class AskOptions:
    """The language model that rewrites, its endpoint, and what to do about bad rewrites."""

    model: Annotated[str | None, typer.Option(help="The model to ask, for example gpt-4.1-2025-04-14.")] = None
    base_url: Annotated[
        str | None,
        typer.Option(help="An endpoint with the OpenAI API (vLLM, llama.cpp).", show_default="OpenAI"),
    ] = None
    api_key_variable: Annotated[str, typer.Option(help="The environment variable of the API key.")] = "OPENAI_API_KEY"
    batch_api: Annotated[bool, typer.Option("--batch-api", help="Use the Batch API: cheaper, slower.")] = False
    poll_seconds: Annotated[float, typer.Option(min=0, help="Seconds between two polls of a batch.")] = 30.0
    concurrency: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 8
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer.")] = 600.0
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sampling temperature.", show_default="the endpoint's")
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of an answer.", show_default="the endpoint's")
    ] = None
    on_bad: Annotated[
        OnBad,
        typer.Option(
            help="What to do with a pair whose rewrite is empty, refused, cut off, unchanged, in another language, or "
            "far too long or short: leave it out; ask again, then leave it out; keep it; or stop.",
        ),
    ] = "keep-out"
    attempts: Annotated[int, typer.Option(min=1, help="With --on-bad retry: how often to ask for a text.")] = 3
    length_ratio: Annotated[
        tuple[float, float],
        typer.Option(help="Bounds of the length of a rewrite relative to its original, in characters."),
    ] = (0.2, 5.0)

    def settings(self) -> dict[str, Any]:
        """The options that change the answers."""
        names = ("model", "temperature", "max_tokens", "on_bad", "attempts", "length_ratio")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class SummaryOptions:
    """The statistics that are printed at the end."""

    tokenizer: Annotated[
        str | None, typer.Option(help="The tokenizer of the overlap statistic.", show_default="words and marks")
    ] = None
    input_price: Annotated[float | None, typer.Option(min=0, help="Price of a million input tokens.")] = None
    output_price: Annotated[float | None, typer.Option(min=0, help="Price of a million output tokens.")] = None


@group_options
def rewrite(
    data: Annotated[str, typer.Argument(help="A hub id, save_to_disk folder, .parquet or .jsonl file.")],
    style: Annotated[
        str,
        typer.Option(
            help="paraphrase, a language by its English name, a file with a prompt that contains {response}, or "
            "local:typos, local:casing, local:punctuation, local:formatting, local:whitespace."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The folder to write. Answers are kept in OUTPUT.journal.jsonl.")],
    source: SourceOptions,
    reading: SetOptions,
    asking: AskOptions,
    summary: SummaryOptions,
    seed: Annotated[int, typer.Option(help="Seed of the local styles.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a set rewritten with other settings.")
    ] = False,
) -> None:
    """Paraphrase, translate or reformat the responses of a set."""
    with exit_on_error():
        require_extra("rewrite", "rmkit rewrite")
        from rmkit.data.rewriting import sets
        from rmkit.data.rewriting.styles import load_local_style, load_style
        from rmkit.data.rewriting.token_overlap import load_tokenize
        from rmkit.data.splits import split_names

        local_style = load_local_style(style)
        model_style = load_style(style) if local_style is None else None
        if model_style is not None and asking.model is None:
            raise RmkitError(f"--style {style} needs a --model to ask.", "Add --model, or use a local: style.")
        tokenize = load_tokenize(summary.tokenizer)
        pairs = _load_set(data, source, reading)
        split = "_".join(split_names(source.split))  # a split of `datasets` has no slice in its name
        settings: dict[str, Any] = {"source": data, "split": source.split, "style": style}
        settings |= {"seed": seed} if model_style is None else {"prompt": model_style.prompt, **asking.settings()}
        identity = sets.identity(pairs.fingerprint, settings)
        card = sets.read_finished(output, identity, overwrite)
        if card is not None:
            print(f"{output} is finished: no requests were made.")
        else:
            tokens: dict[str, int] = {}
            if local_style is not None:
                rewrites = sets.rewrite_all_locally(sets.distinct_responses(pairs), local_style, seed)
            else:
                assert model_style is not None
                rewrites, tokens = _ask(pairs, model_style, asking, output.with_name(f"{output.name}.journal.jsonl"))
            rows, left_out = sets.assemble(pairs, rewrites, keep_bad=asking.on_bad == "keep")
            card = {"identity": identity, **settings, "pairs": len(rows["prompt"]), "left_out": dict(left_out)}
            problems = _problems_by_row(pairs, rewrites)
            card |= {"fingerprint": pairs.fingerprint, "problems": problems, "tokens": tokens}
            sets.write_set(output, split, rows, card)
        overlaps = sets.overlaps(sets.read_set(output, split), tokenize)
        _print_summary(output, card, overlaps, summary.tokenizer)
        _print_cost(card["tokens"], summary.input_price, summary.output_price)


def _load_set(data: str, source: SourceOptions, reading: SetOptions) -> PreferenceData:
    """The set to rewrite, with a line on its format unless it is plain texts."""
    from rmkit.data.preferences import load_preferences

    if reading.templated == "read":
        raise RmkitError(
            "--templated read needs a model's chat template, which rmkit rewrite does not have.",
            "Give the conversations as messages, or --templated text to rewrite the texts as they are.",
        )
    pairs = load_preferences(data, **asdict(source), **reading.settings())
    if pairs.format is not None:
        print(f"{pairs.name}: {pairs.format}")
    return pairs


def _ask(
    pairs: PreferenceData, style: Style, options: AskOptions, journal_path: Path
) -> tuple[Rewrites, dict[str, int]]:
    """Rewrite the responses of a set through the endpoint.

    Returns:
        The rewrites, and the token counts of all answers, including those of earlier calls.

    Raises:
        RmkitError: if the endpoint cannot be used; with `on_bad: error`, for the first bad rewrite.
    """
    from rmkit.data.rewriting.checks import Bounds, language_is_checked
    from rmkit.data.rewriting.client import Endpoint, Request
    from rmkit.data.rewriting.sets import distinct_responses

    if style.language is not None and not language_is_checked(style):
        print(f"warning: the language detector does not know {style.name}: the language of rewrites is not checked.")
    requests = {
        text: Request(str(options.model), style.request(text), options.temperature, options.max_tokens)
        for text in distinct_responses(pairs)
    }
    rewrites, tokens = _ask_with_progress(
        requests,
        style,
        Endpoint(options.base_url, options.api_key_variable, options.concurrency, options.timeout),
        journal_path,
        attempts=options.attempts if options.on_bad == "retry" else 1,
        bounds=Bounds(*options.length_ratio),
        poll_seconds=options.poll_seconds if options.batch_api else None,
    )
    _print_problems(pairs, rewrites, stop=options.on_bad == "error")
    return rewrites, tokens


def _ask_with_progress(
    requests: Mapping[str, Request],
    style: Style,
    endpoint: Endpoint,
    journal_path: Path,
    *,
    attempts: int,
    bounds: Bounds,
    poll_seconds: float | None,
) -> tuple[Rewrites, dict[str, int]]:
    """Send the requests that the journal does not answer, with a progress bar; see `_ask`."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    from rmkit.data.rewriting.batch import ask_in_batches
    from rmkit.data.rewriting.client import Unanswered, ask
    from rmkit.data.rewriting.journal import open_journal
    from rmkit.data.rewriting.sets import ask_for_rewrites

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
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
    print(f"{len(answers)} answers for {len(keys)} texts: {before} from the journal, {len(answers) - before} new.")
    return rewrites, tokens


def _problems_by_row(source: PreferenceData, rewrites: Rewrites) -> list[dict[str, Any]]:
    return [
        {"index": pair.index, "response": side, "problem": rewrites.problems[text]}
        for pair, side, text in _problem_texts(source, rewrites)
    ]


def _problem_texts(source: PreferenceData, rewrites: Rewrites) -> list[tuple[PreferencePair, str, str]]:
    """The texts whose rewrites have a problem, with their pair and side."""
    from rmkit.data.conversations import assistant_texts

    return [
        (pair, side, text)
        for pair in source
        for side, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
        for text in assistant_texts(response)
        if text in rewrites.problems
    ]


def _print_problems(source: PreferenceData, rewrites: Rewrites, stop: bool) -> None:
    """Print how many rewrites are bad, and the first few of them.

    Raises:
        RmkitError: if there are any and `stop` is on.
    """
    from rmkit.config.strict_yaml import short_repr

    problems = [
        (pair.index // source.pairs_per_row, side, text) for pair, side, text in _problem_texts(source, rewrites)
    ]
    if not problems:
        return
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(rewrites.problems.values()).most_common())
    if stop:
        row, side, _ = problems[0]
        raise RmkitError(
            f"Bad rewrites: {counts}; the first is the {side} response of row {row}.",
            "Read them in the journal; --on-bad retry asks again, --on-bad keep-out leaves their pairs out.",
        )
    print(f"warning: bad rewrites: {counts}")
    for row, side, text in problems[:_SHOWN_PROBLEMS]:
        rewrite = rewrites.texts.get(text, "")
        print(f"  row {row}, {side}: {rewrites.problems[text]}: {short_repr(text)} -> {short_repr(rewrite)}")


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
        cost = f", {total:.4f} at the given prices"
    print(f"{tokens['answers']} answers: {tokens['input']} input tokens, {tokens['output']} output tokens{cost}.")
