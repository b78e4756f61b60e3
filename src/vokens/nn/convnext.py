"""ConvNeXt blocks over time (arXiv 2201.03545; for audio: Vocos, arXiv 2306.00814 §3.2). Layout (B, T, D).

The depthwise convolution is a sum of shifted products: with D in the last axis it streams through the cache,
and a training step of a 256-wide stack takes half the time of Conv1d(groups=D) (149 against 302 ms for
6 blocks on 16 x 50 frames, 2 Zen 3 cores).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vokens.nn.product import Linear


class DepthwiseConv(nn.Module):
    """Depthwise convolution over time with zeros beyond both ends: (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kernel_size, width) / math.sqrt(kernel_size))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        taps, frames = len(self.weight), x.shape[1]
        padded = F.pad(x, (0, 0, taps // 2, taps // 2))
        y = self.bias.expand_as(x)
        for tap in range(taps):
            y = torch.addcmul(y, padded[:, tap : tap + frames], self.weight[tap])
        return y


class ConvNeXtBlock(nn.Module):
    """x + scale * MLP(norm(depthwise(x)))."""

    def __init__(self, width: int, hidden: int, kernel_size: int, scale: float) -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(width, kernel_size)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = Linear(width, hidden)
        self.project = Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.expand(self.norm(self.depthwise(x))))
        return torch.addcmul(x, self.project(y), self.scale)


class ConvNeXt(nn.Module):
    """A stack of blocks. Rows shorter than T are held at zero beyond their end, as if padded by zeros alone.

    reach: frames that one output frame sees on either side.
    """

    def __init__(self, width: int, hidden: int, kernel_size: int, layers: int) -> None:
        super().__init__()
        # Layer scale 1/layers: the sum of the branches starts at the size of one (Vocos §3.2).
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, hidden, kernel_size, 1 / layers) for _ in range(layers)
        )
        self.reach = layers * (kernel_size // 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D); mask (B, T, 1) is 1 inside and 0 beyond each row's end."""
        for block in self.blocks:
            x = block(x if mask is None else x * mask)
        return x if mask is None else x * mask
