"""The report's statistics against hand arithmetic, SciPy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rmkit.report import statistics


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs(generator):
    for _ in range(20):
        first, second = generator.integers(0, 2, (2, 60))
        b, c = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
        found = statistics.mcnemar(first, second)
        assert (found.first_only, found.second_only) == (b, c)
        assert found.p_value == pytest.approx(stats.binomtest(b, b + c).pvalue)


def test_mcnemar_matches_hand_arithmetic():
    # 5 pairs only the first ranks right, 1 only the second: p = 2 (1 + 6) / 2^6.
    found = statistics.mcnemar([1] * 5 + [0, 1, 0], [0] * 5 + [1, 1, 0])
    assert (found.first_only, found.second_only) == (5, 1)
    assert found.p_value == pytest.approx(2 * 7 / 64)
    assert statistics.mcnemar([1, 0.5, 0], [1, 0.5, 0]).p_value == 1.0
    # A tie against a wrong ranking is a pair that the first ranks better.
    assert statistics.mcnemar([0.5, 1], [0, 1]) == statistics.McNemar(1, 0, 1.0)


def test_mcnemar_with_repeated_prompts_is_about_prompts():
    first, second, prompts = [1, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0], ["a", "a", "a", "b", "c", "c"]
    # D = 3, -1, 1: (3 - 1 + 1)^2 / (9 + 1 + 1).
    assert statistics.mcnemar(first, second, prompts).p_value == pytest.approx(stats.chi2.sf(9 / 11, 1))
    # Three copies of a pair are worth one: the same p-value as of the pairs themselves.
    once = statistics.mcnemar([1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 1, 2, 3, 3])
    thrice = statistics.mcnemar(*([each for each in half for _ in range(3)] for half in
                                  ([1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 1, 2, 3, 3])))  # fmt: skip
    assert thrice.p_value == pytest.approx(once.p_value)


def test_clustered_mcnemar_keeps_its_level_where_the_plain_test_does_not(generator):
    """Under the null, with the four pairs of a prompt decided together."""
    rejected = {"clustered": 0, "plain": 0}
    prompts = np.repeat(np.arange(50), 4)
    for _ in range(400):
        together = np.repeat(generator.integers(0, 2, (2, 50)), 4, axis=1)
        rejected["clustered"] += statistics.mcnemar(*together, prompts).p_value < 0.05
        rejected["plain"] += statistics.mcnemar(*together).p_value < 0.05
    assert rejected["clustered"] / 400 < 0.09
    assert rejected["plain"] / 400 > 0.2


def test_the_bootstrap_agrees_with_scipys(generator):
    values = generator.normal(0.1, 1.0, 150)
    found = statistics.bootstrap_mean(values, resamples=20_000)
    expected = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert found.estimate == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_the_bootstrap_resamples_whole_prompts(generator):
    prompts = np.repeat(np.arange(40), 5)
    values = np.repeat(generator.normal(size=40), 5)
    clustered, plain = statistics.bootstrap_mean(values, prompts), statistics.bootstrap_mean(values)
    by_prompt = statistics.bootstrap_mean(values[::5])
    assert (clustered.low, clustered.high) == pytest.approx((by_prompt.low, by_prompt.high))
    assert clustered.high - clustered.low > 1.8 * (plain.high - plain.low)


def test_the_detectable_difference_is_detected_with_the_stated_power(generator):
    pairs, discordant = 200, 0.3
    difference = statistics.detectable_difference(pairs, discordant)
    assert 0.09 < difference < 0.12
    level, power = stats.norm.isf(0.025), stats.norm.isf(0.2)
    assert difference * math.sqrt(pairs) == pytest.approx(
        level * math.sqrt(discordant) + power * math.sqrt(discordant - difference**2)
    )
    b = generator.multinomial(
        pairs, [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant], size=4000
    )
    z = np.abs(b[:, 0] - b[:, 1]) / np.sqrt(b[:, 0] + b[:, 1])
    assert np.mean(z > level) == pytest.approx(0.8, abs=0.03)


def test_no_disagreement_has_no_detectable_difference():
    assert math.isnan(statistics.detectable_difference(200, 0.0))
    assert math.isnan(statistics.detectable_difference(2, 0.5))


def test_standard_errors_match_hand_arithmetic():
    found = statistics.standard_errors(0.76, 0.03, 3, 0.75, 0.04, 4)
    assert found == pytest.approx(0.01 / math.sqrt(0.0009 / 3 + 0.0016 / 4))
    assert math.isnan(statistics.standard_errors(0.76, math.nan, 1, 0.75, 0.04, 3))
    assert math.isnan(statistics.standard_errors(0.76, 0.0, 3, 0.75, 0.0, 3))
    # Shares 3/4 of 4 and 1/2 of 12: pooled 9/16.
    rates = statistics.standard_errors_of_rates(0.75, 4, 0.5, 12)
    assert rates == pytest.approx(0.25 / math.sqrt(9 / 16 * 7 / 16 * (1 / 4 + 1 / 12)))
    assert statistics.standard_errors_of_rates(1.0, 4, 1.0, 18) == 0.0


def test_calibration_matches_hand_arithmetic():
    confidence = np.array([0.83, 0.83, 0.62, 0.97])
    margins = np.log(confidence / (1 - confidence)) * [1, -1, 1, 1]  # the second is wrong
    found = statistics.calibration(margins, bins=5)  # of width 0.1 from 0.5
    assert list(found.pairs) == [0, 1, 0, 2, 1]
    filled = found.pairs > 0
    assert found.confidence[filled] == pytest.approx([0.62, 0.83, 0.97])
    assert found.accuracy[filled] == pytest.approx([1.0, 0.5, 1.0])
    assert found.ece == pytest.approx((0.38 + 2 * 0.33 + 0.03) / 4)
    assert found.brier == pytest.approx((0.17**2 + 0.83**2 + 0.38**2 + 0.03**2) / 4)


def test_calibrated_margins_have_a_small_error_and_overconfident_ones_a_large_one(generator):
    margins = np.abs(generator.normal(0, 2, 40_000))
    right = generator.random(40_000) < 1 / (1 + np.exp(-margins))
    signed = np.where(right, margins, -margins)
    assert statistics.calibration(signed).ece < 0.01
    assert statistics.calibration(4 * signed).ece > 0.1


def test_ties_and_huge_margins_are_finite():
    found = statistics.calibration([0.0, 1e4, -1e4])
    assert found.brier == pytest.approx((0.25 + 0.0 + 1.0) / 3)
    assert np.isfinite(found.ece)


def test_rank_correlations_are_spearmans(generator):
    first, second = generator.integers(0, 9, (4, 50)), generator.normal(size=50)
    expected = [stats.spearmanr(row, second).statistic for row in first]
    assert statistics.rank_correlations(first, second) == pytest.approx(expected)
    assert np.isnan(statistics.rank_correlations(np.ones((1, 5)), np.arange(5.0))).all()


def test_agreement_counts_equal_rankings():
    found = statistics.agreement([[1, 0.5, 0, 1], [1, 0, 0, 0.5], [0, 0.5, 1, 0]])
    assert found.tolist() == [[1, 0.5, 0.25], [0.5, 1, 0], [0.25, 0, 1]]
