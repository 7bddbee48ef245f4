"""`python -m benchmarks`: the table. `python -m benchmarks growth`: start-up, growth with rows (docs/speed.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from benchmarks import figure as drawing
from benchmarks import growth as rows_and_start
from benchmarks import results
from benchmarks.arithmetic import Work
from benchmarks.measure import Processes, ensure_workspace, measure_all, plan, run_process
from benchmarks.pairs import released_folder
from benchmarks.results import Couple, Entry, Line
from benchmarks.setting import Job, Setting, Workspace
from benchmarks.shapes import SHAPES
from rmkit.errors import RmkitError, exit_on_error
from rmkit.files import write_json

RESULTS = Path(__file__).resolve().parent / "results"

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
Cache = Annotated[
    Path | None, typer.Option(help="Folder for models, kept between runs.", show_default="in rmkit's cache")
]


@app.callback(invoke_without_command=True)
def table(
    context: typer.Context,
    size: Annotated[str, typer.Option(help=f"The model: {', '.join(SHAPES)}; 1b and 3b need a GPU.")] = "19m",
    work: Annotated[list[str] | None, typer.Option(help="Only these workloads.")] = None,
    micro_batch: Annotated[list[int] | None, typer.Option(min=1, help="Pairs per micro-batch: 4 and 8.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of baseline and rmkit per line.")] = 3,
    pairs: Annotated[int | None, typer.Option(min=1, help="Training pairs: 48, on a GPU 192.")] = None,
    scoring_pairs: Annotated[int | None, typer.Option(min=1, help="Pairs per scored set: 40, on a GPU 160.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs per optimizer step.")] = 16,
    warm_up: Annotated[
        bool | None, typer.Option(help="Run every workload once before measuring; on by default on GPUs.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of the released sets; $RMKIT_DATA.")] = None,
    output: Annotated[Path | None, typer.Option(help="The results file; the figure goes next to it.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the measurements of this setting in the file.")
    ] = False,
    cache: Cache = None,
) -> None:
    """Measure rmkit against its baselines; print the table, write it and its figure."""
    if context.invoked_subcommand is not None:
        return
    with exit_on_error():
        console = _console()
        setting, folder = _setting(size, pairs, scoring_pairs, batch_size, warm_up, data)
        lines = plan(_works(work), _micro_batches(micro_batch, setting))
        output = output or RESULTS / f"{setting.shape.device if size != 'tiny' else 'tiny'}.json"
        workspace = ensure_workspace(setting, folder, cache)
        counted = Workspace(workspace).read_counts()
        measure = Processes(setting, workspace).measure
        kept = results.read(output)
        same = {entry.line: entry for entry in kept if entry.setting == setting}
        entries = {line: entry for line, entry in same.items() if resume or line not in lines}
        done: dict[Line, list[Couple]] = {line: list(entry.couples) for line, entry in entries.items()}
        others = [entry for entry in kept if entry.size != size]
        measured = sum(len(done.get(line, [])) for line in lines)
        console.print(
            f"{size}: {setting.shape.parameters / 1e6:.1f}M parameters, {setting.shape.dtype}, {setting.pairs} pairs. "
            f"{len(lines)} lines, {repeats} measurements per line; {measured} are in the file already.",
            highlight=False,
        )

        def note(line: Line, couples: list[Couple]) -> None:
            entries[line] = Entry.of(line, couples, setting, counted[line.work])
            results.write(output, others + _in_order(entries))
            theirs, mine = couples[-1].totals(line.epochs)
            console.print(
                f"{line} ({len(couples)} of {repeats}): {theirs:.1f} s, rmkit {mine:.1f} s: {theirs / mine:.2f}x",
                highlight=False,
            )

        measure_all(lines, repeats, measure, done, note, setting)
        results.print_table(_in_order(entries), console)
        drawing.draw(_in_order(entries), _picture(output, setting.size))
        console.print(f"{output}, {_picture(output, setting.size)}", highlight=False)


@app.command()
def growth(
    rows: Annotated[list[int] | None, typer.Option(min=1, help="Numbers of rows: 1000, 10000 and 100000.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of every --help.")] = 5,
    output: Annotated[Path, typer.Option(help="The results file.")] = RESULTS / "cpu_growth.json",
    cache: Cache = None,
) -> None:
    """Seconds of `rmkit --help` and `trl --help`; seconds and memory of `rmkit score` by number of rows."""
    with exit_on_error():
        console = _console()
        start = rows_and_start.start_up(runs)
        for name, seconds in start.items():
            console.print(f"{name} --help: {seconds['median']:.2f} s ({seconds['min']:.2f}-{seconds['max']:.2f})")
        setting, _ = _setting("tiny", None, None, 16, None, None)
        workspace = ensure_workspace(setting, None, cache)

        def note(found: dict[str, float]) -> None:
            console.print(f"{found['rows']} rows: {found['seconds']:.1f} s, {found['peak_mib']:.0f} MiB")

        found = rows_and_start.growth(workspace, rows or [1_000, 10_000, 100_000], note)
        described = run_process(["machine"], workspace, setting)
        write_json(output, {"start_up": start, "growth": found, "machine": described})
        console.print(str(output), highlight=False)


@app.command()
def figure(file: Annotated[Path, typer.Argument(help="A results file.")]) -> None:
    """Print a results file as a table and draw its figure again."""
    with exit_on_error():
        entries = results.read(file)
        if not entries:
            raise RmkitError(f"No results in {file}.", "Give a file written by `python -m benchmarks`.")
        for size in dict.fromkeys(entry.size for entry in entries):
            of_size = [entry for entry in entries if entry.size == size]
            results.print_table(of_size, _console())
            drawing.draw(of_size, _picture(file, size))


# --- the processes that the table starts ---------------------------------------------------------------------------


@app.command(hidden=True)
def prepare(setting: str, data: str, folder: Path, output: Path) -> None:
    """Write a workspace."""
    with exit_on_error():
        from benchmarks.prepare import prepare as make

        make(Setting.model_validate_json(setting), Path(data) if data else None, folder)
        output.write_text("{}")


@app.command(hidden=True)
def machine(output: Path) -> None:
    """Versions and machine."""
    with exit_on_error():
        from rmkit.runs.environment import describe

        write_json(output, describe())


@app.command(hidden=True)
def worker(job: str, output: Path) -> None:
    """Measure one side of a line."""
    with exit_on_error():
        from benchmarks.worker import measure

        measured = measure(Job.model_validate_json(job), output.parent)
        output.write_text(measured.model_dump_json())


# -------------------------------------------------------------------------------------------------------------------


def _console() -> Console:
    """A console as wide as the table if the width is unknown."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def _picture(file: Path, size: str) -> Path:
    """The figure of a size; the GPU sizes share a results file."""
    return file.with_name(f"{file.stem}_{size}.png") if SHAPES[size].device == "gpu" else file.with_suffix(".png")


