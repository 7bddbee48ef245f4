"""`rmkit score`: a reward model on one set of preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmkit.errors import RmkitError, exit_on_error

if TYPE_CHECKING:
    from rmkit.data.preferences import PreferenceData
    from rmkit.evaluation.scorer import RewardScorer, ScoredSet

Model = Annotated[str, typer.Argument(help="A run's model/ folder, any transformers model folder, or a hub id.")]
Type = Annotated[str | None, typer.Option(help="explicit, implicit or generative; a run's folder knows.")]
Pooling = Annotated[str | None, typer.Option(help="Explicit models: last or mean.")]
Reference = Annotated[str | None, typer.Option(help="Implicit models: the model that training started from, or none.")]
Beta = Annotated[float | None, typer.Option(help="Implicit models: the factor of Eq. 2.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Responses a forward pass.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many pairs.")]
DType = Annotated[str | None, typer.Option(help="float32 or bfloat16; as recorded, else float32.")]
Layout = Annotated[str | None, typer.Option(help="shared or padded; as recorded, else shared.")]
DateString = Annotated[str | None, typer.Option(help="The date for templates that print one.")]
SpecialTokens = Annotated[
    str | None,
    typer.Option(help="Control tokens that texts spell: text, keep (as tokens) or error; as recorded, else text."),
]
Base = Annotated[str | None, typer.Option(help="Where the model that training started from is now, if it has moved.")]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Go on though base, reference or tokenizer are not those of training.")
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the model's own code run.")]


def score(
    model: Model,
    data: Annotated[str, typer.Argument(help="A save_to_disk folder, .parquet, .jsonl, .json, or a hub id.")],
    split: Annotated[str | None, typer.Option(help="The split to score.", show_default="test")] = None,
    output: Annotated[Path, typer.Option(help="Where the rewards go.")] = Path("rewards.parquet"),
    type: Type = None,
    pooling: Pooling = None,
    reference: Reference = None,
    beta: Beta = None,
    batch_size: BatchSize = 16,
    limit: Limit = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Leave out pairs over so many tokens.")] = None,
    subset: Annotated[str | None, typer.Option(help="The configuration of a hub data set.")] = None,
    dtype: DType = None,
    layout: Layout = None,
    date_string: DateString = None,
    special_tokens: SpecialTokens = None,
    trust_remote_code: Trust = False,
    base: Base = None,
    no_verify: NoVerify = False,
) -> None:
    """Reward both responses of every pair of a set; print accuracy, margin and ties."""
    with exit_on_error():
        from rmkit.data.preferences import load_preferences
        from rmkit.evaluation.tables import print_scores
        from rmkit.files import check_place, write_table

        check_place(output)
        pairs = load_preferences(data, split=split or "test", subset=subset, limit=limit)
        if split is not None and pairs.split is None and is_main_process():
            print(f"warning: {data} has no splits: --split {split} is ignored")
        options = (type, pooling, reference, beta, dtype, layout, date_string, trust_remote_code)
        scorer = load_scorer(model, *options, special_tokens=special_tokens, base=base, verify=not no_verify)
        found = score_sets(scorer, {pairs.name: pairs}, batch_size, max_length, pairs.name)[pairs.name]
        summary = found.summary()  # refuses rewards that are not finite
        if is_main_process():
            write_table(output, found.columns())
            print_scores({pairs.name: summary}, model)


def load_scorer(
    model: str,
    type: str | None,
    pooling: str | None,
    reference: str | None,
    beta: float | None,
    dtype: str | None,
    layout: str | None,
    date_string: str | None,
    trust_remote_code: bool,
    *,
    special_tokens: str | None = None,
    base: str | None = None,
    verify: bool = True,
) -> RewardScorer:
    """The reward model that the options of a command ask for."""
    if dtype not in (None, "float32", "bfloat16"):
        raise RmkitError(f"--dtype {dtype} is not known.", "Give float32 or bfloat16.")
    if layout not in (None, "shared", "padded"):
        raise RmkitError(f"--layout {layout} is not known.", "Give shared or padded.")
    from rmkit.api import load_reward_model

    scorer = load_reward_model(
        model,
        type,
        pooling,
        reference,
        beta,
        dtype=dtype,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        date_string=date_string,
        special_tokens=special_tokens,  # type: ignore[arg-type]
        trust_remote_code=trust_remote_code,
        base=base,
        verify=verify,
    )
    for note in scorer.checkpoint.notes if is_main_process() else []:
        print(note)
    return scorer


def score_sets(
    scorer: RewardScorer, sets: dict[str, PreferenceData], batch_size: int, max_length: int | None, description: str
) -> dict[str, ScoredSet]:
    """Sets rewarded in one pass; what is left out is said, and what their texts are like."""
    found = scorer.score_sets(sets, batch_size, max_length, description)
    for name, each in found.items() if is_main_process() else []:
        if each.dropped:
            left_out = ", ".join(f"{count} {reason}" for reason, count in each.dropped.items())
            print(f"warning: {name}: left out {left_out}")
        for line in each.remarks:
            print(f"warning: {line}")
    return found


def is_main_process() -> bool:
    """Whether this is the process that writes and prints."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)
