"""Reference outputs are required by implicit models with a reference, and refused by those without."""

from __future__ import annotations

import pytest
import torch

from rmkit.config.recipe import Explicit, Implicit
from rmkit.evaluation.scorer import RewardScorer
from rmkit.reward_models.explicit import ExplicitRewardModel
from rmkit.reward_models.implicit import ImplicitRewardModel
from rmkit.reward_models.loading import load
from rmkit.theory.frozen import reward_change
from rmkit.training.reference import References
from rmkit.training.scoring_callback import ScoringCallback

WITH = ImplicitRewardModel(Implicit(beta=0.5), None)
WITHOUT = ImplicitRewardModel(Implicit(beta=0.5, reference="none"), None)
OUTPUTS = torch.tensor([[[-3.0], [-5.0]]])  # [pairs, 2, 1]
REFERENCE = torch.tensor([[[-4.0], [-4.0]]])


@pytest.mark.parametrize("function", ["rewards", "loss"])
def test_missing_or_superfluous_reference_outputs_raise(function):
    with pytest.raises(ValueError, match="the reference is base, but its outputs are missing"):
        getattr(WITH, function)(OUTPUTS)
    with pytest.raises(ValueError, match="the reference is none, but its outputs are given"):
        getattr(WITHOUT, function)(OUTPUTS, REFERENCE)
    assert WITH.rewards(OUTPUTS, REFERENCE).tolist() == [[0.5, -0.5]]
    assert WITHOUT.rewards(OUTPUTS).tolist() == [[-1.5, -2.5]]


@pytest.mark.parametrize("reference", [REFERENCE[0], REFERENCE[..., 0], REFERENCE[:, :1], REFERENCE.repeat(2, 1, 1)])
def test_reference_outputs_of_other_shapes_raise(reference):
    with pytest.raises(ValueError, match=r"outputs have the shape \[1, 2, 1\], those of the reference"):
        WITH.rewards(OUTPUTS, reference)


def test_changes_need_no_reference():
    for reward_model, reference in ((WITH, REFERENCE), (WITHOUT, None)):
        expected = reward_model.rewards(OUTPUTS + 1, reference) - reward_model.rewards(OUTPUTS, reference)
        assert torch.equal(reward_change(reward_model, OUTPUTS, OUTPUTS + 1), expected)
    assert torch.equal(
        reward_change(ExplicitRewardModel(Explicit(), None), OUTPUTS, OUTPUTS + 1), torch.ones_like(OUTPUTS[..., 0])
    )


def test_outputs_that_were_not_computed_raise():
    with pytest.raises(KeyError):
        References(WITH, None, 8, None).get("test")
    assert References(WITHOUT, None, 8, None).get("test") is None


def test_a_scorer_needs_the_reference(models, tmp_path):
    options = {"type": "implicit", "reference": str(models["qwen2"]), "beta": 0.5}
    checkpoint = load(str(models["qwen2"]), options=options, policy_only=True)
    with pytest.raises(ValueError, match="was not loaded"):
        RewardScorer(checkpoint)
    checkpoint = load(str(models["qwen2"]), options=options | {"reference": "none"}, policy_only=True)
    assert RewardScorer(checkpoint).score(["why?"], ["No."]).shape == (1,)


@pytest.mark.smoke
def test_training_without_the_references_outputs_stops(run, monkeypatch):
    """If nothing computes them, the first scoring fails; without a first scoring, the first step does."""
    with monkeypatch.context() as patch:
        patch.setattr(References, "compute_from_policy", lambda *_: None)
        with pytest.raises(KeyError):
            run("implicit", "untaken")
    with monkeypatch.context() as patch:
        patch.setattr(ScoringCallback, "on_train_begin", lambda *_, **__: None)
        with pytest.raises(KeyError):
            run("implicit", "unset")
