"""Batches of utterances of similar sizes. The batch of a number is a pure function of (seed, number),
every epoch cuts each bucket anew, and how many batches there are never changes.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

MOST = 24


class Buckets:
    """Utterances in buckets of similar sizes, and batches of each.

    Args:
        order: numbers of the utterances, by size. smallest: utterances of a bucket, at least.
        room: number of utterances of this one's size in a batch, per process; at least one.
    """

    def __init__(
        self, order: Sequence[int] | np.ndarray, room: Callable[[int], int], *, smallest: int, seed: int
    ) -> None:
        self.seed = seed
        self.buckets = np.array_split(np.asarray(order), max(1, min(MOST, len(order) // smallest)))
        self.sizes = [max(1, room(int(bucket[-1]))) for bucket in self.buckets]

    def rows(self, number: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Utterances of a batch: this process's share of those of all, who have equally many."""
        epoch, place = divmod(number, self.batches_per_epoch(world))
        return np.split(self._epoch(epoch, world)[place], world)[rank]

    def batches_per_epoch(self, world: int = 1) -> int:
        return sum(max(1, len(b) // (n * world)) for b, n in zip(self.buckets, self.sizes, strict=True))

    def fixed(self) -> list[list[int]]:
        """All utterances once, in batches, in order of size."""
        return [
            bucket[start : start + size].tolist()
            for bucket, size in zip(self.buckets, self.sizes, strict=True)
            for start in range(0, len(bucket), size)
        ]

    @lru_cache(maxsize=2)  # noqa: B019 (two lists of numbers, as long-lived as the run)
    def _epoch(self, epoch: int, world: int) -> list[np.ndarray]:
        draw = np.random.default_rng((self.seed, epoch))
        batches = []
        for bucket, per_process in zip(self.buckets, self.sizes, strict=True):
            size = per_process * world
            shuffled = draw.permutation(bucket)
            count = max(1, len(bucket) // size)
            # A bucket smaller than one batch gives a smaller one, in which all processes have as many rows.
            even = (
                shuffled[: count * size]
                if len(bucket) >= size
                else np.resize(shuffled, -(-len(bucket) // world) * world)
            )
            batches += np.split(even, count)
        return [batches[place] for place in draw.permutation(len(batches))]
