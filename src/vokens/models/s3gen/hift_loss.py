"""HiFT-specific training losses: CosyVoice's mel distance, and the truncated pointwise
relativistic loss (TPRLS, HiFTNet's section 2.4, arXiv 2309.09493), which asks of a pair only which is more real.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vokens.audio.mel import MEL_24K_80

MEL_LOSS = replace(MEL_24K_80, f_max=None)  # the input's mel ends at 8 kHz, what is learned from does not
TRUNCATION = 0.04


def relativistic(better: Sequence[Tensor], worse: Sequence[Tensor], truncation: float = TRUNCATION) -> Tensor:
    """Sum over stacks of what makes logits `better` rise above `worse`, both one tensor (B, ...) per stack: ().

    In a stack the difference is held against its median; only where it is below that there is a loss, the squared
    distance's mean, and no gradient where it exceeds `truncation`. Discriminators call with (target, output), the
    vocoder with (output, target).
    """
    return torch.stack([_stack(a - b, truncation) for a, b in zip(better, worse, strict=True)]).sum()


def _stack(difference: Tensor, truncation: float) -> Tensor:
    short = (difference - difference.median()).clamp(max=0)
    mean = short.square().sum() / (short < 0).sum().clamp(min=1)
    return truncation - F.relu(truncation - mean)
