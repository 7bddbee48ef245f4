"""Losses against hand arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from rmkit.reward_models.losses import bradley_terry, verification


def test_bradley_terry_by_hand():
    # -ln sigmoid(1) = ln(1 + e^-1) = 0.313262; -ln sigmoid(-2) = ln(1 + e^2) = 2.126928
    loss = bradley_terry(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
    assert loss.item() == pytest.approx((0.313262 + 2.126928) / 2, abs=1e-6)


def test_equal_rewards_cost_ln_2():
    assert bradley_terry(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(2))


def test_a_margin_is_taken_off_the_difference():
    # -ln sigmoid(1 - 3) = ln(1 + e^2)
    loss = bradley_terry(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([3.0]))
    assert loss.item() == pytest.approx(2.126928, abs=1e-6)


def test_bfloat16_rewards_do_not_put_the_loss_on_a_grid():
    chosen = torch.tensor([0.0117], dtype=torch.bfloat16)
    loss = bradley_terry(chosen, torch.zeros(1, dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(-chosen.item())), abs=1e-7)


def test_verification_is_the_sum_over_both_responses():
    # -ln 1/2 - ln 1/4 = 2.079442; -ln 1 - ln 1 = 0
    loss = verification(torch.tensor([math.log(0.5), 0.0]), torch.tensor([math.log(0.25), 0.0]))
    assert loss.item() == pytest.approx(2.079442 / 2, abs=1e-6)
