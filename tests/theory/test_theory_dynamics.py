"""Equations 4, 5 and 8 against actual gradient steps, and the error when a term is missing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from rmkit.config.recipe import Explicit, Generative, Implicit
from rmkit.data.preferences import PreferencePair, drop_identical
from rmkit.encoding.batches import pad
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.pairs import encode_pairs
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.models.language_model import apply_head, logit_cap
from rmkit.reward_models import make_reward_model
from rmkit.reward_models.generative import GenerativeRewardModel
from rmkit.reward_models.implicit import ImplicitRewardModel
from rmkit.reward_models.loading import load_model
from rmkit.reward_models.origins import ModelRef
from rmkit.theory import dynamics as equations
from rmkit.theory import experiment
from rmkit.theory.dynamics import Positions, Unembedding, coefficients, predict, response_positions
from rmkit.theory.frozen import (
    Frozen,
    FrozenHeadModel,
    freeze,
    freeze_backbone,
    measured_changes,
    outputs,
    trainable_changes,
)

PROMPTS = ["How do I bake bread?", "Why is the dog lazy?"]
CHOSEN, REJECTED = "Mix flour, water and salt.", "No. The quick brown fox."
TARGETS = ["Mix flour, salt and yeast.", "Wait. Bake it, and why?", "12 + 30 = 42"]
SETTINGS = {
    "explicit": Explicit(),
    "explicit, mean": Explicit(pooling="mean"),
    "implicit": Implicit(beta=0.5),
    "implicit, no reference": Implicit(beta=0.02, reference="none"),
    "generative": Generative(),
}


@pytest.fixture(params=tiny.ARCHITECTURES)
def folder(request: pytest.FixtureRequest, models: dict[str, Path]) -> Path:
    return models[request.param]


@pytest.fixture
def llama(models: dict[str, Path]) -> Path:
    return models["llama"]


def encoder(folder: Path) -> ChatEncoder:
    return ChatEncoder(load_tokenizer(folder)[0], "26 Jul 2024")


def frozen_model_for(folder: Path, settings: Any) -> FrozenHeadModel:
    torch.manual_seed(0)
    reward_model = make_reward_model(settings, encoder(folder))
    return freeze_backbone(reward_model, load_model(reward_model, ModelRef(name=str(folder))).double())


def peaked(frozen_model: FrozenHeadModel, sequences: list[Any]) -> list[Frozen]:
    """Frozen states with predictions far from uniform, so that no term of a coefficient is negligible.

    Hidden states are smaller and the unembedding is larger than the model's, which the equations hold for just as well.
    """
    frozen = [Frozen(each.sequence, 0.4 * each.hidden) for each in freeze(frozen_model, sequences)]
    if logit_cap(frozen_model.model) is not None:
        frozen_model.model.config.final_logit_softcapping = (
            30.0  # as Gemma-2's: these logits are neither untouched nor flat
        )
    with torch.no_grad():
        frozen_model.weight.mul_(50 if frozen_model.reward_model.head else 20)
        if isinstance(frozen_model.reward_model, ImplicitRewardModel):  # tokens that are there become likely
            at, _ = response_positions(frozen)
            frozen_model.weight.index_add_(0, at.tokens, 4 * at.hidden / at.hidden.square().sum(-1, keepdim=True))
        if isinstance(frozen_model.reward_model, GenerativeRewardModel):  # verdicts that the model thinks likely
            logits, _ = Unembedding.of(frozen_model.model)(torch.stack([each.hidden[-1] for each in frozen]))
            frozen_model.reward_model.yes, frozen_model.reward_model.no = logits.mean(0).topk(2).indices.tolist()
    return frozen


def encoded(frozen_model: FrozenHeadModel) -> list[Any]:
    prompts = [PROMPTS[0]] * 2 + [PROMPTS[1]] * 3
    return frozen_model.reward_model.encode(prompts, [CHOSEN, REJECTED, *TARGETS])


def own_reference(frozen_model: FrozenHeadModel, pair: list[Frozen]) -> Tensor | None:
    if frozen_model.reward_model.reference is None:
        return None
    with torch.no_grad():
        return outputs(frozen_model, pair)[None] + torch.tensor([[[0.7], [-0.4]]])  # so that g is not 1/2


@pytest.mark.parametrize("name", SETTINGS)
def test_predicted_changes_match_measured_changes(folder: Path, name: str) -> None:
    frozen_model = frozen_model_for(folder, SETTINGS[name])
    frozen = peaked(frozen_model, encoded(frozen_model))
    reference = own_reference(frozen_model, frozen[:2])
    rates = [1e-2, 1e-3, 1e-4]
    measured = measured_changes(frozen_model, frozen[0], frozen[1], frozen, rates, reference)
    change = predict(frozen_model.reward_model, frozen_model, frozen[0], frozen[1], frozen, reference).change
    errors = [float((rate * change - each).norm() / each.norm()) for rate, each in zip(rates, measured, strict=True)]
    if frozen_model.reward_model.head:
        assert errors[0] < 1e-10  # Eq. 4 is exact at any learning rate
    else:
        assert errors[2] < 1e-3
        for larger, smaller in itertools.pairwise(errors):
            assert smaller == pytest.approx(larger / 10, rel=0.2)


def four_terms(frozen_model: FrozenHeadModel, target: Positions, source: Positions) -> list[Tensor]:
    """The terms of rho in Eq. 5, dense over the vocabulary; for capped logits, of the capped distributions."""
    unembedding = Unembedding.of(frozen_model.model)
    left, right = (unembedding(side.hidden)[0].softmax(-1) for side in (target, source))
    same = (target.tokens[:, None] == source.tokens).double()
    return [same, -right[:, target.tokens].T, -left[:, source.tokens], left @ right.T]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_missing_term_is_detected(architecture: str, models: dict[str, Path]) -> None:
    frozen_model = frozen_model_for(models[architecture], Implicit(beta=0.5))
    frozen = peaked(frozen_model, encoded(frozen_model))
    target, _ = response_positions(frozen)
    source, lengths = response_positions(frozen[:2])
    terms = four_terms(frozen_model, target, source)
    rho = coefficients(Unembedding.of(frozen_model.model), target, source)
    if architecture == "llama":
        torch.testing.assert_close(rho, torch.stack(terms).sum(0), rtol=0, atol=1e-12)
    signs = torch.tensor([1.0, -1.0]).double().repeat_interleave(lengths)
    measured = measured_changes(
        frozen_model, frozen[0], frozen[1], frozen, [1e-4], own_reference(frozen_model, frozen[:2])
    )[0]
    with torch.no_grad():
        rewards = frozen_model.reward_model.rewards(
            outputs(frozen_model, frozen[:2])[None], own_reference(frozen_model, frozen[:2])
        )[0]
    scale = 1e-4 * 0.5**2 * equations.loss_slope(rewards[0], rewards[1])

    def error(rho: Tensor) -> float:
        lengths = response_positions(frozen)[1]
        sums = equations.implicit_contributions(rho, target.hidden, source.hidden, signs).sum(-1)
        change = torch.stack([each.sum() for each in sums.split(lengths.tolist())]) * scale
        return float((change - measured).norm() / measured.norm())

    assert error(rho) < 1e-3
    for missing in range(4):
        assert error(rho - terms[missing]) > 1e-2
    # Control: with Gemma-2's cap, leaving out its slope is as wrong as leaving out a term.
    assert (error(torch.stack(terms).sum(0)) > 1e-2) == (architecture == "gemma2")


@pytest.mark.parametrize("name", ["implicit", "generative"])
def test_scaled_logits_are_predicted_with_their_scale(tmp_path: Path, name: str) -> None:
    """Granite's logits are U h / 3; the control leaves the scale out of the equation."""
    tokenizer = tiny.tokenizer("qwen2")
    tokenizer.save_pretrained(tmp_path)
    tiny_model(AutoModelForCausalLM, "granite", vocab_size=len(tokenizer), logits_scaling=3.0).save_pretrained(tmp_path)
    frozen_model = frozen_model_for(tmp_path, SETTINGS[name])
    frozen = peaked(frozen_model, encoded(frozen_model))
    reference = own_reference(frozen_model, frozen[:2])
    measured = measured_changes(frozen_model, frozen[0], frozen[1], frozen, [1e-5], reference)[0]

    def error() -> float:
        prediction = predict(frozen_model.reward_model, frozen_model, frozen[0], frozen[1], frozen, reference)
        return float((1e-5 * prediction.change - measured).norm() / measured.norm())

    assert error() < 1e-3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equations, "logit_scale", lambda _: 1.0)
        assert error() > 0.1


