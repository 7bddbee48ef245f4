"""The learning dynamics of a language model as each type, of a trained reward model, or of a run.

A run records its data, reference and base, so its dynamics are computed both before and after training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from accelerate import PartialState
from torch import Tensor
from transformers import set_seed

from rmkit.config.recipe import Recipe, read_recipe
from rmkit.data.conversations import Prompt
from rmkit.data.preferences import PreferenceData
from rmkit.data.sources.use import load_sets
from rmkit.encoding.chat import TokenSequence
from rmkit.encoding.pairs import EncodedPairs, collect, encode_pairs, iter_encoded
from rmkit.errors import RmkitError
from rmkit.reward_models import RewardModel
from rmkit.reward_models.implicit import ImplicitRewardModel
from rmkit.reward_models.loading import Checkpoint, load, load_model
from rmkit.reward_models.metadata import read_metadata
from rmkit.reward_models.origins import check_exists, parse_ref, verify_origin
from rmkit.reward_models.probe import check_forward
from rmkit.runs.directory import RunDirectory
from rmkit.theory.experiment import coefficient_map, dynamics
from rmkit.theory.frozen import FrozenHeadModel, freeze, freeze_backbone
from rmkit.theory.loading import DTYPES, freeze_checkpoint, load_as, possible_types, reference_outputs


def same_prompts(data: PreferenceData, prompts: Sequence[Prompt]) -> PreferenceData:
    """The pairs of a set whose prompts are among `prompts`.

    Raises:
        RmkitError: if there are none.
    """
    wanted = set(prompts)
    kept = [pair for pair in data if pair.prompt in wanted]
    if not kept:
        raise RmkitError(
            f"No prompt of {data.name} is among the {len(wanted)} training prompts.",
            "Give a set with other wordings of the responses to the same prompts.",
        )
    return replace(data, pairs=kept, dropped={})


def dynamics_of_model(
    name: str,
    training: PreferenceData,
    unseen: Mapping[str, PreferenceData],
    *,
    types: Sequence[str] | None = None,
    max_length: int | None = None,
    tokens: int = 24,
    batch_size: int = 4,
    loading: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`rmkit.theory.experiment.dynamics` of a language model as each type, or of a trained reward model.

    Args:
        name: a folder or hub id.
        unseen: name -> pairs with other wordings of responses to the same prompts.
        types: the types to take a language model as; by default all that its tokenizer allows.
        tokens: tokens of each response in the map of coefficients.
        loading: keyword arguments of `rmkit.theory.loading.load_as`.
        options: keyword arguments of `rmkit.theory.experiment.dynamics`.

    Returns:
        types: type -> result; heat_map: coefficients between two responses, if the implicit type is among them.

    Raises:
        RmkitError: if `types` is given for a trained model, or the model cannot be loaded as one of them.
    """
    possible = possible_types(name)
    if possible is None and types:
        raise RmkitError(f"{name} is a trained reward model, so its type is known.", "Remove --type.")
    content: dict[str, Any] = {"types": {}}
    candidates: Sequence[str | None] = types or possible or [None]
    for number, candidate in enumerate(candidates):
        try:
            checkpoint = load_as(name, candidate, **(loading or {}))
        except RmkitError as error:
            if types or number == 0:
                raise
            print(f"{candidate}: skipped. {error.cause}")
            continue
        reward_model = checkpoint.reward_model
        label = reward_model.settings.type
        encoded = encode_pairs(training, reward_model, max_length=max_length)
        rewordings = {key: encode_pairs(pairs, reward_model, max_length=max_length) for key, pairs in unseen.items()}
        references, frozen_model = _freeze(checkpoint, encoded, batch_size, label)
        content["types"][label] = dynamics(
            frozen_model,
            encoded,
            rewordings,
            references=references,
            batch_size=batch_size,
            description=label,
            **options,
        )
        if isinstance(reward_model, ImplicitRewardModel):
            target, title = _other_wording(encoded, rewordings)
            shown = freeze(frozen_model, [target, encoded.chosen[0]])
            content["heat_map"] = coefficient_map(frozen_model, shown[0], shown[1], tokens) | {
                "target": title,
                "source": "chosen response of the step's pair",
            }
    return content


