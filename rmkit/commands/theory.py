"""`rmkit theory`: the paper's equations and theorems, tested on your own model and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmkit.commands.extras import require_extra
from rmkit.commands.options import Base, ChatTemplate, NoVerify, SetOptions, group_options
from rmkit.errors import RmkitError, exit_on_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rmkit.data.preferences import PreferenceData

theory_app = typer.Typer(
    name="theory",
    help="Check the paper's equations and theorems on a model. Sections 3.1 and 4, Appendices A and B.",
    no_args_is_help=True,
)

Model = Annotated[str, typer.Argument(help="A language model's folder or hub id, or a run's model/ folder.")]
_DATA = "Preference pairs: a save_to_disk folder, .parquet, .jsonl, or a hub id."
Data = Annotated[str, typer.Argument(help=_DATA)]
Split = Annotated[str, typer.Option(help="Split of the sets.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Leave out pairs longer than N tokens.")]
DType = Annotated[str, typer.Option(help="Dtype of the backbone: float64 or float32.")]
DateString = Annotated[str | None, typer.Option(help="The date for templates that print one.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Responses per forward pass.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")]
FigureFile = Annotated[
    Path | None, typer.Option(help="Write the figure to this .png, .svg or .pdf; by default next to the --json file.")
]


@theory_app.command(
    epilog="\b\nExamples:\n  rmkit theory dynamics runs/llama8b_imrm/model data/ultrafeedback --pairs 4\n"
    "  rmkit theory dynamics runs/llama8b_imrm"
)
@group_options
def dynamics(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A language model, a trained reward model, or a finished run.")],
    reading: SetOptions,
    data: Annotated[
        str | None, typer.Argument(help=f"{_DATA} Not for a run, which records its own.", show_default=False)
    ] = None,
    unseen: Annotated[
        list[str] | None, typer.Option(help="A set with other wordings of responses to the same prompts; repeatable.")
    ] = None,
    type: Annotated[list[str] | None, typer.Option(help="explicit, implicit, generative; all by default.")] = None,
    split: Split = "test",
    pairs: Annotated[int, typer.Option(min=1, help="Number of first pairs to take a step on.")] = 8,
    others: Annotated[int, typer.Option(min=0, help="Number of other pairs to measure after a step.")] = 1,
    learning_rate: Annotated[
        float, typer.Option(min=0, help="Learning rate of the step; 10 and 100 times it are measured too.")
    ] = 1e-6,
    beta: Annotated[float, typer.Option(help="Beta of a language model taken as an implicit reward model.")] = 0.01,
    backbone: Annotated[bool, typer.Option(help="Also take the step with all parameters trained.")] = True,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens per response in the heat map.")] = 24,
    max_length: MaxLength = None,
    batch_size: BatchSize = 4,
    dtype: DType = "float64",
    date_string: DateString = None,
    chat_template: ChatTemplate = None,
    seed: Annotated[int, typer.Option(help="Seed of an untrained reward head.")] = 0,
    json: Json = None,
    figure: FigureFile = None,
    base: Base = None,
    no_verify: NoVerify = False,
) -> None:
    """Predict what one gradient step does to rewards (Eq. 4, 5, 8), and measure it.

    For the directory of a finished run: before and after its training, into RUN/theory/dynamics.json.
    """
    with exit_on_error():
        _check_dtype(dtype)
        if learning_rate <= 0 or beta <= 0:
            raise RmkitError("--learning-rate and --beta must be positive.", "Omit them for the defaults.")
        from rmkit.runs.directory import RunDirectory

        steps: dict[str, Any] = {"learning_rate": learning_rate, "others": others, "backbone": backbone}
        steps |= {"batch_size": batch_size}
        loading: dict[str, Any] = {"dtype": dtype, "base": base, "verify": not no_verify}
        run_dir = RunDirectory(model)
        if run_dir.record.is_file():
            _refuse_options(context, model)
            json = json or run_dir.path / "theory" / "dynamics.json"
            place = _figure_place(json, figure)
            from rmkit.theory.model_dynamics import dynamics_of_run

            _finish_dynamics(dynamics_of_run(run_dir, pairs=pairs, **steps, **loading), model, data, json, place)
            return
        if data is None:
            raise RmkitError(f"DATA is missing: {model} is not a finished run.", "Give preference pairs after MODEL.")
        place = _figure_place(json, figure)
        loading |= {"beta": beta, "seed": seed, "date_string": date_string, "chat_template": chat_template}
        texts: dict[str, Any] = {"max_length": max_length, "tokens": tokens, "types": type}
        content = _dynamics_of_model(
            model, data, unseen or [], split, pairs, reading, loading=loading, **texts, **steps
        )
        _finish_dynamics(content, model, data, json, place)


_READING = ("column", "pairing", "templated")
_RECORDED = (
    "data",
    "unseen",
    "type",
    "split",
    "beta",
    "tokens",
    "max_length",
    "date_string",
    "chat_template",
    "seed",
    *_READING,
)


def _refuse_options(context: typer.Context, model: str) -> None:
    """Refuse options that a run's record determines, which would otherwise be ignored."""
    unused = [name for name in _RECORDED if _is_on_command_line(context, name)]
    if unused:
        option = "DATA" if unused[0] == "data" else f"--{unused[0].replace('_', '-')}"
        raise RmkitError(
            f"{option} has no use: {model} is a run, which records its model and data.",
            f"Remove it, or give {Path(model) / 'model'} with your own DATA.",
        )


