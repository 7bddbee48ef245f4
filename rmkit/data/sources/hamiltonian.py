"""Hamiltonian cycle verification (Section 3.2, Appendix D.1): is a permutation of the vertices a cycle of the graph?

    prompt      Vertices: [sep]0[sep]1[sep]2[sep]3\\nEdges: [sep]2[edge_sep]3[sep]0[edge_sep]2[sep]...
    response    0[sep]2[sep]3[sep]1

The two separators must be tokens: set `base.added_tokens: ["[sep]", "[edge_sep]"]` in the recipe. (The released code
uses <sep> and <edge_sep>; these are the ones of the paper's text.)

A graph has a planted cycle, which is a random permutation, and every other edge with probability p; a complete graph,
on which no response is wrong, is drawn again. The rejected response is uniform over the permutations that are not a
cycle.

Draws per example, all from one generator, in the order of the released code: the cycle; a number for every edge that is
not on it, in lexicographic order; the order in which the edges are listed; permutations until one is not a cycle.
Training examples come first, then test examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from rmkit.data.sources.base import Options, PairDict, PairSource, Preparation
from rmkit.errors import RmkitError

if TYPE_CHECKING:
    import torch

SEPARATOR = "[sep]"
EDGE_SEPARATOR = "[edge_sep]"
ADDED_TOKENS = [SEPARATOR, EDGE_SEPARATOR]
_MAX_COMPLETE = 100  # complete graphs in a row before the settings count as impossible
_NUMBER = re.compile(r"\s*(0|[1-9][0-9]{0,8})\s*")

Edge = tuple[int, int]
"""The smaller vertex first."""


class HamiltonianOptions(Options):
    """`vertices` is the paper's N, `edge_probability` its p."""

    train: PositiveInt = 1000
    test: PositiveInt = 200
    vertices: Annotated[int, Field(ge=3)] = 10
    edge_probability: Annotated[float, Field(ge=0, le=1)] = 0.2


@dataclass(frozen=True)
class Graph:
    """An undirected graph with the vertices 0..vertices-1."""

    vertices: int
    edges: frozenset[Edge]


def examples(vertices: int, edge_probability: float, number: int, generator: torch.Generator) -> Iterator[PairDict]:
    """Generate `number` examples lazily.

    Raises:
        RmkitError: if graphs are always or nearly always complete.
    """
    import torch

    every = list(combinations(range(vertices), 2))
    if vertices == 3 or edge_probability == 1:
        raise _complete(vertices, edge_probability)
    listed = "Vertices: " + "".join(f"{SEPARATOR}{vertex}" for vertex in range(vertices)) + "\nEdges: "
    texts = {(a, b): f"{SEPARATOR}{a}{EDGE_SEPARATOR}{b}" for a, b in every}
    made = complete = 0
    while made < number:
        cycle: list[int] = torch.randperm(vertices, generator=generator).tolist()
        edges = _steps(cycle)
        present = set(edges)
        others = [edge for edge in every if edge not in present]
        numbers = torch.rand(len(others), generator=generator).tolist()
        edges += [edge for edge, drawn in zip(others, numbers, strict=True) if drawn < edge_probability]
        if len(edges) == len(every):
            complete += 1
            if complete == _MAX_COMPLETE:
                raise _complete(vertices, edge_probability)
            continue
        made, complete = made + 1, 0
        present.update(edges)
        order = torch.randperm(len(edges), generator=generator).tolist()
        rejected = cycle
        while present.issuperset(_steps(rejected)):  # terminates: some permutation needs a missing edge
            rejected = torch.randperm(vertices, generator=generator).tolist()
        yield {
            "prompt": listed + "".join([texts[edges[number]] for number in order]),
            "chosen": SEPARATOR.join(map(str, cycle)),
            "rejected": SEPARATOR.join(map(str, rejected)),
        }


def _steps(permutation: list[int]) -> list[Edge]:
    """The edges of the closed walk along a permutation."""
    following = [*permutation[1:], permutation[0]]
    return [(a, b) if a < b else (b, a) for a, b in zip(permutation, following, strict=True)]


def _complete(vertices: int, edge_probability: float) -> RmkitError:
    return RmkitError(
        f"Graphs of {vertices} vertices with edge_probability {edge_probability} are complete: no response is wrong.",
        "Give more vertices, at least 4, or a lower edge_probability.",
    )


# --- verification --------------------------------------------------------------------------------------------------


def is_hamiltonian_cycle(prompt: str, response: str) -> bool:
    """Whether a response (any text) is a Hamiltonian cycle of the prompt's graph.

    The cycle may start anywhere and run in either direction. Whitespace around vertices is ignored, because decoding
    may add some; nothing else is.

    Raises:
        RmkitError: if the prompt does not describe a graph.
    """
    graph = parse_graph(prompt)
    numbers = [_NUMBER.fullmatch(part) for part in response.split(SEPARATOR)]
    permutation = [int(number[1]) for number in numbers if number]
    if len(permutation) != len(numbers) or sorted(permutation) != list(range(graph.vertices)):
        return False
    return graph.edges.issuperset(_steps(permutation))


@lru_cache(maxsize=1024)
def parse_graph(prompt: str) -> Graph:
    """The graph of a prompt.

    Raises:
        RmkitError: if the prompt does not describe a graph.
    """
    vertices_line, newline, edges_line = prompt.strip().partition("\n")
    try:
        vertices = [int(vertex) for vertex in _fields("Vertices:", vertices_line)]
        edges = [[int(end) for end in edge.split(EDGE_SEPARATOR)] for edge in _fields("Edges:", edges_line)]
        ends = {end for edge in edges for end in edge}
        if not newline or vertices != list(range(len(vertices))) or not ends <= set(vertices):
            raise ValueError
        return Graph(len(vertices), frozenset((min(a, b), max(a, b)) for a, b in edges))
    except ValueError:
        raise RmkitError(
            f"The prompt {prompt[:40]!r} describes no graph.",
            "Use the prompts of `rmkit prepare hamiltonian`.",
        ) from None


def _fields(title: str, line: str) -> list[str]:
    before, *fields = line.split(SEPARATOR)
    if before.strip() != title:
        raise ValueError
    return fields


def splits(preparation: Preparation) -> Mapping[str, Iterator[PairDict]]:
    """The training and the test examples."""
    options = preparation.options
    numbers = {"train": options.train, "test": options.test}
    preparation.steps.append({"step": f"graphs of {options.vertices} vertices", "rows": numbers})
    return {
        split: examples(options.vertices, options.edge_probability, number, preparation.generator)
        for split, number in numbers.items()
    }


SOURCES = [
    PairSource("hamiltonian", "Hamiltonian cycles in random graphs, generated", "generated", HamiltonianOptions, splits)
]