def test_coefficients_keep_their_bounds_and_signs(folder: Path) -> None:
    frozen_model = frozen_model_for(folder, Implicit())
    frozen = peaked(frozen_model, encoded(frozen_model))
    positions, _ = response_positions(frozen)
    rho = coefficients(Unembedding.of(frozen_model.model), positions, positions)
    same = positions.tokens[:, None] == positions.tokens
    assert float(rho.abs().max()) <= 2
    assert bool((rho[same] > 0).all())  # footnote 2
    assert bool((rho[~same] < -0.01).any())  # control: without a match it is negative somewhere


def test_gammas_keep_their_bounds(folder: Path) -> None:
    frozen_model = frozen_model_for(folder, Generative())
    frozen = peaked(frozen_model, encoded(frozen_model))
    found = predict(frozen_model.reward_model, frozen_model, frozen[0], frozen[1], frozen).coefficients
    for name, (low, high) in found.items():
        lowest, highest = equations.COEFFICIENT_BOUNDS[name]
        assert lowest <= low <= high <= highest
    assert found["gamma_rejected"][0] < -0.01


def test_vocabulary_chunks_do_not_change_the_result(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen_model = frozen_model_for(llama, Implicit())
    frozen = peaked(frozen_model, encoded(frozen_model))
    whole = predict(
        frozen_model.reward_model, frozen_model, frozen[0], frozen[1], frozen, own_reference(frozen_model, frozen[:2])
    )
    monkeypatch.setattr(equations, "_CHUNK", 1500)
    in_parts = predict(
        frozen_model.reward_model, frozen_model, frozen[0], frozen[1], frozen, own_reference(frozen_model, frozen[:2])
    )
    torch.testing.assert_close(in_parts.change, whole.change, rtol=1e-10, atol=0)


def test_tokens_matter_to_implicit_models_only() -> None:
    """Equal hidden states, for a response that does or does not share its token with y+ (Section 4.1)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.ones(1, 4).double()
    unembedding = Unembedding(0.1 * torch.randn(6, 4, generator=generator).double())
    source = Positions(hidden, torch.tensor([2]))
    change = {
        token: float(
            coefficients(unembedding, Positions(hidden, torch.tensor([token])), source) * hidden.square().sum()
        )
        for token in (2, 3)
    }
    assert change[2] > 0 > change[3]
    explicit = equations.explicit_change(hidden, hidden[0], torch.zeros(4).double(), torch.tensor(0.5).double())
    assert float(explicit) == pytest.approx(2.0)  # 4 * 1/2, whatever the token


def test_all_parameters_against_the_inner_product_of_gradients(llama: Path) -> None:
    frozen_model = frozen_model_for(llama, Implicit(beta=0.5))
    sequences = encoded(frozen_model)
    pair, target = sequences[:2], sequences[2:3]
    rate = 1e-5

    def gradients(loss: Any) -> list[Tensor]:
        parameters = [each for each in frozen_model.model.parameters() if each.requires_grad]
        return [
            torch.zeros_like(each) if grad is None else grad
            for each, grad in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True)
        ]

    def compute_outputs(some: list[Any]) -> Tensor:
        return apply_head(
            frozen_model.model,
            frozen_model.reward_model.outputs,
            pad(some, frozen_model.reward_model.encoder.tokenizer.pad_token_id),
        )

    reward = gradients(
        frozen_model.reward_model.rewards(compute_outputs(target), compute_outputs(target).detach()).sum()
    )
    reference = compute_outputs(pair).detach()[None]
    loss = gradients(frozen_model.reward_model.loss(compute_outputs(pair)[None], reference))
    expected = -rate * sum(float((one * other).sum()) for one, other in zip(reward, loss, strict=True))
    before = {name: each.clone() for name, each in frozen_model.model.state_dict().items()}
    change = trainable_changes(frozen_model, pair[0], pair[1], target, rate, reference)
    assert float(change) == pytest.approx(expected, rel=1e-2)
    for name, each in frozen_model.model.state_dict().items():
        torch.testing.assert_close(each, before[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["explicit", "implicit", "generative"])
def test_both_steps_agree_with_a_frozen_backbone(folder: Path, name: str) -> None:
    frozen_model = frozen_model_for(folder, SETTINGS[name])
    sequences = encoded(frozen_model)
    frozen = freeze(frozen_model, sequences)
    reference = own_reference(frozen_model, frozen[:2])
    frozen_model.model.requires_grad_(False)
    frozen_model.weight.requires_grad_(True)
    step = trainable_changes(frozen_model, sequences[0], sequences[1], sequences, 1e-2, reference)
    measured = measured_changes(frozen_model, frozen[0], frozen[1], frozen, [1e-2], reference)[0]
    torch.testing.assert_close(step, measured, rtol=1e-3, atol=1e-7)


def test_a_tied_unembedding_is_untied_in_a_copy(models: dict[str, Path]) -> None:
    frozen_model = frozen_model_for(models["qwen2"], Implicit())
    assert any("tied" in note for note in frozen_model.notes)
    frozen = freeze(frozen_model, encoded(frozen_model))
    embedding = frozen_model.model.get_input_embeddings().weight.clone()
    measured_changes(frozen_model, frozen[0], frozen[1], frozen, [1.0], own_reference(frozen_model, frozen[:2]))
    assert frozen_model.weight is not frozen_model.model.get_input_embeddings().weight
    assert torch.equal(embedding, frozen_model.model.get_input_embeddings().weight)


def pairs_of(frozen_model: FrozenHeadModel, wordings: list[tuple[str, str]], prompts: list[str]) -> Any:
    pairs = [
        PreferencePair(prompt, *both, index) for index, (prompt, both) in enumerate(zip(prompts, wordings, strict=True))
    ]
    return encode_pairs(drop_identical(pairs, "set"), frozen_model.reward_model)


def test_dynamics_over_a_set(llama: Path) -> None:
    frozen_model = frozen_model_for(llama, Implicit(beta=0.5))
    training = pairs_of(frozen_model, [(CHOSEN, REJECTED), (TARGETS[0], TARGETS[1])], PROMPTS)
    reworded = pairs_of(frozen_model, [("Bake it.", "Wait."), ("No bread.", "Yes, salt.")], PROMPTS[::-1])
    found = experiment.dynamics(frozen_model, training, {"reworded": reworded}, learning_rate=1e-4, backbone=False)
    json.dumps(found)
    assert found["equation"] == "Eq. 5"
    assert found["error_slope"] == pytest.approx(2, abs=0.05)
    asked = [(row["step_on"], row["group"], row["target"]) for row in found["changes"]]
    assert asked == [
        *[(0, experiment.ITSELF, 0), (0, experiment.ANOTHER, 1), (0, "reworded", 1)],  # matched by its prompt
        *[(1, experiment.ITSELF, 1), (1, experiment.ANOTHER, 0), (1, "reworded", 0)],
    ]
    for row in found["changes"]:
        for side in range(2):
            parts = sum(row[name][side] for name in ("matching", "template", "other"))
            assert parts == pytest.approx(row["predicted"][side], rel=1e-9)
    shares = found["groups"][experiment.ITSELF]["absolute_share"]
    assert sum(shares.values()) == pytest.approx(1)
    # A response shares all tokens with itself; a rewording fewer.
    assert shares["matching"] > found["groups"]["reworded"]["absolute_share"]["matching"]
    assert found["groups"][experiment.ITSELF]["positive_share"]["measured"] == 1
