"""Micro-batches: every pair once per epoch, every step with the pairs of transformers' sampler, about equal work."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rmkit.training.micro_batches import MicroBatches, balance

TOKENS = np.random.default_rng(0).integers(10, 500, size=103).tolist()


def epochs(number=2, processes=2, tokens=TOKENS, **options):
    """For every epoch, the micro-batches of all processes."""
    options = {"batch_size": 32, "accumulation": 4, "seed": 5} | options
    samplers = [
        MicroBatches(len(TOKENS), tokens, processes=processes, process=process, **options)
        for process in range(processes)
    ]
    for epoch in range(number):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        found = [list(sampler) for sampler in samplers]
        assert [len(batches) for batches in found] == [len(sampler) for sampler in samplers]
        yield found


def steps(processes, accumulation=4):
    """The pairs of every optimizer step."""
    for start in range(0, len(processes[0]), accumulation):
        yield {pair for batches in processes for batch in batches[start : start + accumulation] for pair in batch}


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("tokens", [None, TOKENS])
def test_every_step_has_the_pairs_of_a_seeded_permutation(processes, tokens):
    for epoch, found in enumerate(epochs(processes=processes, tokens=tokens)):
        order = torch.randperm(len(TOKENS), generator=torch.Generator().manual_seed(5 + epoch)).tolist()
        assert list(steps(found)) == [set(order[start : start + 32]) for start in range(0, 103, 32)]
        assert sorted(itertools.chain(*itertools.chain(*found))) == list(range(103))  # none twice
        assert all(micro_batch for batches in found for micro_batch in batches)


def test_without_token_counts_steps_are_cut_in_order():
    (found,), _ = epochs(processes=1, tokens=None)
    order = torch.randperm(len(TOKENS), generator=torch.Generator().manual_seed(5)).tolist()
    assert list(itertools.chain(*found)) == order
    assert {len(micro_batch) for micro_batch in found[:-1]} == {8}
    assert len(found[-1]) == 7


def test_micro_batches_and_processes_have_about_equal_work():
    def work(micro_batch):
        return sum(TOKENS[pair] for pair in micro_batch)

    def spread(tokens):
        ((first, second),) = epochs(1, tokens=tokens)
        by_step = [[work(batch) for batch in (*first[at : at + 4], *second[at : at + 4])] for at in (0, 4, 8)]
        apart = [abs(work(one) - work(other)) for one, other in zip(first[:12], second[:12], strict=True)]
        return max(max(step) / min(step) for step in by_step), max(apart)

    ratio, apart = spread(TOKENS)
    plain_ratio, plain_apart = spread(None)
    assert ratio < 1.3 < plain_ratio
    assert apart < 100 < plain_apart


@pytest.mark.parametrize(("pairs", "sizes"), [(40, [8]), (33, [1]), (44, [6, 6]), (32, [])])
def test_the_last_step_keeps_the_size_of_micro_batches(pairs, sizes):
    found = list(MicroBatches(pairs, None, batch_size=32, accumulation=4))
    assert [len(batch) for batch in found[4:]] == sizes
    assert len(list(MicroBatches(pairs, None, batch_size=32, accumulation=4, drop_last=True))) == 4


def test_every_process_gets_a_pair():
    """33 pairs on 4 processes: the last step has one pair; the others take the epoch's first again."""
    ends = [
        list(MicroBatches(33, TOKENS, batch_size=32, accumulation=2, processes=4, process=process))[2:]
        for process in range(4)
    ]
    assert [[len(batch) for batch in batches] for batches in ends] == [[1]] * 4


def test_balancing_matches_hand_arithmetic():
    """Works 7, 5, 4, 3, 1 into two: 7+3 and 5+4+1."""
    assert sorted(map(sorted, balance([0, 1, 2, 3, 4], [4, 7, 1, 5, 3], 2))) == [[0, 2, 3], [1, 4]]
    assert balance([3, 4], [0, 0, 0, 9, 1], 2) == [[3], [4]]
    assert all(balance(range(4), [0, 0, 0, 0], 4))  # none is empty, even without work
