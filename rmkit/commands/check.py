"""`rmkit check`: validate a recipe and show its data, lengths, steps and memory on one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from rmkit.commands.options import Overrides, RecipeName
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

_SHOWN = 70  # characters at both ends of a text


def check(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Validate a recipe: data, lengths, steps, memory. Nothing is trained or built."""
    with exit_on_error():
        from rich.console import Console

        from rmkit.config.recipe import load_recipe
        from rmkit.data.mixture import join
        from rmkit.training import launch, preparation

        console = Console()
        loaded = load_recipe(recipe, overrides or [])
        plan = launch.plan(loaded)
        preparation.check_four_bit(loaded, plan.sharding if plan else None)
        data = preparation.load_data(loaded)
        base = _find_base(loaded, join([data[each.name] for each in loaded.data.training_sets]))
        if base is None:
            _check_without_base(console, loaded, data)
        else:
            _check_with_base(console, loaded, data, base, plan)


def _check_without_base(console: Console, recipe: Recipe, data: Mapping[str, PreferenceData]) -> None:
    """What can be checked of a recipe whose base is still to be built."""
    from rmkit.training import preparation
    from rmkit.training.disk_space import check_places

    _print_sets(console, recipe, data, {})
    _print_warnings(console, preparation.warnings(recipe, data, {name: loaded.pairs for name, loaded in data.items()}))
    check_places(recipe, cache=True)  # the base will be stored there
    console.print(
        "The base (base.build) is not built yet: model inputs, lengths, steps and memory are unknown until "
        "`rmkit train` has built it.",
        highlight=False,
    )


def _check_with_base(
    console: Console, recipe: Recipe, data: Mapping[str, PreferenceData], base: ModelRef, plan: LaunchPlan | None
) -> None:
    """Encode the sets, and run every check that precedes training."""
    from rmkit.encoding.pairs import mix, training_rows
    from rmkit.evaluation.tables import set_remarks
    from rmkit.models.shared_attention import possible_layout
    from rmkit.reward_models import make_reward_model
    from rmkit.training import checking, preparation

    encoder, notes = preparation.load_encoder(recipe, base)
    reward_model = make_reward_model(recipe.reward_model, encoder)
    encoded = preparation.encode(recipe, data, reward_model)
    pairs = mix(encoded, training_rows(recipe.data, encoded))
    _print_sets(console, recipe, data, encoded)
    _print_warnings(console, preparation.warnings(recipe, data, {name: kept.pairs for name, kept in encoded.items()}))
    _print_examples(console, recipe, checking.examples(recipe, encoder, pairs.pairs[0]))
    config = preparation.load_config(recipe, base)
    bos, eos = checking.token_counts(encoder, pairs)
    layout, fallback = possible_layout(recipe.layout, config, recipe.base.attention)
    for note in [*notes, *fallback]:
        console.print(note, markup=False, highlight=False)
    console.print(f"Every training sequence has BOS {bos}, EOS {eos}.", highlight=False)
    _print_warnings(console, [f"warning: {line}" for line in set_remarks(encoded, recipe.data, config)])
    preparation.refuse_beyond_positions(recipe, encoded, config)
    _print_work(console, checking.work(recipe, pairs, plan, layout))
    _print_memory(console, checking.memory(recipe, reward_model, config, plan))
    _run_preflight(console, recipe, reward_model, base, layout, len(pairs), plan)


def _find_base(recipe: Recipe, training: PreferenceData) -> ModelRef | None:
    """The base that training starts from; None if it has not been built yet."""
    from rmkit.reward_models.origins import ModelRef

    if recipe.base.build is None:
        return ModelRef(name=str(recipe.base.name), revision=recipe.base.revision)
    from rmkit.models.tiny_base import cached_base, training_documents

    folder = cached_base(recipe.base.build, training_documents(recipe.base.build, training)[1])
    return None if folder is None else ModelRef(name=str(folder))


