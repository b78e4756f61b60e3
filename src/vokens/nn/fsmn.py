"""Feed-forward sequential memory (FSMN, arXiv 1512.08301; in attention: SAN-M, arXiv 2006.01713 §2.2).

A depthwise convolution over time beside a skip connection. The trick: the (B, T, C) layout of attention is a
channels-last image of height one, for which the CPU's 2-D kernel is 8 times faster than the 1-D one
(100 against 817 ms for T=750, C=1280, 31 taps).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FSMN(nn.Module):
    """x (B, T, C) + depthwise convolution of x, zeros beyond both ends and beyond each row's length."""

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, 1, taps) / math.sqrt(taps))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask (B, T, 1) is 1 inside and 0 beyond each row's end."""
        if mask is not None:
            x = x * mask
        image = x.transpose(1, 2).unsqueeze(2)  # (B, C, 1, T), channels last in memory
        taps = self.weight.shape[-1]
        around = F.conv2d(
            image, self.weight.unsqueeze(2), padding=(0, (taps - 1) // 2), groups=self.weight.shape[0]
        )
        y = around.squeeze(2).transpose(1, 2) + x
        return y if mask is None else y * mask
