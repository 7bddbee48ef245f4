"""Metrics against manual arithmetic, and the `evaluate` modules against the functions that they wrap."""

from __future__ import annotations

import math

import evaluate
import numpy as np
import pytest
import torch

from rmkit.errors import RmkitError
from rmkit.evaluation import metrics
from rmkit.evaluation.statistics import (
    accuracy,
    bradley_terry_loss,
    by_category,
    length_baselines,
    normalized_margin,
    summary,
    tie_rate,
)

CHOSEN, REJECTED = [3.0, 1.0, 2.0, -1.0], [1.0, 1.0, 4.0, -4.0]
FUNCTIONS = [accuracy, normalized_margin, tie_rate, bradley_terry_loss]


def test_accuracy_and_ties_by_hand():
    assert accuracy(CHOSEN, REJECTED) == (1 + 0.5 + 0 + 1) / 4
    assert tie_rate(CHOSEN, REJECTED) == 1 / 4
    assert accuracy([0.0, 0.0], [0.0, -0.0]) == 0.5
    assert tie_rate([0.0, 0.0], [0.0, -0.0]) == 1.0
    tiny = np.nextafter(1.0, 2.0)
    assert accuracy([tiny], [1.0]) == 1.0  # no tolerance: it would hide ties of low precision
    assert tie_rate([tiny], [1.0]) == 0.0


def test_margin_by_hand():
    """Mean |r+ - r-| = (2 + 0 + 2 + 3) / 4; the 8 rewards have mean 7/8 and sum of squares 49."""
    deviation = math.sqrt((49 - 8 * (7 / 8) ** 2) / 7)  # unbiased: over 2N - 1
    assert normalized_margin(CHOSEN, REJECTED) == pytest.approx(7 / 4 / deviation, rel=1e-12)


def test_margin_uses_the_standard_deviation_of_torch():
    """As the paper's released code computes it (up to its 1e-8)."""
    chosen, rejected = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (chosen - rejected).abs().mean() / torch.cat([chosen, rejected]).std()
    assert normalized_margin(chosen.numpy(), rejected.numpy()) == pytest.approx(float(expected), rel=1e-12)


def test_one_pair():
    """|a - b| over |a - b| / sqrt(2)."""
    assert normalized_margin([5.0], [2.0]) == pytest.approx(math.sqrt(2))
    assert summary([[2.0, 5.0]])["accuracy"] == 0.0


def test_all_rewards_equal():
    result = summary([[0.1, 0.1]] * 7)
    assert result["accuracy"] == 0.5
    assert result["tie_rate"] == 1.0
    assert result["normalized_margin"] == 0.0
    assert result["loss"] == pytest.approx(math.log(2))


def test_metrics_do_not_depend_on_scale_or_shift():
    base = summary(np.stack([CHOSEN, REJECTED], axis=1))
    other = summary(np.stack([CHOSEN, REJECTED], axis=1) * 1e-6 + 3e-5)
    for name in ("accuracy", "normalized_margin", "tie_rate"):
        assert other[name] == pytest.approx(base[name], rel=1e-9)


def test_loss_by_hand():
    expected = sum(math.log1p(math.exp(r - c)) for c, r in zip(CHOSEN, REJECTED, strict=True)) / 4
    assert bradley_terry_loss(CHOSEN, REJECTED) == pytest.approx(expected)
    assert bradley_terry_loss([-1000.0], [1000.0]) == 2000.0  # no overflow


def test_log_rewards_rank_where_probabilities_saturate():
    rewards, log_rewards = [[1.0, 1.0], [1.0, 1.0]], [[-1e-30, -2e-30], [-3e-20, -1e-20]]
    result = summary(rewards, log_rewards)
    assert result["accuracy"] == 0.5
    assert result["tie_rate"] == 0.0
    assert summary(rewards)["tie_rate"] == 1.0
    assert result["normalized_margin"] == 0.0  # of the rewards themselves


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_are_an_error(bad):
    with pytest.raises(RmkitError, match=r"1 of 3 pairs .* \(the first is pair 1\)"):
        summary([[0.0, 1.0], [bad, 1.0], [2.0, 1.0]])
    with pytest.raises(RmkitError, match="not finite"):
        summary([[0.0, 1.0]], [[0.0, bad]])
    for function in FUNCTIONS:
        with pytest.raises(RmkitError, match="not finite"):
            function([1.0], [bad])


@pytest.mark.parametrize(
    ("chosen", "rejected"), [([], []), ([1.0, 2.0], [1.0]), ([1.0], [1.0, 2.0]), ([[1.0]], [[2.0]])]
)
def test_unpaired_rewards_are_an_error(chosen, rejected):
    """NumPy would spread one reward over many."""
    for function in FUNCTIONS:
        with pytest.raises(RmkitError, match="rejected rewards"):
            function(chosen, rejected)


def test_length_baselines_by_hand():
    """Longer, shorter, equal."""
    assert length_baselines([(5, 2), (1, 9), (3, 3), (1, 2)]) == {"longer_wins": 1.5 / 4, "shorter_wins": 2.5 / 4}


def test_categories_are_averaged_over_sets():
    categories = {"a": "domain shift", "b": "domain shift", "c": "in-distribution", "d": None}
    means = by_category({"a": 0.5, "b": 1.0, "c": 0.25, "d": 0.0, "e": 0.0}, categories)
    assert means == {"domain shift": 0.75, "in-distribution": 0.25}


# --- the `evaluate` modules ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("evaluate"))
    names = ("preference_accuracy", "normalized_reward_margin")
    return {name: evaluate.load(metrics.path(name), cache_dir=cache) for name in names}


def test_evaluate_modules_agree_with_the_functions(modules):
    rewards = {"chosen_rewards": CHOSEN, "rejected_rewards": REJECTED}
    assert modules["preference_accuracy"].compute(**rewards) == {
        "accuracy": accuracy(CHOSEN, REJECTED),
        "tie_rate": tie_rate(CHOSEN, REJECTED),
    }
    assert modules["normalized_reward_margin"].compute(**rewards) == {
        "normalized_reward_margin": normalized_margin(CHOSEN, REJECTED)
    }


def test_evaluate_modules_take_batches_and_describe_themselves(modules):
    for module in modules.values():
        for start in (0, 2):
            module.add_batch(chosen_rewards=CHOSEN[start : start + 2], rejected_rewards=REJECTED[start : start + 2])
        whole = module.compute()
        assert whole == module.compute(chosen_rewards=CHOSEN, rejected_rewards=REJECTED)
        assert module.description
        assert "Razin" in module.citation
        assert set(module.features) == {"chosen_rewards", "rejected_rewards"}


def test_evaluate_modules_keep_float64(modules):
    chosen = [1.0 + 1e-12]
    assert modules["preference_accuracy"].compute(chosen_rewards=chosen, rejected_rewards=[1.0])["accuracy"] == 1.0
