"""Parts that stay in float32 in a network whose products are in half precision."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


def only_moves(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of `Module._apply` that moves tensors as `fn` does and keeps their precision."""
    return lambda t: fn(t).to(t.dtype) if t.is_meta else t.to(fn(t.new_empty(0)).device)


class Float32(nn.Module):
    """A part that stays in float32 whatever precision the model is put in: it only moves between devices."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(only_moves(fn), recurse)


class Float32Conv1d(Float32, nn.Conv1d):
    """A last convolution: latents and waves of bfloat16 would have noise at -50 dB of their own."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input.float(), weight, bias)


class Float32Buffers(nn.Module):
    """A network whose own buffers, not those of its parts, stay in float32: statistics, bounds."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: t for name, t in self._buffers.items() if t is not None and not t.is_meta}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


class Hann(Float32):
    """A Hann window (n_fft,) times a constant: rounded to bfloat16 it would leave noise at -50 dB."""

    values: Tensor

    def __init__(self, n_fft: int, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("values", scale * torch.hann_window(n_fft), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        return frames * self.values
