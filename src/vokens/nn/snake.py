"""Activations of the SEANet codecs: ELU, and Snake for periodic signals (arXiv 2006.08195)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Numbers over all channels of one step of Snake in half precision on the CPU: 512 kB of float32.
_PIECE = 1 << 17


def mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)), in float32 inside: F.mish has no vector instructions on CPUs, and takes twice as long."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return F.mish(x)
    power = x.float().clamp(max=20.0).exp()  # tanh(log(1 + p)) = n / (n + 2), n = p (p + 2)
    n = power * (power + 2)
    return (n / (n + 2) * x).to(x.dtype)


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
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            return self._in_float32(x, x if in_place else torch.empty_like(x))
        wave = (self.alpha * x).sin_().square_().mul_((self.alpha + 1e-9).reciprocal())
        return x.add_(wave) if in_place else wave.add_(x)

    def _in_float32(self, x: Tensor, out: Tensor) -> Tensor:
        """The same of bfloat16, in pieces that stay in the cache: an angle of 20 rounded to bfloat16 is off by 0.06."""
        alpha, size = self.alpha.float(), max(64, _PIECE // x.shape[1])
        for piece, place in zip(x.split(size, 2), out.split(size, 2), strict=True):
            wide = piece.float()
            wave = (alpha * wide).sin_().square_().mul_((alpha + 1e-9).reciprocal())
            place.copy_(wave.add_(wide))
        return out
