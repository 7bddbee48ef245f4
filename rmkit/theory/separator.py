"""The max-margin separator of hidden states (Eq. 6), and how it ranks unseen pairs (footnote 3)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import qpsolvers
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog

from rmkit.errors import RmkitError

Floats = NDArray[np.float64]
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_TOLERANCE = 1e-6  # on the constraints, whose right-hand side is 1


@dataclass(frozen=True)
class Separator:
    """u* of Eq. 6.

    Attributes:
        direction: [hidden size] u*; every training product <u*, h+ - h-> is at least 1.
        margin: 1 / |u*|, the distance between the separating hyperplane and the nearest difference.
        weights: [pairs] the multipliers, positive for support pairs: u* = sum of weight * (h+ - h-).
        smallest_product: the smallest training product, 1 up to rounding.
        duality_gap: (|u*|^2 - sum of weights) / |u*|^2, 0 at the optimum: the precision of the solution.
    """

    direction: Floats
    margin: float
    weights: Floats
    smallest_product: float
    duality_gap: float


class NotSeparable(RmkitError):
    """No u ranks all pairs strictly right.

    Attributes:
        weights: [pairs] the proof: non-negative, summing to 1, with sum of weight * (h+ - h-) = 0, so that not all
            products <u, h+ - h-> can be positive (Gordan); all zero if no proof was found in double precision.
        residual: the norm of that sum relative to the largest |h+ - h-|.
    """

    def __init__(self, weights: Floats, residual: float, indices: Sequence[int] | None = None):
        self.weights, self.residual = weights, residual
        rows = [int(row) if indices is None else indices[int(row)] for row in np.flatnonzero(weights)]
        if len(rows):
            shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            cause = (
                f"No linear head ranks all {len(weights)} pairs right: rows {shown} ({len(rows)} in all) contradict "
                f"each other (a weighted mean of their h+ - h- is 0, up to {residual:.1e})."
            )
        else:
            cause = f"No linear head ranks all {len(weights)} pairs right beyond rounding errors."
        super().__init__(cause, "Give fewer pairs, a larger model, or pairs whose responses differ for the model.")

    def summary(self, indices: Sequence[int]) -> dict[str, Any]:
        """The content of the JSON file; `indices` [pairs] are the pairs' rows in the source."""
        rows = np.flatnonzero(self.weights)
        certificate = {
            "pairs": [indices[int(row)] for row in rows],
            "weights": self.weights[rows].tolist(),
            "residual": self.residual,
        }
        return {"separable": False, "certificate": certificate, "unseen": {}}


def max_margin_separator(differences: ArrayLike) -> Separator:
    """argmin |u|^2 such that <u, h+ - h-> >= 1 for all pairs (Eq. 6), by a dual active-set method (DAQP).

    u* is a combination of the differences. Where there are fewer pairs than dimensions, the problem is solved in an
    orthonormal basis of their span, which is its kernel form without squaring the condition number.

    Args:
        differences: [pairs, hidden size] h_{x,y+} - h_{x,y-}.

    Raises:
        NotSeparable: if no u satisfies the constraints.
    """
    rows = np.asarray(differences, dtype=np.float64)
    scale = float(np.linalg.norm(rows, axis=1).max(initial=0.0))
    if scale == 0.0:
        raise NotSeparable(np.full(len(rows), 1 / len(rows)), 0.0)
    rows = rows / scale
    basis: Floats | None = None
    inner = rows
    if rows.shape[0] < rows.shape[1]:
        basis, triangular = np.linalg.qr(rows.T)
        inner = np.ascontiguousarray(triangular.T)
    size = inner.shape[1]
    problem = qpsolvers.Problem(np.eye(size), np.zeros(size), -inner, -np.ones(len(inner)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # infeasible problems are reported below
        solution = qpsolvers.solve_problem(problem, solver="daqp")
    smallest = float((inner @ solution.x).min()) if solution.found else -np.inf
    if smallest < 1 - _TOLERANCE:
        raise _prove_inseparable(rows)
    direction = solution.x if basis is None else basis @ solution.x
    weights = np.maximum(solution.z, 0.0)
    square = float(direction @ direction)
    return Separator(
        direction / scale,
        scale / float(np.sqrt(square)),
        weights / scale**2,
        smallest,
        (square - float(weights.sum())) / square,
    )


def compute_products(separator: Separator, differences: ArrayLike) -> Floats:
    """<u*, h_{x,y+} - h_{x,y-}> [pairs] of pairs [pairs, hidden size]; training pairs have at least 1."""
    result: Floats = np.asarray(differences, dtype=np.float64) @ separator.direction
    return result


def products_summary(values: Floats) -> dict[str, Any]:
    """Footnote 3's number, the fraction of products [pairs] that are positive, with their quantiles."""
    levels = zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)
    return {
        "pairs": len(values),
        "fraction_positive": float(np.mean(values > 0)),
        "quantiles": {f"{level:g}": float(value) for level, value in levels},
        "products": values.tolist(),
    }


def separator_summary(separator: Separator, indices: Sequence[int]) -> dict[str, Any]:
    """The content of the JSON file; `indices` [pairs] are the pairs' rows in the source."""
    support = np.flatnonzero(separator.weights > separator.weights.max() * 1e-9)
    return {
        "separable": True,
        "margin": separator.margin,
        "support_pairs": [indices[int(row)] for row in support],
        "smallest_training_product": separator.smallest_product,
        "duality_gap": separator.duality_gap,
    }


def _prove_inseparable(rows: Floats) -> NotSeparable:
    """Weights on the simplex whose mean of the rows is 0, by linear programming (HiGHS)."""
    size = rows.shape[1]
    constraints = np.vstack([rows.T, np.ones(len(rows))])
    found = linprog(np.zeros(len(rows)), A_eq=constraints, b_eq=np.append(np.zeros(size), 1.0), bounds=(0, None))
    if found.status != 0:
        return NotSeparable(np.zeros(len(rows)), float("nan"))
    return NotSeparable(found.x, float(np.linalg.norm(rows.T @ found.x)))
