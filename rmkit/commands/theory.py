"""`rmkit theory`: the paper's equations and theorems, checked on the user's own model and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmkit.commands.score import Base, NoVerify
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
Data = Annotated[str, typer.Argument(help="Preference pairs: a save_to_disk folder, .parquet, .jsonl, or a hub id.")]
Split = Annotated[str, typer.Option(help="The split of the sets.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Leave out pairs over so many tokens.")]
DType = Annotated[str, typer.Option(help="What the backbone computes in: float64 or float32.")]
DateString = Annotated[str | None, typer.Option(help="The date for templates that print one.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Responses a forward pass.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")]
FigureFile = Annotated[
    Path | None, typer.Option(help="Write the figure to this .png, .svg or .pdf; beside the --json file by default.")
]


@theory_app.command(epilog="\b\nExample:\n  rmkit theory dynamics runs/llama8b_imrm/model data/ultrafeedback --pairs 4")
def dynamics(
    model: Model,
    data: Data,
    unseen: Annotated[
        list[str] | None, typer.Option(help="A set with other wordings of responses to the same prompts; repeatable.")
    ] = None,
    type: Annotated[list[str] | None, typer.Option(help="explicit, implicit, generative; all by default.")] = None,
    split: Split = "test",
    pairs: Annotated[int, typer.Option(min=1, help="Take a step on each of the first so many pairs.")] = 8,
    others: Annotated[int, typer.Option(min=0, help="Ask about so many other pairs after each step.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of the step; also 10 and 100 times it is tried.")] = 1e-6,
    beta: Annotated[float, typer.Option(help="Of the implicit reward model of a language model.")] = 0.01,
    backbone: Annotated[bool, typer.Option(help="Also take the step with all parameters trained.")] = True,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each response in the heat map.")] = 24,
    max_length: MaxLength = None,
    batch_size: BatchSize = 4,
    dtype: DType = "float64",
    date_string: DateString = None,
    seed: Annotated[int, typer.Option(help="Of the explicit reward model's head.")] = 0,
    json: Json = None,
    figure: FigureFile = None,
    base: Base = None,
    no_verify: NoVerify = False,
) -> None:
    """Predict what one gradient step does to rewards (Eq. 4, 5, 8), and measure it."""
    with exit_on_error():
        place = _figure_place(json, figure)
        _check_dtype(dtype)
        if learning_rate <= 0 or beta <= 0:
            raise RmkitError("--learning-rate and --beta must be positive.", "Leave them out for the paper's.")
        from rmkit.data.preferences import load_preferences
        from rmkit.report import theory_figures as figures
        from rmkit.theory.loading import dynamics_of_model, same_prompts

        training = load_preferences(data, split=split, limit=pairs)
        prompts = [pair.prompt for pair in training]
        content: dict[str, Any] = {"theory": "dynamics", "format": 1, "model": model, "data": data}
        content |= dynamics_of_model(
            model,
            training,
            {name: same_prompts(each, prompts) for name, each in _sets(unseen or [], split).items()},
            types=type,
            beta=beta,
            seed=seed,
            dtype=dtype,
            date_string=date_string,
            max_length=max_length,
            tokens=tokens,
            batch_size=batch_size,
            learning_rate=learning_rate,
            others=others,
            backbone=backbone,
            base=base,
            verify=not no_verify,
        )
        drawn: dict[str, Figure] = {}
        if "heat_map" in content:
            drawn["-rho"] = figures.heat_map(content["heat_map"])
        drawn["-margins"] = figures.margin_changes(content["types"])
        _finish(content, drawn, json, place)


@theory_app.command(epilog="\b\nExample:\n  rmkit theory separator runs/llama8b_exrm/model data/rewardmath --pairs 500")
def separator(
    model: Model,
    data: Data,
    unseen: Annotated[list[str] | None, typer.Option(help="Pairs to measure the separator on; repeatable.")] = None,
    split: Split = "test",
    unseen_split: Annotated[str | None, typer.Option(help="The split of the unseen sets, if another.")] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs of each set.")] = None,
    max_length: MaxLength = None,
    batch_size: BatchSize = 8,
    dtype: DType = "float32",
    date_string: DateString = None,
    json: Json = None,
    figure: FigureFile = None,
    base: Base = None,
    no_verify: NoVerify = False,
) -> None:
    """The max-margin separator of a model's hidden states (Eq. 6), and its products with unseen pairs (footnote 3)."""
    with exit_on_error():
        place = _figure_place(json, figure)
        _check_dtype(dtype)
        import numpy as np
        from accelerate import PartialState

        from rmkit.data.preferences import load_preferences
        from rmkit.encoding.pairs import encode_pairs
        from rmkit.report import theory_figures as figures
        from rmkit.theory.loading import hidden_differences, load_as, possible_types
        from rmkit.theory.separator import (
            NotSeparable,
            max_margin_separator,
            products,
            products_summary,
            separator_summary,
        )

        training = load_preferences(data, split=split, limit=pairs)
        new = _sets(unseen or [], unseen_split or split, pairs)
        as_what = "explicit" if possible_types(model) else None
        options: dict[str, Any] = {"dtype": dtype, "date_string": date_string, "base": base, "verify": not no_verify}
        checkpoint = load_as(model, as_what, **options)
        checkpoint.model.to(PartialState().device)

        def encoded_differences(each: PreferenceData) -> tuple[Any, Any]:
            encoded = encode_pairs(each, checkpoint.reward_model, max_length=max_length)
            return encoded, hidden_differences(checkpoint, encoded, batch_size, each.name)

        encoded, differences = encoded_differences(training)
        indices = [pair.index for pair in encoded.pairs]
        content: dict[str, Any] = {"theory": "separator", "format": 1, "model": model, "data": data}
        content |= {"pairs": len(differences), "hidden_size": differences.shape[1]}
        try:
            found = max_margin_separator(differences)
        except NotSeparable as error:
            rows = np.flatnonzero(error.weights)
            content |= {
                "separable": False,
                "certificate": {
                    "pairs": [indices[row] for row in rows],
                    "weights": error.weights[rows].tolist(),
                    "residual": error.residual,
                },
                "unseen": {},
            }
            _finish(content, {}, json, None)
            raise NotSeparable(error.weights, error.residual, indices) from None
        content |= separator_summary(found, indices)
        content["unseen"] = {
            name: products_summary(products(found, encoded_differences(each)[1])) for name, each in new.items()
        }
        _finish(content, {"": figures.separator_products(content)} if new else {}, json, place if new else None)


