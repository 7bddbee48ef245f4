"""Group the pairs of an optimizer step into micro-batches with about the same number of tokens.

The order of the pairs, and so the pairs of every step, is that of transformers' own sampler with the same seed. Pairs
are regrouped only inside a step, by tokens, so that micro-batches and processes have about equal work.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class MicroBatches(Sampler[list[int]]):
    """The micro-batches of one process: lists of pairs, `accumulation` of them per optimizer step.

    Args:
        tokens: [pairs] the work of a pair. None cuts a step in the order of its pairs, as transformers does.
        batch_size: pairs per optimizer step, over all processes.
        accumulation: micro-batches of a process per optimizer step. If the last step of an epoch has fewer pairs, it
            has fewer micro-batches of the usual size.
        drop_last: skip that step.
    """

    def __init__(
        self,
        pairs: int,
        tokens: Sequence[int] | None,
        *,
        batch_size: int,
        accumulation: int,
        processes: int = 1,
        process: int = 0,
        seed: int = 0,
        drop_last: bool = False,
    ):
        self.pairs, self.tokens, self.batch_size, self.accumulation = pairs, tokens, batch_size, accumulation
        self.processes, self.process, self.seed, self.epoch = processes, process, seed, 0
        self.steps = pairs // batch_size if drop_last else math.ceil(pairs / batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch has its own order, which depends only on the seed."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self._parts(self._size(step)) for step in range(self.steps))

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.pairs, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for step in range(self.steps):
            pairs = order[step * self.batch_size : (step + 1) * self.batch_size]
            if len(pairs) < self.processes:  # no process stays idle
                pairs += order[: self.processes - len(pairs)]
            groups = self._groups(pairs, self._parts(len(pairs)) * self.processes)
            yield from groups[self.process :: self.processes]

    def _size(self, step: int) -> int:
        return min(self.batch_size, self.pairs - step * self.batch_size)

    def _parts(self, pairs: int) -> int:
        """Micro-batches per process for a step of this many pairs."""
        usual = self.batch_size // (self.accumulation * self.processes)
        return max(1, min(math.ceil(pairs / (usual * self.processes)), pairs // self.processes))

    def _groups(self, pairs: list[int], number: int) -> list[list[int]]:
        if self.tokens is not None:
            return balance(pairs, self.tokens, number)
        size, more = divmod(len(pairs), number)
        ends = [group * size + min(group, more) for group in range(number + 1)]
        return [pairs[start:end] for start, end in itertools.pairwise(ends)]


def balance(members: Sequence[int], work: Sequence[int], number: int) -> list[list[int]]:
    """Split members into groups of about equal work, none empty: greedily, the largest member to the smallest group.

    Groups are sorted by work in descending order, so that processes taking every n-th get similar ones at every turn.
    """
    groups: list[list[int]] = [[] for _ in range(number)]
    least = [(0, 0, group) for group in range(number)]
    for member in sorted(members, key=lambda member: -work[member]):
        total, size, group = heapq.heappop(least)
        groups[group].append(member)
        heapq.heappush(least, (total + work[member], size + 1, group))
    return sorted(groups, key=lambda group: -sum(work[member] for member in group))
