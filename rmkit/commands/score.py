"""`rmkit score`: a reward model on one set of preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rmkit.commands.options import Base as Base
from rmkit.commands.options import (
    BatchSize,
    Layout,
    Limit,
    MaxLength,
    Model,
    ModelOptions,
    SetOptions,
    Subset,
    group_options,
)
from rmkit.commands.options import NoVerify as NoVerify
from rmkit.errors import RmkitError, exit_on_error

if TYPE_CHECKING:
    from rmkit.data.preferences import PreferenceData
    from rmkit.evaluation.scorer import RewardScorer, ScoredSet


@group_options
def score(
    model: Model,
    data: Annotated[str, typer.Argument(help="A save_to_disk folder, .parquet, .jsonl, .json, .csv, or a hub id.")],
    options: ModelOptions,
    reading: SetOptions,
    split: Annotated[
        str | None, typer.Option(help="The split to score, or a slice, test[:100].", show_default="test")
    ] = None,
    output: Annotated[Path, typer.Option(help="The parquet file to write.")] = Path("rewards.parquet"),
    layout: Layout = None,
    batch_size: BatchSize = 16,
    limit: Limit = None,
    max_length: MaxLength = None,
    subset: Subset = None,
) -> None:
    """Score the pairs of a set. Prints accuracy, margin and ties."""
    with exit_on_error():
        from rmkit.data.preferences import load_preferences
        from rmkit.data.splits import ignored_split
        from rmkit.evaluation.tables import print_scores
        from rmkit.files import check_place

        check_place(output)
        pairs = load_preferences(data, split=split or "test", subset=subset, limit=limit, **reading.settings())
        if pairs.format is not None and is_main_process():
            print(f"{pairs.name}: {pairs.format}")
        if split is not None and pairs.split is None and is_main_process():
            print(f"warning: {ignored_split(data, split, f'--split {split}')}")
        scorer = load_scorer(model, options, layout)
        scored = score_sets(scorer, {pairs.name: pairs}, batch_size, max_length, pairs.name)[pairs.name]
        summary = scored.summary()  # rejects non-finite rewards
        if is_main_process():
            scored.rewards.write(output)
            print_scores({pairs.name: summary}, model)


def load_scorer(model: str, options: ModelOptions, layout: str | None = None) -> RewardScorer:
    """Load the reward model that a command's options describe, and print notes about it.

    Raises:
        RmkitError: for an unknown --dtype or --layout; see also `rmkit.load_reward_model`.
    """
    if options.dtype not in (None, "float32", "bfloat16"):
        raise RmkitError(f"--dtype {options.dtype} is not supported.", "Use float32 or bfloat16.")
    if layout not in (None, "shared", "padded"):
        raise RmkitError(f"--layout {layout} is not supported.", "Use shared or padded.")
    from rmkit.api import load_reward_model

    scorer = load_reward_model(
        model,
        options.type,
        options.pooling,
        options.reference,
        options.beta,
        dtype=options.dtype,  # type: ignore[arg-type]
        load_in=options.load_in,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        date_string=options.date_string,
        chat_template=options.chat_template,
        special_tokens=options.special_tokens,  # type: ignore[arg-type]
        trust_remote_code=options.trust_remote_code,
        base=options.base,
        verify=not options.no_verify,
    )
    for note in scorer.checkpoint.notes if is_main_process() else []:
        print(note)
    return scorer


def score_sets(
    scorer: RewardScorer, sets: dict[str, PreferenceData], batch_size: int, max_length: int | None, description: str
) -> dict[str, ScoredSet]:
    """Score sets in one pass; print what was left out, and warnings about the texts."""
    scored_sets = scorer.score_sets(sets, batch_size, max_length, description)
    for name, scored in scored_sets.items() if is_main_process() else []:
        if scored.dropped:
            left_out = ", ".join(f"{count} {reason}" for reason, count in scored.dropped.items())
            print(f"warning: {name}: left out {left_out}")
        for line in scored.remarks:
            print(f"warning: {line}")
    return scored_sets


def is_main_process() -> bool:
    """Whether this process writes and prints."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)
