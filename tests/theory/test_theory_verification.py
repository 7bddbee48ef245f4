"""Theorem 1 and Corollary 1 on Hamiltonian cycles, all answers listed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rmkit.errors import RmkitError
from rmkit.theory.verification import (
    cases,
    growth,
    implicit_rewards,
    is_hamiltonian_cycle,
    permutations,
    random_graph,
    sweep,
    verification_margin,
    verifier,
)


def test_by_hand() -> None:
    # One correct answer of probability 1/4; delta / beta = ln 2: weights 1/2 and 3/4, Z = 5/4, pi = 2/5 and 3/5.
    policy, normaliser = verifier(np.array([0.25, 0.75]), np.array([True, False]), math.log(2))
    assert normaliser == pytest.approx(1.25)
    assert policy == pytest.approx([0.4, 0.6])
    rewards = implicit_rewards(policy, np.array([0.25, 0.75]), beta=3.0)
    assert rewards == pytest.approx([3 * math.log(1.6), 3 * math.log(0.8)])
    assert verification_margin(rewards, np.array([True, False])) == pytest.approx(3 * math.log(2))


def test_hamiltonian_cycles_of_a_square() -> None:
    square = np.zeros((4, 4), bool)
    for left, right in ((0, 1), (1, 2), (2, 3), (3, 0)):
        square[left, right] = square[right, left] = True
    answers = permutations(4)
    correct = answers[is_hamiltonian_cycle(square, answers)]
    assert len(correct) == 8  # one cycle, from 4 vertices, in 2 directions
    assert [0, 1, 2, 3] in correct.tolist()
    assert [0, 2, 1, 3] not in correct.tolist()


def test_random_graphs_have_a_cycle_and_no_loops() -> None:
    for seed in range(20):
        graph = random_graph(6, 0.1, np.random.default_rng(seed))
        assert not graph.diagonal().any()
        assert (graph == graph.T).all()
        assert is_hamiltonian_cycle(graph, permutations(6)).any()


@pytest.mark.parametrize("reference", ["uniform", "random"])
@pytest.mark.parametrize(("delta", "beta"), [(1.0, 1.0), (0.3, 0.1), (2.0, 5.0)])
def test_a_verifier_with_exactly_the_margin_within_the_bound(delta: float, beta: float, reference: str) -> None:
    for each in cases([4, 5, 6], 4, delta=delta, beta=beta, reference=reference):  # type: ignore[arg-type]
        assert each.margin == pytest.approx(delta, rel=1e-9)
        assert each.reference_mass < each.mass <= each.bound * (1 + 1e-12)
        assert each.bound == pytest.approx(each.reference_mass * math.exp(delta / beta))
        # The slack is Z = 1 + pi_ref(C|x) (exp(delta / beta) - 1).
        assert each.bound / each.mass == pytest.approx(each.slack)
        assert each.slack == pytest.approx(1 + each.reference_mass * (math.exp(delta / beta) - 1))
        # Control: a verifier that does learn to generate breaks the bound, wherever a probability can.
        assert each.sharpened_margin >= delta
        if each.bound < 0.9:
            assert each.sharpened_mass > each.bound


def test_neither_reference_nor_verifier_generates_efficiently_as_graphs_grow() -> None:
    # Graphs that are one cycle: pi_ref(C|x) = 2 N / N! and |x| = 3 N, so that from N to N + 1 the probability falls by
    # N and the exponent is ln N / ln((N + 1) / N), which grows without bound.
    found = cases(range(4, 9), 1, edge_probability=0.0)
    exponents = [row["exponent"] for row in growth(found, "reference_mass")]
    assert exponents[0] is None
    assert exponents[1:] == pytest.approx([math.log(n) / math.log((n + 1) / n) for n in range(4, 8)])
    of_verifier = [row["exponent"] for row in growth(found, "mass")][1:]
    assert of_verifier == sorted(of_verifier)
    assert of_verifier[-1] == pytest.approx(exponents[-1], rel=1e-2)
    # Control: where the reference generates efficiently, so does the verifier, and the exponent stays 0.
    efficient = growth(cases([4, 5, 6], 3, reference="efficient"), "mass")
    assert [row["exponent"] for row in efficient[1:]] == pytest.approx([0, 0], abs=1e-9)
    assert efficient[-1]["probability"] == pytest.approx(0.25 * math.e / (0.25 * math.e + 0.75))


def test_the_sweep_is_the_construction_at_other_margins() -> None:
    (one,) = cases([5], 1, delta=0.8)
    curve = sweep(one, points=33)
    at = int(np.argmin(np.abs(np.array(curve["margin_over_beta"]) - 0.8)))
    (same,) = cases([5], 1, delta=curve["margin_over_beta"][at])
    assert curve["mass"][at] == pytest.approx(same.mass)
    assert curve["bound"][at] == pytest.approx(same.bound)


@pytest.mark.parametrize("options", [{"delta": 0.0}, {"beta": -1.0}, {"beta": 1e-4}, {"edge_probability": 1.0}])
def test_wrong_numbers(options: dict[str, float]) -> None:
    with pytest.raises(RmkitError):
        cases([4], 1, **options)  # type: ignore[arg-type]