def _is_on_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _dynamics_of_model(
    model: str, data: str, unseen: list[str], split: str, pairs: int, reading: SetOptions, **options: Any
) -> dict[str, Any]:
    from rmkit.theory.model_dynamics import dynamics_of_model, same_prompts

    training = _load_set(data, split, reading, pairs)
    prompts = [pair.prompt for pair in training]
    rewordings = {name: same_prompts(pairs, prompts) for name, pairs in _sets(unseen, split, reading).items()}
    return dynamics_of_model(model, training, rewordings, **options)


def _finish_dynamics(
    found: dict[str, Any], model: str, data: str | None, json: Path | None, place: Path | None
) -> None:
    from rmkit.report import theory_figures as figures

    content: dict[str, Any] = {"theory": "dynamics", "format": 1, "model": model, "data": data} | found
    drawn: dict[str, Figure] = {}
    if "heat_map" in content:
        drawn["-rho"] = figures.heat_map(content["heat_map"])
    drawn["-margins"] = figures.margin_changes(content["types"] if "types" in content else content["states"])
    _finish(content, drawn, json, place)


@theory_app.command(epilog="\b\nExample:\n  rmkit theory separator runs/llama8b_exrm/model data/rewardmath --pairs 500")
@group_options
def separator(
    model: Model,
    data: Data,
    reading: SetOptions,
    unseen: Annotated[list[str] | None, typer.Option(help="Pairs to measure the separator on; repeatable.")] = None,
    split: Split = "test",
    unseen_split: Annotated[str | None, typer.Option(help="Split of the unseen sets, if different.")] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Use only the first N pairs of every set.")] = None,
    max_length: MaxLength = None,
    batch_size: BatchSize = 8,
    dtype: DType = "float32",
    date_string: DateString = None,
    chat_template: ChatTemplate = None,
    json: Json = None,
    figure: FigureFile = None,
    base: Base = None,
    no_verify: NoVerify = False,
) -> None:
    """Compute the max-margin separator of hidden states (Eq. 6), and its products with unseen pairs (footnote 3)."""
    with exit_on_error():
        require_extra("theory", "rmkit theory separator")
        place = _figure_place(json, figure)
        _check_dtype(dtype)
        from rmkit.report import theory_figures as figures
        from rmkit.theory.separator import (
            NotSeparable,
            compute_products,
            max_margin_separator,
            products_summary,
            separator_summary,
        )

        training = _load_set(data, split, reading, pairs)
        sets = _sets(unseen or [], unseen_split or split, reading, pairs)
        loading: dict[str, Any] = {"dtype": dtype, "date_string": date_string, "chat_template": chat_template}
        loading |= {"base": base, "verify": not no_verify}
        compute_differences = _difference_function(model, max_length, batch_size, loading)
        indices, differences = compute_differences(training)
        content: dict[str, Any] = {"theory": "separator", "format": 1, "model": model, "data": data}
        content |= {"pairs": len(differences), "hidden_size": differences.shape[1]}
        try:
            found = max_margin_separator(differences)
        except NotSeparable as error:
            _finish(content | error.summary(indices), {}, json, None)
            raise NotSeparable(error.weights, error.residual, indices) from None
        content |= separator_summary(found, indices)
        content["unseen"] = {
            name: products_summary(compute_products(found, compute_differences(pairs_of_set)[1]))
            for name, pairs_of_set in sets.items()
        }
        _finish(content, {"": figures.separator_products(content)} if sets else {}, json, place if sets else None)


def _difference_function(
    model: str, max_length: int | None, batch_size: int, loading: dict[str, Any]
) -> Callable[[PreferenceData], tuple[list[int], Any]]:
    """A function from a set to the source rows of its pairs and h_{x,y+} - h_{x,y-} [pairs, hidden size]."""
    from accelerate import PartialState

    from rmkit.encoding.pairs import encode_pairs
    from rmkit.theory.loading import hidden_differences, load_as, possible_types

    checkpoint = load_as(model, "explicit" if possible_types(model) else None, **loading)
    checkpoint.model.to(PartialState().device)

    def compute_differences(data: PreferenceData) -> tuple[list[int], Any]:
        encoded = encode_pairs(data, checkpoint.reward_model, max_length=max_length)
        indices = [pair.index for pair in encoded.pairs]
        return indices, hidden_differences(checkpoint, encoded, batch_size, data.name)

    return compute_differences


