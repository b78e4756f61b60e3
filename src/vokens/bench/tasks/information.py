"""Statistics of symbols: an n-gram model with Kneser-Ney smoothing, and bounds of mutual information."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


class KneserNey:
    """p(code | the order - 1 codes before it) over codes 0..size-1; sequences begin with a start symbol, `size`."""

    def __init__(self, sequences: Iterable[Sequence[int]], size: int, order: int = 3) -> None:
        self._size, self._order = size, order
        highest: Counter[tuple[int, ...]] = Counter()
        for sequence in sequences:
            padded = self._padded(sequence)
            highest.update(padded[i - order : i] for i in range(order, len(padded) + 1))
        counts = [highest]
        for _ in range(order - 1):
            # continuation counts: each distinct gram is one left neighbour
            counts.append(Counter(gram[1:] for gram in counts[-1]))
        self._orders = [_Order(count) for count in reversed(counts)]  # unigrams first

    def probability(self, code: int, context: tuple[int, ...]) -> float:
        """p(code | context), context of order - 1 codes; sequences are padded with the start symbol."""
        p = 1 / self._size
        for length, order in enumerate(self._orders):
            p = order.blend(context[len(context) - length :], code, p)
        return p

    def bits(self, sequence: Sequence[int]) -> np.ndarray:
        """(T,): -log2 p of each code of a sequence."""
        padded, back = self._padded(sequence), self._order - 1
        likelihoods = [self.probability(padded[i], padded[i - back : i]) for i in range(back, len(padded))]
        return -np.log2(np.array(likelihoods))

    def _padded(self, sequence: Sequence[int]) -> tuple[int, ...]:
        return (self._size,) * (self._order - 1) + tuple(int(code) for code in sequence)


class _Order:
    """Counts of n-grams of one length."""

    def __init__(self, counts: Counter[tuple[int, ...]]) -> None:
        self._counts = counts
        self._total: defaultdict[tuple[int, ...], int] = defaultdict(int)
        self._types: defaultdict[tuple[int, ...], int] = defaultdict(int)
        for gram, count in counts.items():
            self._total[gram[:-1]] += count
            self._types[gram[:-1]] += 1
        ones, twos = (sum(count == k for count in counts.values()) for k in (1, 2))
        # 0.5 where every gram occurs twice or more
        self._discount = ones / (ones + 2 * twos) if ones else 0.5

    def blend(self, context: tuple[int, ...], code: int, lower: float) -> float:
        """p(code | context), interpolated with `lower`, that of the next shorter context."""
        total = self._total.get(context, 0)
        if not total:
            return lower
        seen = max(self._counts.get((*context, code), 0) - self._discount, 0.0)
        return (seen + self._discount * self._types[context] * lower) / total


def vclub(matched: Tensor, shuffled: Tensor) -> Tensor:
    """Terms (N,) in nats, log q(y_i | x_i) - mean_j log q(y_j | x_i), whose mean is the estimate.

    matched (N,): log-likelihoods of pairs; shuffled (N, M): of each x with M texts drawn from all N, including its own.
    If q is the true conditional, the mean is at least I(X; Y); for other q it need not be. Texts of likelihood 0 (-inf)
    are left out, which lowers it; NaN where all of a row are.
    """
    possible = shuffled.isfinite()
    total = shuffled.double().masked_fill(~possible, 0).sum(1)
    return matched.double() - total / possible.sum(1)


def barber_agakov(conditional: Tensor, prior: Tensor) -> Tensor:
    """Terms (N,) in nats, log q(y_i | x_i) - log p(y_i), whose mean is the lower bound.

    With the true p(y) the mean is at most I(X; Y), and equal if q is the true conditional. A model instead of p adds
    KL(p || model), the same for all tokenizers, so that differences between them are unaffected.
    """
    return conditional.double() - prior.double()


def draw_others(count: int, others: int, generator: torch.Generator) -> Tensor:
    """(N, M) indices: for each of `count` items M = min(others, count) items, drawn without replacement."""
    some = min(count, others)
    return torch.stack([torch.randperm(count, generator=generator)[:some] for _ in range(count)])
