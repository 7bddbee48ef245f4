"""Which pairs go through the model together: an optimizer step's pairs in micro-batches of like numbers of tokens.

The order of the pairs, and so what every step sees, is that of transformers' own sampler with the same seed. Only
inside a step are pairs grouped anew: by tokens, so that no micro-batch and no process has much more to do than another.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class MicroBatches(Sampler[list[int]]):
    """The micro-batches of one process: lists of pairs, `accumulation` of them an optimizer step.

    Args:
        tokens: [pairs] how much work a pair is. None cuts steps as they come, as transformers does.
        batch_size: pairs an optimizer step, over all processes.
        accumulation: micro-batches of a process an optimizer step. The last step of an epoch, if it has fewer pairs,
            has as many as keep their usual size.
        drop_last: leave that step out.
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
        """Each epoch has an order of its own, which depends on nothing but the seed."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self._parts(self._size(step)) for step in range(self.steps))

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.pairs, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for step in range(self.steps):
            pairs = order[step * self.batch_size : (step + 1) * self.batch_size]
            pairs += order[: self.processes - len(pairs)] if len(pairs) < self.processes else []  # none stays idle
            groups = self._groups(pairs, self._parts(len(pairs)) * self.processes)
            yield from groups[self.process :: self.processes]

    def _size(self, step: int) -> int:
        return min(self.batch_size, self.pairs - step * self.batch_size)

    def _parts(self, pairs: int) -> int:
        """Micro-batches of each process for so many pairs."""
        usual = self.batch_size // (self.accumulation * self.processes)
        return max(1, min(math.ceil(pairs / (usual * self.processes)), pairs // self.processes))

    def _groups(self, pairs: list[int], number: int) -> list[list[int]]:
        if self.tokens is not None:
            return balanced(pairs, self.tokens, number)
        size, more = divmod(len(pairs), number)
        ends = [each * size + min(each, more) for each in range(number + 1)]
        return [pairs[start:end] for start, end in itertools.pairwise(ends)]


def balanced(members: Sequence[int], work: Sequence[int], number: int) -> list[list[int]]:
    """Members in so many groups of like work, none empty: the largest first, each to the group that has least.

    Groups come by their work, the largest first: processes that take every n-th then have like ones in each turn.
    """
    groups: list[list[int]] = [[] for _ in range(number)]
    least = [(0, 0, each) for each in range(number)]
    for member in sorted(members, key=lambda each: -work[each]):
        total, size, group = heapq.heappop(least)
        groups[group].append(member)
        heapq.heappush(least, (total + work[member], size + 1, group))
    return sorted(groups, key=lambda group: -sum(work[each] for each in group))
