"""Learning to verify does not require learning to generate (Theorem 1, Corollary 1; Appendices B.1 and B.2).

The task is the paper's Hamiltonian cycles, on graphs so small that all answers (permutations of the vertices) can be
listed. The construction of the proof is computed exactly, as a distribution over all answers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rmkit.errors import RmkitError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Reference = Literal["uniform", "random", "efficient"]
_LARGEST_EXPONENT = 300


def permutations(vertices: int) -> NDArray[np.int64]:
    """All answers [vertices!, vertices]."""
    return np.array(list(itertools.permutations(range(vertices))))


def random_graph(vertices: int, edge_probability: float, generator: np.random.Generator) -> Bools:
    """Adjacency [vertices, vertices]: the Hamiltonian cycle of a random permutation, plus every other edge with
    `edge_probability` (Appendix D.1)."""
    edges: Bools = np.array(np.triu(generator.random((vertices, vertices)) < edge_probability, 1))
    cycle = generator.permutation(vertices)
    edges[cycle, np.roll(cycle, -1)] = True
    return np.logical_or(edges, edges.T)


def is_hamiltonian_cycle(adjacency: Bools, answers: NDArray[np.int64]) -> Bools:
    """Which answers [answers, vertices] are Hamiltonian cycles [answers] of the graph."""
    result: Bools = np.all(adjacency[answers, np.roll(answers, -1, axis=1)], axis=1)
    return result


def reference_distribution(correct: Bools, reference: Reference, generator: np.random.Generator) -> Floats:
    """pi_ref [answers]: `uniform`; `random`, drawn log-normal; or `efficient`, the control arm, which puts 1/4 on the
    correct answers whatever their number, so that it is an efficient generator (Definition 3)."""
    if reference == "efficient":
        weights: Floats = np.where(correct, 0.25 / correct.sum(), 0.75 / (~correct).sum())
    else:
        weights = np.ones(len(correct)) if reference == "uniform" else generator.lognormal(0.0, 2.0, len(correct))
    return weights / float(weights.sum())


def verifier(reference: Floats, correct: Bools, margin_over_beta: float) -> tuple[Floats, float]:
    """The construction of B.1: pi is pi_ref with correct answers exp(delta / beta) times likelier, renormalised.

    Args:
        reference: [answers] pi_ref.
        correct: [answers].
        margin_over_beta: delta / beta.

    Returns:
        pi [answers] and its normaliser Z.
    """
    weights = reference * np.where(correct, math.exp(margin_over_beta), 1.0)
    normaliser = float(weights.sum())
    return weights / normaliser, normaliser


def implicit_rewards(policy: Floats, reference: Floats, beta: float) -> Floats:
    """r(x, y) = beta ln(pi / pi_ref) [answers] (Eq. 2)."""
    rewards: Floats = beta * (np.log(policy) - np.log(reference))
    return rewards


def verification_margin(rewards: Floats, correct: Bools) -> float:
    """The largest delta of Definition 2: min over correct minus max over incorrect rewards."""
    return float(rewards[correct].min() - rewards[~correct].max())


@dataclass(frozen=True)
class Case:
    """Theorem 1 on one graph.

    Attributes:
        prompt_length: |x|, counted as vertices and edge ends of the prompt.
        reference_mass: pi_ref(C|x).
        mass: pi(C|x) of the constructed pi.
        bound: pi_ref(C|x) exp(delta / beta).
        slack: bound / mass, equal to Z: how far the inequality is from equality.
        margin: verification margin of the implicit reward model of pi; exactly delta by construction.
        sharpened_margin, sharpened_mass: the control arm, a pi with nearly all its mass on the correct answers. It is a
            verifier too, but violates the inequality, which therefore does not hold for every verifier.
    """

    vertices: int
    prompt_length: int
    correct: int
    answers: int
    reference_mass: float
    mass: float
    bound: float
    slack: float
    margin: float
    sharpened_margin: float
    sharpened_mass: float


def case(
    answers: NDArray[np.int64], adjacency: Bools, reference: Floats, correct: Bools, delta: float, beta: float
) -> Case:
    """Theorem 1 on one graph, everything summed over all answers [answers, vertices]."""
    policy, normaliser = verifier(reference, correct, delta / beta)
    mass = float(reference[correct].sum())
    # Twice the nats needed to exceed the bound, or to make correct answers near certain.
    odds = 2 * (delta / beta + abs(math.log(mass)))
    sharpened, _ = verifier(reference, correct, odds)
    return Case(
        vertices=answers.shape[1],
        prompt_length=answers.shape[1] + int(adjacency.sum()),
        correct=int(correct.sum()),
        answers=len(answers),
        reference_mass=mass,
        mass=float(policy[correct].sum()),
        bound=mass * math.exp(delta / beta),
        slack=normaliser,
        margin=verification_margin(implicit_rewards(policy, reference, beta), correct),
        sharpened_margin=verification_margin(implicit_rewards(sharpened, reference, beta), correct),
        sharpened_mass=float(sharpened[correct].sum()),
    )


def cases(
    vertices: Sequence[int],
    graphs: int,
    *,
    delta: float = 1.0,
    beta: float = 1.0,
    edge_probability: float = 0.2,
    reference: Reference = "uniform",
    seed: int = 0,
) -> list[Case]:
    """Theorem 1 on `graphs` random graphs per size, the same graphs for every delta, beta and reference.

    Raises:
        RmkitError: if delta or beta is not positive, exp(delta / beta) overflows, or every graph would be complete.
    """
    if not (delta > 0 and beta > 0 and delta / beta <= _LARGEST_EXPONENT):
        raise RmkitError(
            f"delta is {delta:g} and beta {beta:g}: both must be positive, delta / beta at most {_LARGEST_EXPONENT}.",
            "Example: --delta 1 --beta 0.1.",
        )
    if edge_probability >= 1:
        raise RmkitError("In complete graphs every answer is correct: there is nothing to verify.", "Give less than 1.")
    found = []
    for size in vertices:
        answers = permutations(size)
        for number in range(graphs):
            generator = np.random.default_rng([seed, size, number])
            while True:  # a complete graph has no incorrect answer, so nothing to verify
                adjacency = random_graph(size, edge_probability, generator)
                correct = is_hamiltonian_cycle(adjacency, answers)
                if not correct.all():
                    break
            distribution = reference_distribution(correct, reference, generator)
            found.append(case(answers, adjacency, distribution, correct, delta, beta))
    return found


def sweep(graph: Case, points: int = 41) -> dict[str, Any]:
    """pi(C|x) and its bound on one graph, up to the delta / beta at which pi is right 19 times in 20.

    Both depend on pi_ref(C|x) alone.

    Returns:
        vertices, and margin_over_beta, mass, bound as [points].
    """
    reference = np.array([graph.reference_mass, 1 - graph.reference_mass])
    odds = np.linspace(0.0, math.log(19 / graph.reference_mass), points)
    masses = [float(verifier(reference, np.array([True, False]), ratio)[0][0]) for ratio in odds]
    return {
        "vertices": graph.vertices,
        "margin_over_beta": odds.tolist(),
        "mass": masses,
        "bound": (graph.reference_mass * np.exp(odds)).tolist(),
    }


def growth(found: Sequence[Case], name: Literal["mass", "reference_mass"]) -> list[dict[str, Any]]:
    """How fast the probability of a correct answer falls with the prompt's length (Definition 3, Corollary 1).

    An efficient generator has pi(C|x) >= |x|^-k / alpha: from one size to the next, the exponent
    -d ln pi(C|x) / d ln |x| stays bounded (k). It is computed between geometric means over the graphs of a size.

    Returns:
        one row per size: vertices, prompt_length, probability, exponent since the previous size (None for the first).
    """
    rows: list[dict[str, Any]] = []
    for size in sorted({graph.vertices for graph in found}):
        members = [graph for graph in found if graph.vertices == size]
        length = float(np.exp(np.mean([math.log(graph.prompt_length) for graph in members])))
        probability = float(np.exp(np.mean([math.log(getattr(graph, name)) for graph in members])))
        exponent = None
        if rows:
            before = rows[-1]
            exponent = -math.log(probability / before["probability"]) / math.log(length / before["prompt_length"])
        rows.append({"vertices": size, "prompt_length": length, "probability": probability, "exponent": exponent})
    return rows