@theory_app.command("unseen-tokens", epilog="\b\nExample:\n  rmkit theory unseen-tokens --json unseen_tokens.json")
def unseen_tokens(
    model: Annotated[str | None, typer.Option(help="Hidden states of this model, not simulated ones.")] = None,
    data: Annotated[str | None, typer.Option(help="With --model: pairs whose responses are single tokens.")] = None,
    unseen: Annotated[
        str | None,
        typer.Option(help="With --model: the unseen pairs; by default those of --data after the training pairs."),
    ] = None,
    split: Split = "test",
    training_pairs: Annotated[int, typer.Option(min=1, help="Pairs to train on.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Gradient descent steps.")] = 20_000,
    learning_rate: Annotated[float | None, typer.Option(help="0.9 of Theorem 2's bound by default.")] = None,
    beta: Annotated[float, typer.Option(help="Of the implicit reward model.")] = 1.0,
    batch_size: BatchSize = 8,
    dtype: DType = "float64",
    date_string: DateString = None,
    seed: Annotated[int, typer.Option(help="Of the simulation, and of the control arm.")] = 0,
    json: Json = None,
    figure: FigureFile = None,
) -> None:
    """Rank tokens that training has not shown (Theorem 2): implicit models cannot, explicit ones rank like u*."""
    with exit_on_error():
        place = _figure_place(json, figure)
        _check_dtype(dtype)
        if beta <= 0:
            raise RmkitError("--beta must be positive.", "Leave it out for 1.")
        if (model is None) != (data is None):
            raise RmkitError("--model and --data go together.", "Give both, or neither to simulate.")
        import numpy as np

        from rmkit.report import theory_figures as figures
        from rmkit.theory import unseen_tokens as theorem

        if model is None or data is None:
            task = theorem.synthetic_task(training_pairs=training_pairs, seed=seed)
            control = theorem.synthetic_task(False, training_pairs=training_pairs, seed=seed)
        else:
            task = _single_tokens(model, data, unseen, split, training_pairs, batch_size, dtype, date_string)
            generator = np.random.default_rng(seed)
            without = [theorem.without_structure(each, generator) for each in task[:2]]
            control = (without[0], without[1], task[2])
        options: dict[str, Any] = {"beta": beta, "steps": steps}
        found = theorem.descend(*task, learning_rate=learning_rate, **options)
        content: dict[str, Any] = {
            "theory": "unseen-tokens",
            "format": 1,
            "model": model,
            "data": data,
            "training_pairs": len(task[0]),
            "unseen_pairs": len(task[1]),
            "learning_rate": learning_rate or 0.9 * theorem.learning_rate_bound(task[0], beta),
            "learning_rate_bound": theorem.learning_rate_bound(task[0], beta),
            "beta": beta,
            "steps": steps,
        }
        content |= theorem.unseen_tokens_summary(found, theorem.descend(*control, **options))
        _finish(content, {"": figures.unseen_tokens(content)}, json, place)


