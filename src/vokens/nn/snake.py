"""Activations of the SEANet codecs: ELU, and Snake for periodic signals (arXiv 2006.08195)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ELU(nn.Module):
    """exp(x) - 1 below zero, x above. Works in place where it may: memory, not arithmetic, limits it."""

    def forward(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        return F.elu_(x) if in_place and not torch.is_grad_enabled() else F.elu(x)


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha on (B, C, T), with one learned alpha per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor, *, in_place: bool = False) -> Tensor:
        if torch.is_grad_enabled():
            return x + (self.alpha + 1e-9).reciprocal() * (self.alpha * x).sin().square()
        wave = (self.alpha * x).sin_().square_().mul_((self.alpha + 1e-9).reciprocal())
        return x.add_(wave) if in_place else wave.add_(x)
