"""The max-margin separator (Eq. 6) against hand arithmetic, an independent solver, and inseparable data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from rmkit.theory.separator import NotSeparable, compute_products, max_margin_separator, products_summary


def test_by_hand() -> None:
    # <u, (1, 0)> >= 1 and <u, (0, 2)> >= 1: u* = (1, 1/2), |u*|^2 = 5/4 = sum of weights, u* = 1 (1, 0) + 1/4 (0, 2).
    found = max_margin_separator([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert found.direction == pytest.approx([1.0, 0.5])
    assert found.weights == pytest.approx([1.0, 0.25, 0.0], abs=1e-12)
    assert found.margin == pytest.approx(1 / np.sqrt(1.25))
    assert compute_products(found, [[2.0, -2.0], [0.0, -1.0]]) == pytest.approx([1.0, -0.5])


@pytest.mark.parametrize(("pairs", "size"), [(30, 6), (8, 40), (10, 10)])
def test_against_another_solver(pairs: int, size: int) -> None:
    generator = np.random.default_rng(pairs)
    rows = generator.normal(size=(pairs, size)) + 1.5 * np.eye(size)[0]
    rows *= np.sign(rows[:, :1])
    found = max_margin_separator(1e3 * rows)  # no scale is special
    constraints = {"type": "ineq", "fun": lambda u: rows @ u - 1, "jac": lambda u: rows}
    start = np.linalg.lstsq(rows, np.ones(pairs), rcond=None)[0]
    other = minimize(
        lambda u: u @ u, start, jac=lambda u: 2 * u, constraints=constraints, options={"maxiter": 500, "ftol": 1e-12}
    )
    assert 1e3 * found.direction == pytest.approx(other.x, abs=1e-4)
    assert found.smallest_product == pytest.approx(1, abs=1e-9)
    assert abs(found.duality_gap) < 1e-9
    # The multipliers prove that it is the optimum: u* = sum of weight * difference.
    assert found.weights @ (1e3 * rows) == pytest.approx(found.direction, abs=1e-9)


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]],
        [[0.0, 0.0], [1.0, 1.0]],
        [[0.0, 0.0]],
        np.random.default_rng(0).normal(size=(200, 20)),
    ],
)
def test_no_separator_comes_with_its_proof(rows: np.ndarray) -> None:
    with pytest.raises(NotSeparable, match="contradict each other") as error:
        max_margin_separator(rows)
    weights = error.value.weights
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    assert np.asarray(rows).T @ weights == pytest.approx(0, abs=1e-12)
    assert error.value.residual < 1e-12


def test_rows_are_named_as_in_the_source() -> None:
    weights = np.array([0.0, 0.5, 0.5])
    assert "rows 21, 35 (2 in all)" in NotSeparable(weights, 0.0, [7, 21, 35]).cause


@pytest.mark.parametrize(("structured", "expected"), [(True, 1.0), (False, 0.5)])
def test_unseen_pairs_are_ranked_through_structure_alone(structured: bool, expected: float) -> None:
    generator = np.random.default_rng(1)
    shift = 4.0 * structured * np.eye(50)[0]
    train, unseen = (generator.normal(size=(number, 50)) + shift for number in (30, 400))
    summary = products_summary(compute_products(max_margin_separator(train), unseen))
    assert summary["fraction_positive"] == pytest.approx(expected, abs=0.07)
    assert summary["quantiles"]["0.5"] == pytest.approx(np.median(summary["products"]))
