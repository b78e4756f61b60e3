"""Two sides of the mutual information of tokens x and text y, from log-likelihoods that models give to them.

The lower bound is Barber and Agakov's (2003); the estimate from above is vCLUB (Cheng et al. 2020, arXiv 2006.12013),
with which SLMTokBench ranks tokenizers (arXiv 2308.16692). Both are means of terms of single pairs: of the same scores.
"""

import torch
from torch import Tensor


def vclub(matched: Tensor, shuffled: Tensor) -> Tensor:
    """Terms (N,) in nats, log q(y_i | x_i) - mean_j log q(y_j | x_i), whose mean is the estimate.

    matched (N,) scores pairs; shuffled (N, M) scores each x with M texts drawn from all N, its own not left out.
    Where q is the true conditional the mean is at least I(X; Y); with another q it need not be. Texts that q holds
    impossible (-inf) would make it infinite and are left out, which lowers it; NaN where all of a row are.
    """
    possible = shuffled.isfinite()
    total = shuffled.double().masked_fill(~possible, 0).sum(1)
    return matched.double() - total / possible.sum(1)


def barber_agakov(conditional: Tensor, prior: Tensor) -> Tensor:
    """Terms (N,) in nats, log q(y_i | x_i) - log p(y_i), whose mean is the lower bound.

    With the true p(y) the mean is at most I(X; Y), and equal where q is the true conditional. A model in the place of
    p adds its own excess, KL(p || model), the same for all x: differences between tokenizers are free of it.
    """
    return conditional.double() - prior.double()


def draw_others(count: int, others: int, generator: torch.Generator) -> Tensor:
    """(N, M): for each of `count` items M = min(others, count) of all items, drawn without replacement."""
    some = min(count, others)
    return torch.stack([torch.randperm(count, generator=generator)[:some] for _ in range(count)])
