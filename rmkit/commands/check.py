"""`rmkit check`: everything that can be known of a run before it trains, in one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmkit.errors import exit_on_error

if TYPE_CHECKING:  # heavy, and not needed for --help
    from rich.console import Console

    from rmkit.config.recipe import Recipe
    from rmkit.data.preferences import PreferenceData
    from rmkit.encoding.batches import Layout
    from rmkit.encoding.pairs import EncodedPairs
    from rmkit.reward_models import RewardModel
    from rmkit.reward_models.origins import ModelRef
    from rmkit.training.checking import Example, Memory, StepCounts
    from rmkit.training.launch import LaunchPlan

_SHOWN = 70  # characters of either end of a text


def check(
    recipe: Annotated[Path, typer.Argument(help="A recipe, for example recipes/llama8b_exrm.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
) -> None:
    """Show what a recipe would train on, what its models read, and what it takes. Nothing is trained or built."""
    with exit_on_error():
        from rich.console import Console

        from rmkit.config.recipe import load_recipe
        from rmkit.evaluation.tables import set_remarks
        from rmkit.models.shared_attention import possible_layout
        from rmkit.reward_models import make_reward_model
        from rmkit.training import checking, launch, preparation
        from rmkit.training.disk_space import check_places

        console = Console()
        loaded = load_recipe(recipe, overrides or [])
        plan = launch.plan(loaded)
        data = preparation.load_data(loaded)
        training = data[loaded.data.train.name]
        base = _base(loaded, training)
        if base is None:
            _print_sets(console, loaded, data, {})
            _print_warnings(
                console, preparation.warnings(loaded, data, {name: each.pairs for name, each in data.items()})
            )
            check_places(loaded, cache=True)  # the base is to be kept there
            console.print(
                "The base is to be built (base.build) and is not in the cache: what models read, lengths, steps and "
                "memory are known once `rmkit train` has built it.",
                highlight=False,
            )
            return
        encoder, notes = preparation.load_encoder(loaded, base)
        reward_model = make_reward_model(loaded.reward_model, encoder)
        encoded = preparation.encode(loaded, data, reward_model)
        pairs = encoded[loaded.data.train.name]
        _print_sets(console, loaded, data, encoded)
        _print_warnings(
            console, preparation.warnings(loaded, data, {name: each.pairs for name, each in encoded.items()})
        )
        _print_examples(console, loaded, checking.examples(loaded, encoder, pairs.pairs[0]))
        config = preparation.load_config(loaded, base)
        bos, eos = checking.token_counts(encoder, pairs)
        layout, fallback = possible_layout(loaded.layout, config, loaded.base.attention)
        for note in [*notes, *fallback]:
            console.print(note, markup=False, highlight=False)
        console.print(f"In each training sequence: BOS {bos}, EOS {eos}.", highlight=False)
        for line in set_remarks(encoded, loaded.data, config):
            console.print(f"warning: {line}", markup=False, highlight=False, style="yellow")
        preparation.refuse_beyond_positions(loaded, encoded, config)
        _print_work(console, checking.work(loaded, pairs, plan, layout))
        _print_memory(console, checking.memory(loaded, reward_model, config, plan))
        _try(console, loaded, reward_model, base, layout, len(pairs), plan)


def _base(recipe: Recipe, training: PreferenceData) -> ModelRef | None:
    """The base that training starts from; None if it is still to be built."""
    from rmkit.reward_models.origins import ModelRef

    if recipe.base.build is None:
        return ModelRef(name=str(recipe.base.name), revision=recipe.base.revision)
    from rmkit.models.tiny_base import cached_base, training_documents

    folder = cached_base(recipe.base.build, training_documents(recipe.base.build, training)[1])
    return None if folder is None else ModelRef(name=str(folder))


def _print_sets(
    console: Console, recipe: Recipe, data: Mapping[str, PreferenceData], encoded: Mapping[str, EncodedPairs]
) -> None:
    """A row a set; what needs the base is unknown without encoded sets."""
    from rich.markup import escape
    from rich.table import Table

    from rmkit.data.overlap import find_overlap
    from rmkit.evaluation.statistics import length_baselines

    limit = f"at most {recipe.data.max_length} tokens" if recipe.data.max_length else "no length limit"
    table = Table(title=f"Preference pairs ({limit})", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("set", overflow="fold")
    for column in ("pairs", "longest", "longer\nwins", "shorter\nwins", "prompts\nin train", "13-gram\nin train"):
        table.add_column(column, justify="right")
    losses = {name: (encoded.get(name) or each).dropped for name, each in data.items()}
    reasons = list(dict.fromkeys(["identical responses", *(reason for each in losses.values() for reason in each)]))
    for reason in reasons:
        table.add_column(escape(textwrap.fill(f"lost: {reason}", 12)), justify="right")
    used = {name: encoded[name].pairs if name in encoded else each.pairs for name, each in data.items()}
    for name, pairs in used.items():
        known = encoded.get(name)
        lengths = ["?"] * 3
        if known is not None:
            baselines = length_baselines(known.response_lengths)
            lengths = [str(known.longest), f"{baselines['longer_wins']:.3f}", f"{baselines['shorter_wins']:.3f}"]
        shared = ["", ""]
        if name != recipe.data.train.name:
            overlap = find_overlap(used[recipe.data.train.name], pairs, ngrams=True)
            assert overlap.ngram is not None
            shared = [_warned(int(overlap.prompt.sum())), _warned(int(overlap.ngram.sum()))]
        lost = [losses[name].get(reason, 0) for reason in reasons]
        table.add_row(escape(name), str(len(pairs)), *lengths, *shared, *map(_warned, lost))
    console.print(table)


def _warned(number: int) -> str:
    return f"[yellow]{number}[/]" if number else "0"


def _print_warnings(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, style="yellow")


def _print_examples(console: Console, recipe: Recipe, shown: list[Example]) -> None:
    """A text a type, the response after a bar; in the middle of long texts a part is left out."""
    console.print("\nWhat is read of the first training pair, each type (response after [bold]|[/])")
    for example in shown:
        mark = "*" if example.type == recipe.reward_model.type else " "
        if example.problem is not None:
            console.print(f"{mark} {example.type}: {example.problem}", markup=False, highlight=False, style="yellow")
            continue
        bos, eos = (("none" if count is None else str(count)) for count in (example.bos, example.eos))
        part = f"{example.response_tokens} of the response" if example.response else "the response is asked about"
        about = f"{example.tokens} tokens, {part}; BOS {bos}, EOS {eos}; read up to"
        console.print(f"{mark} {example.type}: {about} {example.last!r}", markup=False, highlight=False, style="bold")
        text = _shortened(example.prompt) + ("|" + _shortened(example.response) if example.response else "")
        console.print(f"    {text}", markup=False, highlight=False)


def _shortened(text: str) -> str:
    shown = text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} ... {text[-_SHOWN:]}"
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown)


def _print_work(console: Console, work: StepCounts) -> None:
    console.print(
        f"Training: {work.pairs} pairs, {work.tokens:,} tokens ({work.shared:,} of them shared and computed once) and "
        f"{work.steps_per_epoch} steps an epoch, {work.steps} steps in all (processes: {work.processes}, micro-batches "
        f"a step: {work.accumulation}).",
        highlight=False,
    )


def _print_memory(console: Console, memory: Memory) -> None:
    import torch

    from rmkit.training.disk_space import gib

    trained = "" if memory.trainable == memory.parameters else f", {memory.trainable:,} of them trained"
    gpus = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    there = f"; the smallest here has {min(gpus) / 2**30:.0f} GiB" if gpus else ""
    console.print(
        f"Memory a GPU: {gib(memory.per_gpu)} and activations (by {memory.estimator} for weights, gradients "
        f"and Adam; {memory.parameters:,} parameters{trained}){there}.",
        highlight=False,
    )


def _try(
    console: Console,
    recipe: Recipe,
    reward_model: RewardModel[Any],
    base: ModelRef,
    layout: Layout,
    pairs: int,
    plan: LaunchPlan | None,
) -> None:
    """What `rmkit train` tries before it starts; TrainingArguments are those of one process, without sharding."""
    from rmkit.processes import visible_gpus
    from rmkit.training import preparation
    from rmkit.training.preflight import preflight

    processes = (plan.processes if plan else None) or 1
    arguments = preparation.trainer_arguments(recipe, processes, use_cpu=visible_gpus() == 0)
    sharding = (plan.sharding if plan else None) or "none"
    record = preparation.make_record(recipe, reward_model, base, layout, arguments, sharding)
    for note in preflight(recipe, reward_model, record, preparation.load_config(recipe, base), arguments, pairs, plan):
        console.print(note, markup=False, highlight=False)