def _setting(
    size: str, pairs: int | None, scoring_pairs: int | None, batch_size: int, warm_up: bool | None, data: Path | None
) -> tuple[Setting, Path | None]:
    """The setting, and the folder of the released sets if it uses them."""
    if size not in SHAPES:
        raise RmkitError(f"Unknown size {size}.", f"Give one of {', '.join(SHAPES)}.")
    on_gpu = SHAPES[size].device == "gpu"
    pairs = pairs or (192 if on_gpu else 48)
    if pairs % batch_size:
        raise RmkitError(f"{pairs} pairs are not a multiple of the batch size {batch_size}.", "Change --pairs.")
    folder = data or (None if size == "tiny" else released_folder())
    if folder is not None and not folder.is_dir():
        raise RmkitError(
            f"{folder} does not exist; the released sets should be there.", "Give --data or RMKIT_DATA, or --size tiny."
        )
    content: dict[str, Any] = {
        "size": size,
        "source": "made" if folder is None else "released",
        "pairs": pairs,
        "scoring_pairs": scoring_pairs or (160 if on_gpu else 40),
        "batch_size": batch_size,
        "warm_up": on_gpu if warm_up is None else warm_up,
    }
    return Setting.model_validate_json(json.dumps(content)), folder


def _works(names: list[str] | None) -> list[Work]:
    known = get_args(Work)
    for name in names or []:
        if name not in known:
            raise RmkitError(f"Unknown workload {name}.", f"Give one of {', '.join(known)}.")
    return [work for work in known if names is None or work in names]


def _micro_batches(given: list[int] | None, setting: Setting) -> list[int]:
    sizes = given or [4, 8]
    for size in sizes:
        if setting.batch_size % size:
            raise RmkitError(
                f"The batch size {setting.batch_size} is not a multiple of the micro-batch size {size}.",
                "Change --micro-batch.",
            )
    return sizes


def _in_order(entries: dict[Line, Entry]) -> list[Entry]:
    """Sorted by workload, micro-batch and baseline, as in the table."""
    works, baselines = get_args(Work), list(results.BASELINES)
    return sorted(
        entries.values(),
        key=lambda entry: (works.index(entry.work), entry.micro_batch, baselines.index(entry.baseline)),
    )


if __name__ == "__main__":
    app()