def dynamics_of_run(
    run_dir: RunDirectory,
    *,
    pairs: int = 8,
    dtype: str = "float64",
    batch_size: int = 4,
    base: str | None = None,
    verify: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """`rmkit.theory.experiment.dynamics` of a run's reward model before and after its training, from the run's record.

    The sets, the seed and the base are those of its recipe, the reference the recorded one. Steps are taken on the
    first training pairs; the evaluation sets are the unseen pairs.

    Args:
        pairs: how many training pairs steps are taken on.
        base: where the base is now, if it has moved.
        verify: whether base, reference and tokenizer must be those of training.
        options: keyword arguments of `rmkit.theory.experiment.dynamics`.

    Returns:
        states: `before` and `after` -> result.

    Raises:
        RmkitError: if the run is not finished, or its data, base or reference are missing or have changed.
    """
    run_dir.read()
    recipe = read_recipe(run_dir.path / "recipe.yaml")
    name = str(run_dir.model)
    metadata = read_metadata(name)
    if metadata is None or metadata.base is None:
        raise RmkitError(f"{run_dir.path} contains no model with a recorded base.", "Run the recipe again.")
    base_ref = metadata.base if base is None else parse_ref(base)
    check_exists("base", base_ref, name)
    notes = verify_origin("base", metadata.base, base_ref, name) if verify else []
    trust, needed_base = recipe.base.trust_remote_code, base if metadata.needs_base else None
    checkpoint = load(name, load_in="none", base=needed_base, verify=verify, trust_remote_code=trust)
    for note in notes:
        print(note)
    reward_model = checkpoint.reward_model
    training, unseen = _encode_sets(recipe, reward_model, pairs)
    references, frozen_model = _freeze(checkpoint, training, batch_size, "after training", dtype)

    options |= {"references": references, "batch_size": batch_size}
    after = dynamics(frozen_model, training, unseen, description="after training", **options)
    del checkpoint, frozen_model  # one model at a time
    set_seed(recipe.training.get("seed", 0))  # as in training, before the head is drawn
    untrained = load_model(
        reward_model,
        base_ref,
        dtype=metadata.dtype,
        attention=metadata.attention,
        layout=metadata.layout,
        trust_remote_code=trust,
    )
    untrained.to(PartialState().device, dtype=DTYPES[dtype])
    check_forward(untrained, reward_model)
    frozen_model = freeze_backbone(reward_model, untrained)
    before = dynamics(frozen_model, training, unseen, description="before training", **options)
    return {"states": {"before": before, "after": after}}


def _freeze(
    checkpoint: Checkpoint, pairs: EncodedPairs, batch_size: int, label: str, dtype: str | None = None
) -> tuple[Tensor | None, FrozenHeadModel]:
    """The reference's outputs [pairs, 2, outputs], if there is a reference, and the frozen model. Prints its notes."""
    for model in (checkpoint.model, checkpoint.reference):
        if model is not None:
            model.to(PartialState().device, dtype=None if dtype is None else DTYPES[dtype])
    check_forward(checkpoint.model, checkpoint.reward_model)
    references = reference_outputs(checkpoint, pairs, batch_size)
    checkpoint.reference = None  # only its outputs are needed
    frozen_model = freeze_checkpoint(checkpoint)
    for note in frozen_model.notes:
        print(f"{label}: {note}")
    return references, frozen_model


def _encode_sets(
    recipe: Recipe, reward_model: RewardModel[Any], pairs: int
) -> tuple[EncodedPairs, dict[str, EncodedPairs]]:
    """The first training pairs, and the first pairs of every evaluation set plus those with the same prompts."""
    max_length, data = recipe.data.max_length, load_sets(recipe.data)
    sets = [data.pop(each.name) for each in recipe.data.training_sets]
    encoded = chain.from_iterable(iter_encoded(each, reward_model, {}, max_length=max_length) for each in sets)
    training = collect(" + ".join(each.name for each in sets), list(islice(encoded, pairs)), {})
    prompts = {pair.prompt for pair in training.pairs}
    unseen = {}
    for name, evaluated in data.items():
        kept = [pair for at, pair in enumerate(evaluated) if at < pairs or pair.prompt in prompts]
        kept_data = replace(evaluated, pairs=kept, dropped={})
        unseen[name] = encode_pairs(kept_data, reward_model, max_length=max_length)
    return training, unseen


def _other_wording(encoded: EncodedPairs, unseen: Mapping[str, EncodedPairs]) -> tuple[TokenSequence, str]:
    """A chosen response to compare with the first pair's: for the same prompt in an unseen set, or the next pair's."""
    for name, pairs in unseen.items():
        for pair, sequence in zip(pairs.pairs, pairs.chosen, strict=True):
            if pair.prompt == encoded.pairs[0].prompt:
                return sequence, f"chosen response in {name}"
    if len(encoded) > 1:
        return encoded.chosen[1], "chosen response of the next pair"
    return encoded.rejected[0], "rejected response of the same pair"
