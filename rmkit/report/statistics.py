"""Statistics that the paper does not report: paired tests, intervals, detectable differences, calibration, agreement.

Pure functions of arrays. The score of a pair is 1 if the chosen response is ranked first, 1/2 for a tie, else 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
RESAMPLES = 2000


@dataclass(frozen=True)
class McNemar:
    """Number of pairs that only one of two models ranks right, and the two-sided p-value."""

    first_only: int
    second_only: int
    p_value: float


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Mean confidence, accuracy and pairs by bin [bins]; calibration error and Brier score over all pairs."""

    confidence: Floats
    accuracy: Floats
    pairs: Integers
    ece: float
    brier: float


def mcnemar(first: ArrayLike, second: ArrayLike, clusters: ArrayLike | None = None) -> McNemar:
    """McNemar's test of equal accuracy on the same pairs, from the scores [pairs] of two models.

    Exact (binomial) if no prompt repeats. Pairs with the same prompt are not independent; if there are any, the
    statistic is Obuchowski's (Statistics in Medicine, 1998): with D_k = (first only) - (second only) in prompt k,
    (sum D_k)^2 / sum D_k^2 against chi-square with one degree of freedom. It equals McNemar's if all prompts differ.

    Args:
        first: scores of the first model.
        second: scores of the second model.
        clusters: a label [pairs], equal for pairs with the same prompt.
    """
    better = np.sign(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))
    first_only, second_only = int((better > 0).sum()), int((better < 0).sum())
    if first_only + second_only == 0:
        return McNemar(0, 0, 1.0)
    if clusters is not None and _repeats(clusters):
        sums, _ = _by_cluster(better, clusters)
        squares = float(np.square(sums).sum())
        p_value = float(stats.chi2.sf(sums.sum() ** 2 / squares, df=1)) if squares else 1.0
    else:
        fewer, discordant = min(first_only, second_only), first_only + second_only
        p_value = min(1.0, 2.0 * float(special.bdtr(fewer, discordant, 0.5)))
    return McNemar(first_only, second_only, p_value)


def bootstrap_mean(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of paired differences [pairs] with a percentile bootstrap interval that resamples whole prompts.

    A resample is a vector of prompt counts, so that all resamples are one matrix product. scipy.stats.bootstrap copies
    the values for every resample, which takes far longer on the hundreds of comparisons of a report.
    """
    values = np.asarray(values, dtype=np.float64)
    sums, counts = _by_cluster(values, np.arange(len(values)) if clusters is None else clusters)
    drawn = _resamples(len(sums), resamples, seed)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1.0 - level) / 2, (1.0 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def detectable_difference(pairs: int, discordant: float, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference in accuracy that McNemar's test detects with this power (Connor, Biometrics 1987).

    Solves difference * sqrt(pairs) = z_level * sqrt(q) + z_power * sqrt(q - difference^2) for the share q of pairs on
    which the two models disagree.

    Args:
        pairs: number of pairs that both models rank.
        discordant: share of pairs that exactly one model ranks right.
        level: two-sided significance level.
        power: probability of detecting it.
    """
    level_z, power_z = stats.norm.isf(level / 2), stats.norm.isf(1.0 - power)
    inside = pairs - level_z**2 + power_z**2
    if discordant <= 0 or inside <= 0:
        return math.nan
    difference = math.sqrt(discordant) * (math.sqrt(pairs) * level_z + power_z * math.sqrt(inside))
    return float(min(difference / (pairs + power_z**2), 1.0))


def standard_errors(mean: float, sd: float, number: int, papers_mean: float, papers_sd: float, papers: int) -> float:
    """(mean - paper's mean) / sqrt(sd^2 / number + paper's sd^2 / papers); NaN with one seed or without any spread."""
    variance = sd**2 / number + papers_sd**2 / papers if number > 1 else math.nan
    return (mean - papers_mean) / math.sqrt(variance) if variance > 0 else math.nan


def standard_errors_of_rates(rate: float, number: int, papers_rate: float, papers: int) -> float:
    """The same for two proportions, with the standard error of the pooled one; 0 if both are 0 or both are 1."""
    pooled = (rate * number + papers_rate * papers) / (number + papers)
    variance = pooled * (1.0 - pooled) * (1.0 / number + 1.0 / papers)
    return (rate - papers_rate) / math.sqrt(variance) if variance > 1e-12 else 0.0


def calibration(margins: ArrayLike, bins: int = 10) -> Calibration:
    """Calibration of sigma(margin), read as the probability that the chosen response is better.

    The confidence of a pair is sigma(|margin|), in [0.5, 1], its outcome whether the ranking is right. Bins have equal
    width. ECE is the mean of |accuracy - confidence| over bins, weighted by their pairs; the Brier score the mean
    of (1 - sigma(margin))^2.

    Args:
        margins: r+ - r- [pairs], in the units of the reward (its natural log-odds).
        bins: number of bins over [0.5, 1].
    """
    margins = np.asarray(margins, dtype=np.float64)
    confidence, correct = special.expit(np.abs(margins)), 0.5 * (1.0 + np.sign(margins))
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    pairs = np.bincount(place, minlength=bins)
    filled = np.maximum(pairs, 1)
    means = [np.bincount(place, weights=values, minlength=bins) / filled for values in (confidence, correct)]
    ece = float((pairs * np.abs(means[1] - means[0])).sum() / len(margins))
    empty = np.where(pairs > 0, 1.0, np.nan)
    brier = float(np.square(special.expit(-margins)).mean())
    return Calibration(means[0] * empty, means[1] * empty, pairs, ece, brier)


def rank_correlations(first: ArrayLike, second: ArrayLike) -> Floats:
    """Spearman's rho by row [rows]; NaN where one of the two is constant.

    Args:
        first: [rows, values].
        second: [rows, values], or [values] for all rows.
    """
    ranks = [stats.rankdata(np.asarray(values, dtype=np.float64), axis=-1) for values in (first, second)]
    centred = [values - values.mean(axis=-1, keepdims=True) for values in ranks]
    norms = np.sqrt(np.square(centred[0]).sum(axis=-1) * np.square(centred[1]).sum(axis=-1))
    with np.errstate(invalid="ignore"):
        return np.asarray((centred[0] * centred[1]).sum(axis=-1) / norms, dtype=np.float64)


def agreement(scores: ArrayLike) -> Floats:
    """Share of pairs that two models rank the same way [models, models], from scores [models, pairs]."""
    stacked = np.asarray(scores, dtype=np.float64)
    same = sum((stacked == value).astype(np.float64) @ (stacked == value).T for value in (0.0, 0.5, 1.0))
    return np.asarray(same / stacked.shape[1], dtype=np.float64)


def _by_cluster(values: Floats, clusters: ArrayLike) -> tuple[Floats, Floats]:
    """Sum of the values and number of pairs by cluster."""
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    counts = np.bincount(place).astype(np.float64)
    return np.bincount(place, weights=values).astype(np.float64), counts


@lru_cache(maxsize=8)  # sets of equal size share them
def _resamples(clusters: int, resamples: int, seed: int) -> Floats:
    """How often a cluster is drawn [resamples, clusters]."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(clusters, np.full(clusters, 1.0 / clusters), size=resamples).astype(np.float64)


def _repeats(clusters: ArrayLike) -> bool:
    labels = np.asarray(clusters)
    return len(np.unique(labels)) < len(labels)
