"""Options that several commands share, and `group_options`, which lets commands take them as dataclasses."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from rmkit.errors import RmkitError

RecipeName = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a shipped recipe, for example llama8b_exrm.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Recipe keys to change, as section.key=value.")]
Model = Annotated[str, typer.Argument(help="A run's model/ folder, any transformers model folder, or a hub id.")]
Split = Annotated[str, typer.Option(help="The split to read, or a slice: test[:100].")]
Subset = Annotated[str | None, typer.Option(help="The configuration of a hub data set.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first N pairs.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Responses per forward pass.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Leave out pairs longer than N tokens.")]

Type = Annotated[str | None, typer.Option(help="explicit, implicit or generative. Default: as recorded.")]
Pooling = Annotated[str | None, typer.Option(help="For explicit models: last or mean.")]
Reference = Annotated[
    str | None, typer.Option(help="For implicit models: the model that training started from, or none.")
]
Beta = Annotated[float | None, typer.Option(help="For implicit models: the factor in Eq. 2.")]
DType = Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: as recorded, else float32.")]
LoadIn = Annotated[
    str | None, typer.Option(help="For adapters: load the base in 4bit, or none. Default: as recorded, else none.")
]
Layout = Annotated[str | None, typer.Option(help="shared or padded. Default: as recorded, else shared.")]
DateString = Annotated[str | None, typer.Option(help="The date for chat templates that print one.")]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(help="A Jinja file, or a shipped template (paper, released), instead of the model's own."),
]
SpecialTokens = Annotated[
    str | None,
    typer.Option(
        help="How to treat control tokens spelled out in texts: text, keep (as tokens) or error. Default: as recorded, "
        "else text."
    ),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")]
Base = Annotated[
    str | None, typer.Option(help="Current location of the model that training started from, if it has moved.")
]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Continue even if base, reference or tokenizer differ from training.")
]


@dataclass(frozen=True)
class ModelOptions:
    """How to load a reward model; see `rmkit.load_reward_model`."""

    type: Type = None
    pooling: Pooling = None
    reference: Reference = None
    beta: Beta = None
    dtype: DType = None
    load_in: LoadIn = None
    date_string: DateString = None
    chat_template: ChatTemplate = None
    special_tokens: SpecialTokens = None
    trust_remote_code: Trust = False
    base: Base = None
    no_verify: NoVerify = False


@dataclass(frozen=True)
class SetOptions:
    """How to read a set of preference pairs; see `rmkit.data.preferences.load_preferences`."""

    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=COLUMN",
            help="The column of prompt, chosen, rejected, system, history, tools, chat_template_kwargs, margin, "
            "responses, scores, ranks or winner; for prompt, margin and responses also two, as margin=A,B. Repeatable.",
        ),
    ] = None
    pairing: Annotated[
        Literal["best_worst", "all", "adjacent"] | None,
        typer.Option(help="Which of several responses with scores or ranks become pairs.", show_default="best_worst"),
    ] = None
    templated: Annotated[
        Literal["error", "read", "text"],
        typer.Option(
            help="Texts to which a chat template was already applied: an error, read back into turns, or plain texts."
        ),
    ] = "error"

    def settings(self) -> dict[str, Any]:
        """The arguments of `load_preferences`.

        Raises:
            RmkitError: if --column is not FIELD=COLUMN.
        """
        given = self.column or []
        columns: dict[str, str | list[str]] = dict(each.partition("=")[::2] for each in given)
        if len(columns) < len(given) or not all(columns.values()):
            raise RmkitError(
                "--column is not FIELD=COLUMN, once per field.", "Write for example --column prompt=question."
            )
        for field in ("prompt", "margin", "responses"):
            if "," in columns.get(field, ""):
                columns[field] = str(columns[field]).split(",")
        return {"columns": columns, "pairing": self.pairing, "templated": self.templated}


def group_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses of options: Typer, which has no such thing, sees one option per field.

    Typer only reads a function's signature. The fields of a dataclass take the place of its parameter there.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))
            continue
        group = groups[parameter.name]
        types = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
            for field in fields(group)
        ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
