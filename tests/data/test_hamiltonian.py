"""Hamiltonian cycles: generator and verifier against brute force and networkx."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import networkx
import pytest
import tiny
import torch

from rmkit.data.sources.hamiltonian import ADDED_TOKENS, examples, is_hamiltonian_cycle, parse_graph
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.errors import RmkitError

SQUARE = (
    "Vertices: [sep]0[sep]1[sep]2[sep]3\nEdges: [sep]1[edge_sep]0[sep]1[edge_sep]2[sep]3[edge_sep]2[sep]0[edge_sep]3"
)

CROSSED = SQUARE + "[sep]0[edge_sep]2"


def generated(number, vertices=10, edge_probability=0.2, seed=982):
    return list(examples(vertices, edge_probability, number, torch.Generator().manual_seed(seed)))


def graph_of(prompt):
    graph = networkx.Graph()
    graph.add_nodes_from(int(each) for each in re.findall(r"\[sep\](\d+)", prompt.split("\n")[0]))
    graph.add_edges_from((int(a), int(b)) for a, b in re.findall(r"(\d+)\[edge_sep\](\d+)", prompt))
    return graph


def permutation_of(response):
    return [int(each) for each in response.split("[sep]")]


def closes(graph, permutation):
    return all(graph.has_edge(*step) for step in itertools.pairwise([*permutation, permutation[0]]))


@pytest.mark.parametrize(("vertices", "edge_probability"), [(4, 0.0), (5, 0.5), (10, 0.2), (12, 0.1)])
def test_chosen_is_a_cycle_and_rejected_is_not(vertices, edge_probability):
    for row in generated(200, vertices, edge_probability):
        graph = graph_of(row["prompt"])
        assert sorted(graph) == list(range(vertices))
        chosen, rejected = permutation_of(row["chosen"]), permutation_of(row["rejected"])
        assert sorted(chosen) == sorted(rejected) == list(range(vertices))
        assert closes(graph, chosen)
        assert not closes(graph, rejected)
        assert is_hamiltonian_cycle(row["prompt"], row["chosen"])
        assert not is_hamiltonian_cycle(row["prompt"], row["rejected"])


def test_the_format_of_the_paper():
    (row,) = generated(1, vertices=4, edge_probability=0)
    vertices, edges = row["prompt"].split("\n")
    assert vertices == "Vertices: [sep]0[sep]1[sep]2[sep]3"
    assert re.fullmatch(r"Edges: (\[sep\]\d\[edge_sep\]\d){4}", edges)
    assert re.fullmatch(r"\d(\[sep\]\d){3}", row["chosen"])


def test_draws_match_the_released_code():
    """One number at a time, as there: the cycle, each other edge, the order of the edges, the rejected permutation."""
    generator = torch.Generator().manual_seed(982)
    for row in generated(20, vertices=7, edge_probability=0.3):
        cycle = torch.randperm(7, generator=generator).tolist()
        edges = [tuple(sorted(step)) for step in itertools.pairwise([*cycle, cycle[0]])]
        for edge in itertools.combinations(range(7), 2):
            if edge not in edges[:7] and torch.rand(1, generator=generator).item() < 0.3:
                edges.append(edge)
        order = torch.randperm(len(edges), generator=generator).tolist()
        listed = "".join(f"[sep]{edges[each][0]}[edge_sep]{edges[each][1]}" for each in order)
        assert row["prompt"].split("\n")[1] == f"Edges: {listed}"
        assert permutation_of(row["chosen"]) == cycle
        while True:
            rejected = torch.randperm(7, generator=generator).tolist()
            if not closes(graph_of(row["prompt"]), rejected):
                break
        assert permutation_of(row["rejected"]) == rejected


def test_other_edges_have_probability_p():
    found = sum(len(graph_of(row["prompt"]).edges) - 10 for row in generated(1000, 10, 0.2))
    number = 1000 * 35
    assert abs(found - 0.2 * number) < 4 * (number * 0.2 * 0.8) ** 0.5


def test_rejected_is_uniform_over_non_cycles():
    """On the square 8 of the 24 permutations are its cycle; each other one is drawn 1 time in 16."""
    rejected = Counter()
    for row in generated(3200, 4, 0.0):
        place = {vertex: number for number, vertex in enumerate(permutation_of(row["chosen"]))}
        rejected[tuple(place[vertex] for vertex in permutation_of(row["rejected"]))] += 1
    assert len(rejected) == 16
    chi_square = sum((count - 200) ** 2 / 200 for count in rejected.values())
    assert chi_square < 30.6  # the 99 % quantile at 15 degrees of freedom


def test_the_verifier_agrees_with_brute_force_on_every_permutation():
    for row in generated(5, vertices=5, edge_probability=0.5):
        graph = graph_of(row["prompt"])
        cycles = 0
        for permutation in itertools.permutations(range(5)):
            assert is_hamiltonian_cycle(row["prompt"], "[sep]".join(map(str, permutation))) == closes(
                graph, permutation
            )
            cycles += closes(graph, permutation)
        assert cycles % 10 == 0  # 5 rotations in 2 directions


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("0[sep]1[sep]2[sep]3", True),
        ("3[sep]2[sep]1[sep]0", True),
        ("2[sep]3[sep]0[sep]1", True),
        (" 0 [sep] 1 [sep] 2 [sep] 3\n", True),  # decoding may put spaces around added tokens
        ("0[sep]2[sep]1[sep]3", False),  # 2-1 is there, 1-3 is not
        ("0[sep]1[sep]2", False),
        ("0[sep]1[sep]2[sep]3[sep]0", False),
        ("0[sep]1[sep]2[sep]2", False),
        ("0[sep]1[sep]2[sep]4", False),
        ("0[sep]1[sep]2[sep]3[sep]", False),
        ("0[sep]1[sep]2[sep]-3", False),
        ("0[sep]1[sep]2[sep]03", False),
        ("0[sep]1[sep]2[sep]٣", False),
        ("0, 1, 2, 3", False),
        ("0[edge_sep]1[edge_sep]2[edge_sep]3", False),
        ("The cycle is 0[sep]1[sep]2[sep]3", False),
        ("", False),
        ("9" * 10_000, False),
    ],
)
def test_verifier_accepts_any_text(response, right):
    assert is_hamiltonian_cycle(SQUARE, response) is right


def test_the_verifier_uses_the_graph_of_the_prompt():
    assert not is_hamiltonian_cycle(CROSSED.replace("[sep]3[edge_sep]2", ""), "0[sep]1[sep]2[sep]3")
    assert parse_graph(CROSSED).edges == {(0, 1), (1, 2), (2, 3), (0, 3), (0, 2)}


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "What is 2 + 2?",
        "Vertices: [sep]0[sep]1",
        SQUARE + "[sep]0[edge_sep]7",
        SQUARE + "[sep]1[edge_sep]2[edge_sep]3",
    ],
)
def test_a_prompt_without_a_graph_is_an_error(prompt):
    with pytest.raises(RmkitError, match="describes no graph"):
        is_hamiltonian_cycle(prompt, "0[sep]1")


def test_examples_are_generated_lazily():
    endless = examples(10, 0.2, 10**12, torch.Generator().manual_seed(0))
    assert [next(endless) for _ in range(3)] == generated(3, seed=0)


@pytest.mark.parametrize(("vertices", "edge_probability"), [(3, 0.0), (3, 0.5), (10, 1.0), (4, 0.999999)])
def test_complete_graphs_are_an_error(vertices, edge_probability):
    with pytest.raises(RmkitError, match="are complete"):
        generated(50, vertices, edge_probability)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_separators_become_single_tokens(tmp_path, architecture):
    tiny.save_language_model(tmp_path, architecture)
    plain, _ = load_tokenizer(tmp_path)
    tokenizer, notes = load_tokenizer(tmp_path, added_tokens=ADDED_TOKENS)
    assert any("[edge_sep]" in note for note in notes)
    assert set(plain.get_vocab().items()) < set(tokenizer.get_vocab().items())  # no other token has another id
    assert len(tokenizer) == len(plain) + 2
    encoder = ChatEncoder(tokenizer, "26 Jul 2024")
    (sequence,) = encoder.response_sequences([SQUARE], ["0[sep]1[sep]2[sep]3"])
    separators = tokenizer.convert_tokens_to_ids(ADDED_TOKENS)
    assert [sequence.ids.count(each) for each in separators] == [4 + 4 + 3, 4]
    response = tokenizer.decode(sequence.ids[sequence.response_start :], skip_special_tokens=True)
    assert is_hamiltonian_cycle(SQUARE, response)
