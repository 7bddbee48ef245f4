"""The dynamics over a set: one step per pair, and its effect on that pair, on others and on rewordings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rmkit.encoding.pairs import EncodedPairs
from rmkit.models.language_model import logit_cap, logit_scale
from rmkit.theory.dynamics import (
    COEFFICIENT_BOUNDS,
    Prediction,
    Unembedding,
    coefficients,
    predict,
    response_positions,
)
from rmkit.theory.frozen import Frozen, FrozenHeadModel, freeze, measured_changes, outputs, trainable_changes

ITSELF = "the pair itself"
ANOTHER = "another pair"
_ROUNDING = 1e-9  # relative errors below it are rounding errors of float64


@dataclass(frozen=True)
class _Target:
    """A pair whose change of rewards is measured, by its position in a set."""

    group: str
    pairs: EncodedPairs
    position: int
    by_prompt: bool


def dynamics(
    frozen_model: FrozenHeadModel,
    training: EncodedPairs,
    unseen: Mapping[str, EncodedPairs],
    *,
    learning_rate: float = 1e-6,
    others: int = 1,
    backbone: bool = True,
    references: Tensor | None = None,
    batch_size: int = 8,
    description: str | None = None,
) -> dict[str, Any]:
    """Predicted and measured changes of rewards after one step per pair of `training`, always from the same state.

    Targets of a step are the pair itself, the next `others` pairs, and from every set of `unseen` the pair with the
    same prompt (or, without one, the pair at the same position). Errors are measured at `learning_rate` and at 10 and
    100 times it; everything else is reported at `learning_rate`.

    Args:
        backbone: also take the step with all parameters trained.
        references: [pairs, 2, outputs] the reference's outputs on `training`; without them, a model with a reference is
            its own reference.

    Returns:
        the content of the JSON file; changes of rewards are [chosen, rejected].
    """
    rates = [float(f"{factor * learning_rate:.12g}") for factor in (1, 10, 100)]
    targets = [list(_targets(training, unseen, number, others)) for number in range(len(training))]
    states = _States(frozen_model, [target for group in targets for target in group], batch_size, description)
    rows: list[dict[str, Any]] = []
    predictions: list[Prediction] = []
    differences: list[Tensor] = []
    for number in tqdm(range(len(training)), desc=description, unit="step", disable=description is None):
        pair = states[training, number]
        reference = _reference(frozen_model, pair, references, number)
        frozen = [state for target in targets[number] for state in states[target.pairs, target.position]]
        prediction = predict(frozen_model.reward_model, frozen_model, *pair, frozen, reference)
        measured = measured_changes(frozen_model, *pair, frozen, rates, reference)
        values = {"predicted": learning_rate * prediction.change, "measured": measured[0]}
        if backbone:
            sequences = [state.sequence for state in frozen]
            values["trainable"] = trainable_changes(
                frozen_model, pair[0].sequence, pair[1].sequence, sequences, learning_rate, reference, batch_size
            ).to(measured)
        values |= {name: learning_rate * part for name, part in prediction.parts.items()}
        rows += _rows(training, number, targets[number], values)
        predictions.append(prediction)
        scaled = torch.tensor(rates, dtype=measured.dtype, device=measured.device)[:, None] * prediction.change
        differences.append(torch.stack([scaled - measured, measured]).cpu())
    return {
        "equation": predictions[0].equation,
        "notes": frozen_model.notes,
        "settings": frozen_model.reward_model.settings.model_dump(mode="json"),
        "soft_capping": None if frozen_model.reward_model.head else logit_cap(frozen_model.model),
        "learning_rate": learning_rate,
        **_errors(torch.cat(differences, -1), rates),
        "coefficients": _ranges(predictions),
        "groups": _groups(rows),
        "changes": rows,
    }


def coefficient_map(frozen_model: FrozenHeadModel, target: Frozen, source: Frozen, tokens: int = 24) -> dict[str, Any]:
    """rho between the first tokens of two responses, for a heat map.

    Returns:
        rho as [target tokens][source tokens], the token ids, and the tokens as text.
    """
    scale = logit_scale(frozen_model.model)
    (rows, _), (columns, _) = response_positions([target], scale), response_positions([source], scale)
    rho = coefficients(Unembedding.of(frozen_model.model), rows, columns)[:tokens, :tokens]

    content: dict[str, Any] = {"rho": rho.tolist()}
    for name, side in (("target", rows), ("source", columns)):
        ids = side.tokens[:tokens].tolist()
        content |= {
            f"{name}_ids": ids,
            f"{name}_tokens": [frozen_model.reward_model.encoder.tokenizer.decode([token]) for token in ids],
        }
    return content


class _States:
    """Hidden states of the target pairs; every sequence is run once."""

    def __init__(
        self, frozen_model: FrozenHeadModel, targets: Sequence[_Target], batch_size: int, description: str | None
    ):
        places = list(dict.fromkeys((id(target.pairs), target.position) for target in targets))
        pairs = {id(target.pairs): target.pairs for target in targets}
        sequences = [side[at] for key, at in places for side in (pairs[key].chosen, pairs[key].rejected)]
        frozen = freeze(frozen_model, sequences, batch_size, description and f"{description}: hidden states")
        self._pairs = dict(zip(places, zip(frozen[::2], frozen[1::2], strict=True), strict=True))

    def __getitem__(self, place: tuple[EncodedPairs, int]) -> tuple[Frozen, Frozen]:
        pairs, position = place
        return self._pairs[id(pairs), position]


def _targets(training: EncodedPairs, unseen: Mapping[str, EncodedPairs], number: int, others: int) -> Iterator[_Target]:
    yield _Target(ITSELF, training, number, True)
    for step in range(1, min(others, len(training) - 1) + 1):
        yield _Target(ANOTHER, training, (number + step) % len(training), False)
    prompt = training.pairs[number].prompt
    earlier = sum(pair.prompt == prompt for pair in training.pairs[:number])
    for name, pairs in unseen.items():
        same = [position for position, pair in enumerate(pairs.pairs) if pair.prompt == prompt]
        position = same[min(earlier, len(same) - 1)] if same else number % len(pairs)
        yield _Target(name, pairs, position, bool(same))


def _reference(
    frozen_model: FrozenHeadModel, pair: tuple[Frozen, Frozen], references: Tensor | None, number: int
) -> Tensor | None:
    if references is not None:
        return references[number][None].to(frozen_model.weight.device)
    if frozen_model.reward_model.reference is None:
        return None
    with torch.no_grad():
        return outputs(frozen_model, pair)[None]


def _rows(
    training: EncodedPairs, number: int, targets: Sequence[_Target], values: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    lists = {name: value.reshape(-1, 2).tolist() for name, value in values.items()}
    return [
        {
            "step_on": training.pairs[number].index,
            "group": target.group,
            "target": target.pairs.pairs[target.position].index,
            "same_prompt": target.by_prompt,
            **{name: rows[place] for name, rows in lists.items()},
        }
        for place, target in enumerate(targets)
    ]


def _errors(differences: Tensor, rates: Sequence[float]) -> dict[str, Any]:
    """Norms of predicted - measured over all responses, and their slope over the learning rate in log-log.

    Args:
        differences: [2, learning rates, responses] predicted - measured, and measured.
    """
    absolute, size = differences.norm(dim=-1).tolist()
    relative = [error / whole if whole else 0.0 for error, whole in zip(absolute, size, strict=True)]
    only_rounding = max(relative) < _ROUNDING or min(absolute) == 0
    slope = None if only_rounding else float(np.polyfit(np.log(rates), np.log(absolute), 1)[0])
    errors = [
        {"learning_rate": rate, "relative": one, "absolute": other}
        for rate, one, other in zip(rates, relative, absolute, strict=True)
    ]
    return {"errors": errors, "error_slope": slope}


def _ranges(predictions: Sequence[Prediction]) -> dict[str, Any]:
    names = dict.fromkeys(name for prediction in predictions for name in prediction.coefficients)
    found = {
        name: [prediction.coefficients[name] for prediction in predictions if name in prediction.coefficients]
        for name in names
    }
    return {
        name: {
            "min": min(low for low, _ in ranges),
            "max": max(high for _, high in ranges),
            "bounds": list(COEFFICIENT_BOUNDS[name]),
        }
        for name, ranges in found.items()
    }


def _groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per group, the mean change of the margin r(chosen) - r(rejected), and how often it is positive."""
    groups = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]

        def margins(name: str, members: Sequence[Mapping[str, Any]] = members) -> Any:
            values = np.array([row[name] for row in members])
            return values[:, 0] - values[:, 1]

        arms = [name for name in ("predicted", "measured", "trainable") if name in members[0]]
        groups[group] = {
            "pairs": len(members),
            "same_prompt": sum(row["same_prompt"] for row in members),
            "margin_change": {name: float(margins(name).mean()) for name in arms},
            "positive_share": {name: float((margins(name) > 0).mean()) for name in arms},
        }
        parts = [name for name in ("matching", "template", "other") if name in members[0]]
        if parts:
            total = sum(np.sum([row[f"{name}_absolute"] for row in members]) for name in parts)
            groups[group]["margin_change_by_tokens"] = {name: float(margins(name).mean()) for name in parts}
            groups[group]["absolute_share"] = {
                name: float(np.sum([row[f"{name}_absolute"] for row in members]) / total) if total else 0.0
                for name in parts
            }
    return groups