def _print_sets(
    console: Console, recipe: Recipe, data: Mapping[str, PreferenceData], encoded: Mapping[str, EncodedPairs]
) -> None:
    """Print one row per set; columns that need the base show `?` without encoded sets."""
    from rich.markup import escape
    from rich.table import Table

    from rmkit.data.overlap import find_overlap
    from rmkit.evaluation.statistics import length_baselines

    limit = f"at most {recipe.data.max_length} tokens" if recipe.data.max_length else "no length limit"
    table = Table(title=f"Preference pairs ({limit})", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("set", overflow="fold")
    for column in ("pairs", "longest", "longer\nwins", "shorter\nwins", "prompts\nin train", "13-gram\nin train"):
        table.add_column(column, justify="right")
    dropped = {name: (encoded.get(name) or loaded).dropped for name, loaded in data.items()}
    reasons = list(
        dict.fromkeys(["identical responses", *(reason for counts in dropped.values() for reason in counts)])
    )
    for reason in reasons:
        table.add_column(escape(textwrap.fill(f"lost: {reason}", 12)), justify="right")
    used = {name: encoded[name].pairs if name in encoded else loaded.pairs for name, loaded in data.items()}
    training = [each.name for each in recipe.data.training_sets]
    for name, pairs in used.items():
        lengths = ["?"] * 3
        if name in encoded:
            baselines = length_baselines(encoded[name].response_lengths)
            lengths = [
                str(encoded[name].longest),
                f"{baselines['longer_wins']:.3f}",
                f"{baselines['shorter_wins']:.3f}",
            ]
        shared = ["", ""]
        if name not in training:
            overlap = find_overlap(chain.from_iterable(used[other] for other in training), pairs, ngrams=True)
            assert overlap.ngram is not None
            shared = [_highlight(int(overlap.prompt.sum())), _highlight(int(overlap.ngram.sum()))]
        lost = [dropped[name].get(reason, 0) for reason in reasons]
        table.add_row(escape(name), str(len(pairs)), *lengths, *shared, *map(_highlight, lost))
    console.print(table)


def _highlight(number: int) -> str:
    return f"[yellow]{number}[/]" if number else "0"


def _print_warnings(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, style="yellow")


def _print_examples(console: Console, recipe: Recipe, shown: list[Example]) -> None:
    """Print the input of every type, the response after a bar; the middle of long texts is left out."""
    console.print("\nInput of each type for the first training pair (response after [bold]|[/])")
    for example in shown:
        mark = "*" if example.type == recipe.reward_model.type else " "
        if example.problem is not None:
            console.print(f"{mark} {example.type}: {example.problem}", markup=False, highlight=False, style="yellow")
            continue
        bos, eos = (("none" if count is None else str(count)) for count in (example.bos, example.eos))
        part = (
            f"{example.response_tokens} of the response" if example.response else "the response is part of the prompt"
        )
        about = f"{example.tokens} tokens, {part}; BOS {bos}, EOS {eos}; reward is read at"
        console.print(f"{mark} {example.type}: {about} {example.last!r}", markup=False, highlight=False, style="bold")
        text = _shortened(example.prompt) + ("|" + _shortened(example.response) if example.response else "")
        console.print(f"    {text}", markup=False, highlight=False)


def _shortened(text: str) -> str:
    shown = text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]} ... {text[-_SHOWN:]}"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in shown)


def _print_work(console: Console, work: StepCounts) -> None:
    console.print(
        f"Training: {work.pairs} pairs, {work.tokens:,} tokens ({work.shared:,} of them shared and computed once) and "
        f"{work.steps_per_epoch} steps per epoch, {work.steps} steps in total (processes: {work.processes}, "
        f"micro-batches per step: {work.accumulation}).",
        highlight=False,
    )


def _print_memory(console: Console, memory: Memory) -> None:
    import torch

    from rmkit.training.disk_space import gib

    trained = "" if memory.trainable == memory.parameters else f", {memory.trainable:,} of them trained"
    trained += f", {memory.quantized:,} in 4 bit" if memory.quantized else ""
    gpus = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    available = f"; the smallest GPU has {min(gpus) / 2**30:.0f} GiB" if gpus else ""
    console.print(
        f"Memory per GPU: {gib(memory.per_gpu)} plus activations ({memory.estimator}: weights, gradients and Adam; "
        f"{memory.parameters:,} parameters{trained}){available}.",
        highlight=False,
    )


def _run_preflight(
    console: Console,
    recipe: Recipe,
    reward_model: RewardModel[Any],
    base: ModelRef,
    layout: Layout,
    pairs: int,
    plan: LaunchPlan | None,
) -> None:
    """Run the checks that `rmkit train` runs first, with the TrainingArguments of one process without sharding."""
    from rmkit.processes import visible_gpus
    from rmkit.training import preparation
    from rmkit.training.preflight import preflight

    processes = (plan.processes if plan else None) or 1
    arguments = preparation.trainer_arguments(recipe, processes, use_cpu=visible_gpus() == 0)
    sharding = (plan.sharding if plan else None) or "none"
    record = preparation.make_record(recipe, reward_model, base, layout, arguments, sharding)
    for note in preflight(recipe, reward_model, record, preparation.load_config(recipe, base), arguments, pairs, plan):
        console.print(note, markup=False, highlight=False)