@theory_app.command(epilog="\b\nExample:\n  rmkit theory verification --largest 7 --json verification.json")
def verification(
    smallest: Annotated[int, typer.Option(min=4, help="Vertices of the smallest graphs.")] = 4,
    largest: Annotated[int, typer.Option(min=4, max=9, help="Vertices of the largest graphs.")] = 8,
    graphs: Annotated[int, typer.Option(min=1, help="Random graphs of each size.")] = 10,
    delta: Annotated[float, typer.Option(help="The verifier's margin.")] = 1.0,
    beta: Annotated[float, typer.Option(help="Of the implicit reward model.")] = 1.0,
    edge_probability: Annotated[float, typer.Option(min=0, max=1, help="Of edges beside the planted cycle.")] = 0.2,
    reference: Annotated[
        str, typer.Option(help="pi_ref: uniform, random, or efficient (the control arm: 1/4 on correct answers).")
    ] = "uniform",
    seed: Annotated[int, typer.Option(help="Of the graphs.")] = 0,
    json: Json = None,
    figure: FigureFile = None,
) -> None:
    """Verify Hamiltonian cycles without learning to generate them (Theorem 1, Corollary 1), by listing all answers."""
    with exit_on_error():
        place = _figure_place(json, figure)
        if reference not in ("uniform", "random", "efficient"):
            raise RmkitError(f"--reference {reference} is not known.", "Give uniform, random or efficient.")
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
            "cases": [asdict(each) for each in found],
            "growth": theorem.growth(found, "mass"),
            "reference_growth": theorem.growth(found, "reference_mass"),
            "sweep": theorem.sweep(found[-1]),
        }
        _finish(content, {"": figures.verification(content)}, json, place)


def _finish(content: dict[str, Any], drawn: Mapping[str, Figure], json: Path | None, place: Path | None) -> None:
    """Print the tables; write the figures and then the JSON that names them."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rmkit.files import write_json
    from rmkit.report.theory_figures import write_figure
    from rmkit.report.theory_summary import tables

    console = Console()
    for each in tables(content):
        table = Table(title=escape(each["title"]))
        for number, column in enumerate(each["columns"]):
            table.add_column(escape(column), justify="left" if number == 0 else "right", overflow="fold")
        for row in each["rows"]:
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
    """Where figures go: where asked, else beside the JSON, else nowhere."""
    if figure is None:
        return None if json is None else json.with_suffix(".png")
    from rmkit.report.theory_figures import check_format

    check_format(figure)
    return figure


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float64", "float32"):
        raise RmkitError(f"--dtype {dtype} is not known.", "Give float64 or float32.")


def _sets(paths: list[str], split: str, limit: int | None = None) -> dict[str, PreferenceData]:
    """Sets by name, or by path where two have the same name."""
    from rmkit.data.preferences import load_preferences

    files = (".jsonl", ".json", ".parquet")
    names = [Path(path).stem if Path(path).suffix in files else Path(path).name for path in paths]
    return {
        name if names.count(name) == 1 else path: load_preferences(path, split=split, limit=limit)
        for name, path in zip(names, paths, strict=True)
    }


def _single_tokens(
    model: str,
    data: str,
    unseen: str | None,
    split: str,
    training_pairs: int,
    batch_size: int,
    dtype: str,
    date_string: str | None,
) -> Any:
    from accelerate import PartialState

    from rmkit.data.preferences import load_preferences
    from rmkit.theory.loading import freeze_checkpoint, load_as, possible_types
    from rmkit.theory.single_tokens import split_by_tokens, token_pairs

    if possible_types(model) is None:
        raise RmkitError(f"{model} is a trained reward model.", "Give a language model: Theorem 2 trains both types.")
    pairs = load_preferences(data, split=split).pairs
    others = None if unseen is None else load_preferences(unseen, split=split).pairs
    checkpoint = load_as(model, "implicit", dtype=dtype, date_string=date_string)
    train, left = split_by_tokens(checkpoint.reward_model.encoder, pairs, training_pairs, others)
    checkpoint.model.to(PartialState().device)
    lab = freeze_checkpoint(checkpoint)
    for note in lab.notes:
        print(note)
    return token_pairs(lab, train, left, batch_size)