@theory_app.command("unseen-tokens", epilog="\b\nExample:\n  rmkit theory unseen-tokens --json unseen_tokens.json")
@group_options
def unseen_tokens(
    reading: SetOptions,
    model: Annotated[
        str | None, typer.Option(help="Use hidden states of this model instead of simulated ones.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="With --model: pairs whose responses are single tokens.")] = None,
    unseen: Annotated[
        str | None,
        typer.Option(help="With --model: the unseen pairs; by default the rest of --data."),
    ] = None,
    split: Split = "test",
    training_pairs: Annotated[int, typer.Option(min=1, help="Pairs to train on.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Gradient descent steps.")] = 20_000,
    learning_rate: Annotated[float | None, typer.Option(help="By default 0.9 of Theorem 2's bound.")] = None,
    beta: Annotated[float, typer.Option(help="Beta of the implicit reward model.")] = 1.0,
    batch_size: BatchSize = 8,
    dtype: DType = "float64",
    date_string: DateString = None,
    chat_template: ChatTemplate = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulation and of the control arm.")] = 0,
    json: Json = None,
    figure: FigureFile = None,
) -> None:
    """Rank tokens unseen in training (Theorem 2): implicit models cannot, explicit ones rank like u*."""
    with exit_on_error():
        require_extra("theory", "rmkit theory unseen-tokens")
        place = _figure_place(json, figure)
        _check_dtype(dtype)
        if beta <= 0:
            raise RmkitError("--beta must be positive.", "Omit it for 1.")
        if (model is None) != (data is None):
            raise RmkitError("--model and --data must be given together.", "Give both, or neither to simulate.")
        if model is None and chat_template is not None:
            raise RmkitError("--chat-template has no use without --model.", "Remove it, or give --model and --data.")
        from rmkit.report import theory_figures as figures
        from rmkit.theory import unseen_tokens as theorem

        if model is None or data is None:
            task, control = (
                theorem.synthetic_task(arm, training_pairs=training_pairs, seed=seed) for arm in (True, False)
            )
        else:
            loading = {"dtype": dtype, "date_string": date_string, "chat_template": chat_template}
            task = _single_tokens(model, data, unseen, split, reading, training_pairs, batch_size, loading)
            control = theorem.control_task(task, seed)
        options: dict[str, Any] = {"beta": beta, "steps": steps}
        found = theorem.descend(*task, learning_rate=learning_rate, **options)
        bound = theorem.learning_rate_bound(task[0], beta)
        content: dict[str, Any] = {"theory": "unseen-tokens", "format": 1, "model": model, "data": data}
        content |= {"training_pairs": len(task[0]), "unseen_pairs": len(task[1])}
        content |= {"learning_rate": learning_rate or 0.9 * bound, "learning_rate_bound": bound, **options}
        content |= theorem.unseen_tokens_summary(found, theorem.descend(*control, **options))
        _finish(content, {"": figures.unseen_tokens(content)}, json, place)


@theory_app.command(epilog="\b\nExample:\n  rmkit theory verification --largest 7 --json verification.json")
def verification(
    smallest: Annotated[int, typer.Option(min=4, help="Number of vertices of the smallest graphs.")] = 4,
    largest: Annotated[int, typer.Option(min=4, max=9, help="Number of vertices of the largest graphs.")] = 8,
    graphs: Annotated[int, typer.Option(min=1, help="Random graphs per size.")] = 10,
    delta: Annotated[float, typer.Option(help="The verifier's margin.")] = 1.0,
    beta: Annotated[float, typer.Option(help="Beta of the implicit reward model.")] = 1.0,
    edge_probability: Annotated[
        float, typer.Option(min=0, max=1, help="Probability of edges besides the planted cycle.")
    ] = 0.2,
    reference: Annotated[
        str, typer.Option(help="pi_ref: uniform, random, or efficient (the control arm: 1/4 on correct answers).")
    ] = "uniform",
    seed: Annotated[int, typer.Option(help="Seed of the graphs.")] = 0,
    json: Json = None,
    figure: FigureFile = None,
) -> None:
    """Verify Hamiltonian cycles without learning to generate them (Theorem 1, Corollary 1), listing all answers."""
    with exit_on_error():
        place = _figure_place(json, figure)
        if reference not in ("uniform", "random", "efficient"):
            raise RmkitError(f"--reference {reference} is unknown.", "Use uniform, random or efficient.")
        if smallest > largest:
            raise RmkitError("--smallest is larger than --largest.", "Swap them.")
        from dataclasses import asdict

        from rmkit.report import theory_figures as figures
        from rmkit.theory import verification as theorem

        found = theorem.cases(
            range(smallest, largest + 1),
            graphs,
            delta=delta,
            beta=beta,
            edge_probability=edge_probability,
            reference=reference,  # type: ignore[arg-type]
            seed=seed,
        )
        content: dict[str, Any] = {
            "theory": "verification",
            "format": 1,
            "task": "Hamiltonian cycles",
            "delta": delta,
            "beta": beta,
            "edge_probability": edge_probability,
            "reference": reference,
            "cases": [asdict(case) for case in found],
            "growth": theorem.growth(found, "mass"),
            "reference_growth": theorem.growth(found, "reference_mass"),
            "sweep": theorem.sweep(found[-1]),
        }
        _finish(content, {"": figures.verification(content)}, json, place)


def _finish(content: dict[str, Any], drawn: Mapping[str, Figure], json: Path | None, place: Path | None) -> None:
    """Print the tables; write the figures, then the JSON file that lists them."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rmkit.files import write_json
    from rmkit.report.theory_figures import write_figure
    from rmkit.report.theory_summary import tables

    console = Console()
    for content_table in tables(content):
        table = Table(title=escape(content_table["title"]))
        for number, column in enumerate(content_table["columns"]):
            table.add_column(escape(column), justify="left" if number == 0 else "right", overflow="fold")
        for row in content_table["rows"]:
            table.add_row(*map(escape, row))
        console.print(table)
    content["figures"] = []
    for suffix, figure in drawn.items() if place is not None else []:
        path = place.with_stem(place.stem + suffix)  # type: ignore[union-attr]
        write_figure(path, figure)
        content["figures"].append(path.name)
        console.print(f"figure: {path}", markup=False, highlight=False)
    if json is not None:
        write_json(json, content)
        console.print(f"numbers: {json}", markup=False, highlight=False)


def _figure_place(json: Path | None, figure: Path | None) -> Path | None:
    """The figure's path: `figure`, else next to the JSON file, else None."""
    if figure is None:
        return None if json is None else json.with_suffix(".png")
    from rmkit.report.theory_figures import check_format

    check_format(figure)
    return figure


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float64", "float32"):
        raise RmkitError(f"--dtype {dtype} is unknown.", "Use float64 or float32.")


def _load_set(path: str, split: str, reading: SetOptions, limit: int | None = None) -> PreferenceData:
    """A set, with a line on its format unless it is plain texts."""
    from rmkit.data.preferences import load_preferences

    data = load_preferences(path, split=split, limit=limit, **reading.settings())
    if data.format is not None:
        print(f"{data.name}: {data.format}")
    return data


def _sets(paths: list[str], split: str, reading: SetOptions, limit: int | None = None) -> dict[str, PreferenceData]:
    """Sets by name, or by path if two have the same name."""
    files = (".jsonl", ".json", ".parquet", ".csv")
    names = [Path(path).stem if Path(path).suffix in files else Path(path).name for path in paths]
    return {
        name if names.count(name) == 1 else path: _load_set(path, split, reading, limit)
        for name, path in zip(names, paths, strict=True)
    }


def _single_tokens(
    model: str,
    data: str,
    unseen: str | None,
    split: str,
    reading: SetOptions,
    training_pairs: int,
    batch_size: int,
    loading: dict[str, Any],
) -> Any:
    from accelerate import PartialState

    from rmkit.encoding.templated import TemplateReader
    from rmkit.theory.loading import freeze_checkpoint, load_as, possible_types
    from rmkit.theory.single_tokens import split_by_tokens, token_pairs

    if possible_types(model) is None:
        raise RmkitError(
            f"{model} is a trained reward model.", "Give a language model: both types are trained from it."
        )
    loaded = _load_set(data, split, reading)
    others = None if unseen is None else _load_set(unseen, split, reading)
    checkpoint = load_as(model, "implicit", **loading)
    template = TemplateReader(checkpoint.reward_model.encoder)
    pairs, left_pairs = (
        template.apply(loaded, loaded.pairs),
        None if others is None else template.apply(others, others.pairs),
    )
    train, left = split_by_tokens(checkpoint.reward_model.encoder, pairs, training_pairs, left_pairs)
    checkpoint.model.to(PartialState().device)
    frozen_model = freeze_checkpoint(checkpoint)
    for note in frozen_model.notes:
        print(note)
    return token_pairs(frozen_model, train, left, batch_size)
