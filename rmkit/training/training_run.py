"""A training run before its model is loaded: recipe -> launch plan -> data -> reward model -> encoded pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray

from rmkit.config.recipe import Recipe
from rmkit.data.mixture import join
from rmkit.data.preferences import PreferenceData
from rmkit.encoding.pairs import EncodedPairs, mix, training_rows
from rmkit.evaluation.tables import print_counts
from rmkit.model_files.identity import Digests, on_main_process, saved_tokenizer_digests
from rmkit.models.shared_attention import possible_layout
from rmkit.processes import running_processes, running_sharding
from rmkit.reward_models import RewardModel, make_reward_model
from rmkit.reward_models.metadata import ModelMetadata
from rmkit.reward_models.origins import ModelRef, identify
from rmkit.runs.directory import RunDirectory
from rmkit.training import launch
from rmkit.training.preparation import (
    check_four_bit,
    encode,
    load_config,
    load_data,
    load_encoder,
    make_record,
    refuse_beyond_positions,
    trainer_arguments,
    warnings,
)
from rmkit.training.resume import newest_complete, recorded_commits


@dataclass(frozen=True)
class TrainingRun:
    """Everything that the steps of a run share.

    Attributes:
        arguments: transformers' TrainingArguments, of the class of the type's trainer.
        plan: how the run is spread over processes; None if neither recipe nor launcher decides it.
        data: the preference sets by name, the training sets first.
        base: the language model that training starts from, at the commit that is recorded.
        metadata: what is saved with the model (reward_model.json).
        encoded: the sets as token sequences, without the pairs that are too long or identical.
        training_rows: by training set, the numbers of its pairs in an epoch.
        training_set: these pairs as one set.
        checkpoint: the one to resume from; None to start from the base.
        started: `time.time()` at the start.
    """

    recipe: Recipe
    arguments: Any
    plan: launch.LaunchPlan | None
    data: Mapping[str, PreferenceData]
    base: ModelRef
    reward_model: RewardModel[Any]
    metadata: ModelMetadata
    encoded: Mapping[str, EncodedPairs]
    training_rows: Mapping[str, NDArray[np.int64]]
    training_set: EncodedPairs
    checkpoint: Path | None
    started: float

    @property
    def directory(self) -> RunDirectory:
        """Where the run writes its results."""
        return RunDirectory(self.recipe.output_dir)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of every set."""
        return {name: each.fingerprint for name, each in self.data.items()}

    @property
    def inputs(self) -> dict[str, Digests]:
        """Digests of all that a checkpoint depends on besides the recipe: models, tokenizer and data."""
        return {**self.metadata.models, "data": self.fingerprints}


def plan_training(recipe: Recipe) -> tuple[Any, launch.LaunchPlan | None]:
    """TrainingArguments of the class of the type's trainer, and the launch plan, both checked.

    Raises:
        RmkitError: if launcher and recipe contradict each other, or an argument is invalid.
    """
    launch.check_launcher()
    plan = launch.plan(recipe)
    check_four_bit(recipe, plan.sharding if plan else None)
    processes = running_processes()
    launch.check_processes(plan, processes)
    options = launch.training_options(plan)
    if recipe.base.dtype == "bfloat16" and plan is not None and plan.uses_deepspeed:
        options["bf16"] = True  # DeepSpeed has one dtype for the whole model, float32 by default
    launch.check_precision(bool(options.get("bf16") or recipe.training.get("bf16")))
    arguments = trainer_arguments(recipe, processes, **options)
    # With several visible GPUs in one process, transformers would use all of them through DataParallel.
    arguments._n_gpu = min(1, arguments.n_gpu)
    launch.check_sharding(plan, arguments)
    launch.check_deepspeed(arguments)
    return arguments, plan


def prepare_run(
    recipe: Recipe, arguments: Any, plan: launch.LaunchPlan | None, resume: bool, started: float
) -> TrainingRun:
    """Load and encode the data, and decide base, reward model and the checkpoint to resume from. No weights yet.

    Args:
        resume: look for a checkpoint in output_dir.
    """
    with PartialState().main_process_first():
        data = load_data(recipe)
        base = _find_base(recipe, join([data[each.name] for each in recipe.data.training_sets]))
    checkpoint = newest_complete(Path(arguments.output_dir)) if resume else None
    commits = recorded_commits(checkpoint)
    base = base.model_copy(update={"revision": commits.get("base", base.revision)})
    identified = identify(base, RunDirectory(recipe.output_dir).model)
    base = base.model_copy(update={"revision": identified.revision})  # of a hub id the recorded commit
    reward_model, metadata = _make_reward_model(recipe, base, arguments, commits.get("reference"))
    encoded = _encode(recipe, data, reward_model, base)
    rows = training_rows(recipe.data, encoded)
    return TrainingRun(
        recipe=recipe,
        arguments=arguments,
        plan=plan,
        data=data,
        base=base,
        reward_model=reward_model,
        metadata=metadata.model_copy(update={"base": identified}),
        encoded=encoded,
        training_rows=rows,
        training_set=mix(encoded, rows),
        checkpoint=checkpoint,
        started=started,
    )


def _find_base(recipe: Recipe, training_set: PreferenceData) -> ModelRef:
    """The language model that training starts from, built if the recipe says so."""
    build = recipe.base.build
    if build is None:
        return ModelRef(name=str(recipe.base.name), revision=recipe.base.revision)
    from rmkit.models.tiny_base import ensure_base, training_documents

    return ModelRef(name=str(ensure_base(build, *training_documents(build, training_set))))


def _make_reward_model(
    recipe: Recipe, base: ModelRef, arguments: Any, reference_commit: str | None
) -> tuple[RewardModel[Any], ModelMetadata]:
    """The reward model of a recipe and its metadata.

    Args:
        reference_commit: the commit of the reference that the checkpoint to resume from has recorded.
    """
    encoder, notes = load_encoder(recipe, base)
    layout, fallback = possible_layout(recipe.layout, load_config(recipe, base), recipe.base.attention)
    for note in [*notes, *fallback] if PartialState().is_main_process else []:
        print(note)
    reward_model = make_reward_model(recipe.reward_model, encoder)
    reference = None
    if reward_model.reference not in (None, "base"):
        revision = reference_commit or reward_model.settings.reference_revision
        named = ModelRef(name=str(reward_model.reference), revision=revision)
        reference = identify(named, RunDirectory(recipe.output_dir).model)
    metadata = make_record(recipe, reward_model, base, layout, arguments, running_sharding(arguments))
    tokenizer = on_main_process(partial(saved_tokenizer_digests, reward_model.encoder.tokenizer))
    return reward_model, metadata.model_copy(update={"reference": reference, "tokenizer": tokenizer})


def _encode(
    recipe: Recipe, data: Mapping[str, PreferenceData], reward_model: RewardModel[Any], base: ModelRef
) -> dict[str, EncodedPairs]:
    """Encode every set once, and print counts, warnings and the token at which the reward is read."""
    encoded = encode(recipe, data, reward_model)
    config = load_config(recipe, base)
    if PartialState().is_main_process:
        print_counts(encoded, recipe.data, config)
        for line in warnings(recipe, data, {name: pairs.pairs for name, pairs in encoded.items()}):
            print(line)
        first, tokenizer = next(iter(encoded.values())).chosen[0], reward_model.encoder.tokenizer
        last, before = tokenizer.decode(first.ids[-1:]), tokenizer.decode(first.ids[-6:-1])
        print(f"Reward is read at token {last!r}, preceded by {before!r}.")
    refuse_beyond_positions(recipe, encoded, config)
    return encoded
