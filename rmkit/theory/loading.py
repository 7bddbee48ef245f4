"""The models that the theory is checked on: a language model as any type of reward model, or a trained one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from rmkit.config.recipe import Explicit, Generative, Implicit, RewardModelSettings
from rmkit.data.preferences import PreferenceData
from rmkit.encoding.batches import Batch
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.encoding.pairs import EncodedPairs, encode_pairs
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.errors import RmkitError
from rmkit.evaluation.scoring import pair_outputs
from rmkit.models.positions import last_position, refuse_longer
from rmkit.reward_models import RewardModel, make_reward_model
from rmkit.reward_models.explicit import ExplicitRewardModel
from rmkit.reward_models.implicit import ImplicitRewardModel
from rmkit.reward_models.probe import check_forward
from rmkit.reward_models.saving import Checkpoint, ModelMetadata, ModelRef, load, load_config, load_model, read_record
from rmkit.theory.experiment import coefficient_map, dynamics
from rmkit.theory.frozen import FrozenHeadModel, freeze, freeze_backbone

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def possible_types(name: str) -> list[str] | None:
    """The types that a model may be taken as: all, for a language model; None if it knows its own, being trained."""
    if read_record(name) is not None:
        return None
    architectures = load_config(name).architectures or []
    is_classifier = any(each.endswith("ForSequenceClassification") for each in architectures)
    return None if is_classifier else ["explicit", "implicit", "generative"]


def load_as(
    name: str,
    type: str | None,
    *,
    beta: float = 0.01,
    seed: int = 0,
    dtype: str = "float64",
    date_string: str | None = None,
    base: str | None = None,
    verify: bool = True,
) -> Checkpoint:
    """A language model as an untrained reward model of a type, or, without a type, a trained one as it is.

    Args:
        beta: of the implicit type.
        seed: of the explicit type's head, which transformers draws.
        dtype: what the backbone computes in.
        base, verify: of a trained one, see `rmkit.reward_models.saving.load`.
    """
    if type is not None and base is not None:
        raise RmkitError(f"A base is of no use: {name} is a language model.", "Leave --base (base=) out.")
    if type is None:
        checkpoint = load(name, dtype="float32", date_string=date_string, base=base, verify=verify)
    else:
        choices: dict[str, RewardModelSettings] = {
            "explicit": Explicit(),
            "implicit": Implicit(beta=beta),
            "generative": Generative(),
        }
        if type not in choices:
            raise RmkitError(f"--type {type} is not known.", f"It is one of {', '.join(choices)}.")
        tokenizer, notes = load_tokenizer(name)
        reward_model = make_reward_model(choices[type], ChatEncoder(tokenizer, date_string))
        torch.manual_seed(seed)
        model = load_model(reward_model, ModelRef(name=name))
        if reward_model.head:
            notes.append(f"The model has no reward head: u is drawn as before training, with seed {seed}.")
        checkpoint = Checkpoint(reward_model, model, None, ModelMetadata(reward_model=choices[type]), notes)
    checkpoint.model.to(DTYPES[dtype])
    check_forward(checkpoint.model, checkpoint.reward_model)
    return checkpoint


def reference_outputs(checkpoint: Checkpoint, pairs: EncodedPairs, batch_size: int = 8) -> Tensor | None:
    """Outputs [pairs, 2, outputs] of a trained model's reference; None where there is none, or the model is its own."""
    options: dict[str, Any] = {"batch_size": batch_size}
    if checkpoint.reference is not None:
        return _outputs(checkpoint.reference, checkpoint.reward_model, pairs, **options)
    if checkpoint.reference_is_base:
        with checkpoint.model.disable_adapter():
            return _outputs(checkpoint.model, checkpoint.reward_model, pairs, **options)
    return None


def _outputs(model: nn.Module, reward_model: RewardModel[Any], pairs: EncodedPairs, **options: Any) -> Tensor:
    """Outputs [pairs, 2, outputs] of a model that can read the pairs."""
    refuse_longer(pairs.name, pairs.longest, last_position(model))
    return pair_outputs(model, reward_model, pairs, **options)


