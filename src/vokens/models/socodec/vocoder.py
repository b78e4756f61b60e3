"""SoCodec's vocoder, a BigVGAN (arXiv 2206.04658) at 16 kHz: mel to wave by transposed convolutions and Snake.

Snake creates overtones above the Nyquist frequency, so it runs at twice the rate between two low-pass filters.
Here both filters are sums of shifted rows of even and odd samples, in pieces that stay in the cache: no zeros are
inserted, nothing is interleaved, and sin² is a cosine. 11 to 13 ns a sample, where depthwise convolutions take 16 to
34 (one core, pieces of 0.6 to 10 s).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vokens.nn.conv import PlainConv1d
from vokens.nn.float32 import Float32Conv1d

TAPS = 12  # of the low-pass filter
KERNELS = (3, 7, 11)  # of the three residual blocks of a stage, which are averaged
DILATIONS = (1, 3)
PIECE = 1 << 17  # samples over all channels of one step of an activation on the CPU: 512 kB


@lru_cache
def low_pass() -> tuple[float, ...]:
    """12 taps of a Kaiser-windowed sinc: cutoff a quarter of the doubled rate, transition 0.6 of it, sum 1."""
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 1.2 + 7.95  # Kaiser's rule, in dB
    window = np.kaiser(TAPS, 0.1102 * (attenuation - 8.7))
    taps = window * np.sinc((np.arange(TAPS) - (TAPS - 1) / 2) / 2)
    return tuple(float(tap) for tap in taps / taps.sum())


class SnakeBeta(nn.Module):
    """x + sin²(x e^alpha) / e^beta at the doubled rate, per channel: (B, C, T) -> (B, C, T)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)  # sums of 12 products in bfloat16 lose 20 dB
        double = (2 * self.alpha.to(wide).exp()).unsqueeze(1)  # sin² z = (1 - cos 2z) / 2
        half = (0.5 / (self.beta.to(wide).exp() + 1e-9)).unsqueeze(1)
        size = x.shape[2]
        in_pieces = x.device.type == "cpu" and not torch.is_grad_enabled()
        step = max(64, PIECE // x.shape[1]) if in_pieces else size
        if step >= size:
            return _snake(x, 0, size, double, half).to(x.dtype)
        out = torch.empty_like(x)
        for start in range(0, size, step):
            end = min(start + step, size)
            out[..., start:end] = _snake(x, start, end, double, half)
        return out


def _snake(x: Tensor, start: int, end: int, double: Tensor, half: Tensor) -> Tensor:
    """Columns start..end of the activation of x (B, C, T), computed in the type of `double`."""
    low, high = max(0, start - 3), min(x.shape[2], end + 3)  # columns of which the doubled signal is needed
    left, right = max(0, low - 3), min(x.shape[2], high + 3)
    x, ends = x[..., left:right].to(double.dtype), (left - (low - 3), high + 3 - right)
    x = F.pad(x, ends, mode="replicate") if any(ends) else x
    taps = low_pass()
    even = _shifted_sum(x, [2 * tap for tap in taps[::-2]], 0, high - low)
    odd = _shifted_sum(x, [2 * tap for tap in taps[-2::-2]], 1, high - low)
    # The constant `half` passes the second filter, whose sum is 1, and is added last.
    if torch.is_grad_enabled():
        even, odd = (phase.addcmul((phase * double).cos(), half, value=-1) for phase in (even, odd))
    else:
        for phase in (even, odd):
            phase.addcmul_((phase * double).cos_(), half, value=-1)
    # Beyond its ends the doubled signal repeats its first sample, which is even, and its last, which is odd.
    before, after = low - (start - 3), end + 3 - high
    if before or after:
        first, last = even[..., :1], odd[..., -1:]
        even, odd = (
            torch.cat([first.expand(-1, -1, before), phase, last.expand(-1, -1, after)], 2)
            for phase in (even, odd)
        )
    y = _shifted_sum(even, taps[1::2], 1, end - start)
    return y.add_(_shifted_sum(odd, taps[::2], 0, end - start)).add_(half)


def _shifted_sum(x: Tensor, taps: Sequence[float], first: int, size: int) -> Tensor:
    """Columns sum_k taps[k] x[first + k + t], t = 0 .. size - 1."""
    if torch.is_grad_enabled() and x.requires_grad:
        return ShiftedSum.apply(x, tuple(taps), first, size)
    y = x[..., first : first + size] * taps[0]
    for k, tap in enumerate(taps[1:], first + 1):
        y.add_(x[..., k : k + size], alpha=tap)
    return y


class ShiftedSum(torch.autograd.Function):
    """`_shifted_sum` with its gradient as one: torch would write a row of zeros for every tap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: tuple[float, ...], first: int, size: int) -> Tensor:
        ctx.taps, ctx.first, ctx.columns = taps, first, x.shape[2]
        return _shifted_sum(x, taps, first, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        before = ctx.first + len(ctx.taps) - 1  # with zeros around it, the gradient meets the taps in reverse
        after = ctx.columns - ctx.first - grads[0].shape[2]
        padded = F.pad(grads[0], (before, after))
        return _shifted_sum(padded, ctx.taps[::-1], 0, ctx.columns), None, None, None


class AMPBlock(nn.Module):
    """Two dilated convolutions, each after an activation and with a residual connection."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            PlainConv1d(channels, channels, kernel_size, dilation=d, padding=d * (kernel_size // 2))
            for d in DILATIONS
        )
        self.activations = nn.ModuleList(SnakeBeta(channels) for _ in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        for conv, activation in zip(self.convs, self.activations, strict=True):
            x = x + conv(activation(x))
        return x


class Vocoder(nn.Module):
    """Mel (B, n_mels, T) to wave (B, 160 * T), within (-1, 1)."""

    reach = 13  # mel frames on either side that a sample sees

    def __init__(self, n_mels: int, width: int, strides: Sequence[int], kernels: Sequence[int]) -> None:
        super().__init__()
        self.first = PlainConv1d(n_mels, width, 7, padding=3)
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for stride, kernel in zip(strides, kernels, strict=True):
            padding = (kernel - stride) // 2
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, stride=stride, padding=padding))
            width //= 2
            self.blocks.extend(AMPBlock(width, size) for size in KERNELS)
        self.activation = SnakeBeta(width)
        self.last = Float32Conv1d(width, 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.first(mel)
        for i, up in enumerate(self.ups):
            x = self.stage(i, up(x))
        return torch.tanh(self.last(self.activation(x))).squeeze(1)

    def stage(self, number: int, x: Tensor) -> Tensor:
        """The mean of a stage's residual blocks."""
        first, *others = self.blocks[number * len(KERNELS) : (number + 1) * len(KERNELS)]
        total = first(x)
        for block in others:
            total = total + block(x)
        return total / len(KERNELS)