class _Representations(ExplicitRewardModel):
    """An explicit reward model before its head: what it says of a sequence is h_{x,y}."""

    def outputs(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        return self.representation(hidden, batch)


def hidden_differences(
    checkpoint: Checkpoint, pairs: EncodedPairs, batch_size: int = 8, description: str | None = None
) -> NDArray[np.float64]:
    """h_{x,y+} - h_{x,y-} [pairs, hidden size] of an explicit reward model's backbone.

    Raises:
        RmkitError: if the checkpoint is of another type.
    """
    reward_model = checkpoint.reward_model
    if not isinstance(reward_model, ExplicitRewardModel):
        raise RmkitError(
            f"This is a trained {reward_model.settings.type} reward model.",
            "Give a language model or an explicit reward model.",
        )
    representations = _Representations(reward_model.settings, reward_model.encoder)
    hidden = _outputs(checkpoint.model, representations, pairs, batch_size=batch_size, description=description)
    differences: NDArray[np.float64] = (hidden[:, 0] - hidden[:, 1]).numpy()
    return differences


def freeze_checkpoint(checkpoint: Checkpoint) -> FrozenHeadModel:
    """The lab of a checkpoint, which must not be used otherwise afterwards."""
    lab = freeze_backbone(checkpoint.reward_model, checkpoint.model)
    lab.notes[:0] = checkpoint.notes
    return lab


def same_prompts(data: PreferenceData, prompts: Sequence[str]) -> PreferenceData:
    """The pairs of a set whose prompts are among `prompts`.

    Raises:
        RmkitError: if there are none.
    """
    wanted = set(prompts)
    kept = [pair for pair in data if pair.prompt in wanted]
    if not kept:
        raise RmkitError(
            f"No prompt of {data.name} is one of the {len(wanted)} that are trained on.",
            "Give a set with other wordings of the responses to the same prompts.",
        )
    return PreferenceData(data.name, kept)


def dynamics_of_model(
    name: str,
    training: PreferenceData,
    unseen: Mapping[str, PreferenceData],
    *,
    types: Sequence[str] | None = None,
    beta: float = 0.01,
    seed: int = 0,
    dtype: str = "float64",
    date_string: str | None = None,
    max_length: int | None = None,
    tokens: int = 24,
    batch_size: int = 4,
    base: str | None = None,
    verify: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """`rmkit.theory.experiment.dynamics` of a language model as each type, or of a trained model as what it is.

    Args:
        name: of the model.
        unseen: name -> pairs with other wordings of responses to the same prompts.
        types: the types to take a language model as; all by default, less those that its tokenizer does not allow.
        tokens: of each response in the map of coefficients.

    Returns:
        types: type -> result; heat_map: coefficients between two responses, where the implicit type is among them.
    """
    possible = possible_types(name)
    if possible is None and types:
        raise RmkitError(f"{name} is a trained reward model and knows its type.", "Leave --type out.")
    content: dict[str, Any] = {"types": {}}
    asked: Sequence[str | None] = types or possible or [None]
    for number, each in enumerate(asked):
        try:
            checkpoint = load_as(
                name, each, beta=beta, seed=seed, dtype=dtype, date_string=date_string, base=base, verify=verify
            )
        except RmkitError as error:
            if types or number == 0:
                raise
            print(f"{each}: left out. {error.cause}")
            continue
        reward_model = checkpoint.reward_model
        label = reward_model.settings.type
        encoded = encode_pairs(training, reward_model, max_length=max_length)
        rewordings = {key: encode_pairs(pairs, reward_model, max_length=max_length) for key, pairs in unseen.items()}
        checkpoint.model.to(PartialState().device)
        references = reference_outputs(checkpoint, encoded, batch_size)
        lab = freeze_checkpoint(checkpoint)
        for note in lab.notes:
            print(f"{label}: {note}")
        content["types"][label] = dynamics(
            lab, encoded, rewordings, references=references, batch_size=batch_size, description=label, **options
        )
        if isinstance(reward_model, ImplicitRewardModel):
            target, title = _other_wording(encoded, rewordings)
            shown = freeze(lab, [target, encoded.chosen[0]])
            content["heat_map"] = coefficient_map(lab, shown[0], shown[1], tokens) | {
                "target": title,
                "source": "chosen response that the step is taken on",
            }
    return content


def dynamics_of_run(
    reward_model: RewardModel[Any],
    states: Mapping[str, Callable[[], PreTrainedModel | PeftModel]],
    training: EncodedPairs,
    unseen: Mapping[str, EncodedPairs],
    references: Tensor | None,
    learning_rate: float,
    batch_size: int,
) -> dict[str, Any]:
    """The dynamics of a run's own type in some states, `before` and `after` training; only u or U is trained.

    Args:
        states: name -> what loads the model in that state; one is held at a time, in the dtype that it comes in.
        references: [pairs, 2, outputs] of the reference on `training`, where the type has one.
    """
    return {
        state: dynamics(
            freeze_backbone(reward_model, loaded()),
            training,
            unseen,
            learning_rate=learning_rate,
            references=references,
            batch_size=batch_size,
            backbone=False,
            description=f"dynamics {state} training",
        )
        for state, loaded in states.items()
    }


def _other_wording(encoded: EncodedPairs, unseen: Mapping[str, EncodedPairs]) -> tuple[TokenSequence, str]:
    """A chosen response to set against the first pair's: the same prompt's in an unseen set, or the next pair's."""
    for name, pairs in unseen.items():
        for pair, sequence in zip(pairs.pairs, pairs.chosen, strict=True):
            if pair.prompt == encoded.pairs[0].prompt:
                return sequence, f"chosen response in {name}"
    if len(encoded) > 1:
        return encoded.chosen[1], "chosen response of the next pair"
    return encoded.rejected[0], "rejected response of the same pair"
