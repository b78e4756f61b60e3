"""SoCodec's causal convolution stacks: HuBERT's features down to tokens, and tokens up to mel (arXiv 2409.00933 §3).

Every convolution is causal, so a stack runs in chunks of any length: the streaming state holds the left
context of each convolution, zeros at the start. Layout (B, C, T).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vokens.nn.conv import PlainConv1d
from vokens.nn.streaming import StreamState, with_left_context


class CausalConv(PlainConv1d):
    """(B, in, T) -> (B, out, ceil(T / stride)); a chunk of a stream must hold a multiple of the stride."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel_size, stride=stride, groups=groups)

    def forward(self, input: Tensor, state: StreamState | None = None) -> Tensor:
        return super().forward(with_left_context(self, input, self.kernel_size[0] - 1, state, dim=2))


class MelFront(nn.Module):
    """A log-mel (B, n_mels, 2F), in nepers, to features (B, width, F) at half its rate."""

    def __init__(self, n_mels: int, width: int) -> None:
        super().__init__()
        self.first = CausalConv(n_mels, width, 4, stride=2)
        self.last = CausalConv(width, width, 3)

    def forward(self, mel: Tensor, state: StreamState | None = None) -> Tensor:
        return self.last(F.silu(self.first((mel + 5) / 2.5, state)), state)  # speech: mean -5, deviation 2.5


class CausalUpsample(nn.Module):
    """(B, C, T) -> (B, C, stride * T), kernel 2 * stride: each output sees its own column and the one before."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(width, width, 2 * stride, stride=stride)
        self.stride = stride

    def forward(self, x: Tensor, state: StreamState | None) -> Tensor:
        y = self.up(with_left_context(self, x, 1, state, dim=2))
        return y.narrow(2, self.stride, self.stride * x.shape[2])


class ResidualUnit(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.conv1 = CausalConv(width, width, 3, groups=groups)
        self.conv2 = CausalConv(width, width, 3, groups=groups)

    def forward(self, x: Tensor, state: StreamState | None) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(x, state)), state)


class Down(nn.Module):
    """Two residual units, then a convolution that downsamples by `stride`."""

    def __init__(self, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(ResidualUnit(width, groups) for _ in range(2))
        self.conv = CausalConv(width, width, 2 * stride, stride=stride)

    def forward(self, x: Tensor, state: StreamState | None) -> Tensor:
        for unit in self.units:
            x = F.silu(unit(x, state))
        return self.conv(x, state)


class Up(nn.Module):
    """A transposed convolution that upsamples by `stride`, then two residual units."""

    def __init__(self, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = CausalUpsample(width, stride)
        self.units = nn.ModuleList(ResidualUnit(width, groups) for _ in range(2))

    def forward(self, x: Tensor, state: StreamState | None) -> Tensor:
        x = self.conv(x, state)
        for unit in self.units:
            x = unit(F.silu(x), state)
        return x


class Stack(nn.Module):
    """A convolution, blocks, and a last convolution, with swish between them.

    `hidden` is everything but the last convolution.
    """

    def __init__(self, inputs: int, width: int, outputs: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.first = CausalConv(inputs, width, 3)
        self.blocks = nn.ModuleList(blocks)
        self.last = CausalConv(width, outputs, 3)

    def hidden(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        x = F.silu(self.first(x, state))
        for block in self.blocks:
            x = F.silu(block(x, state))
        return x

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        return self.last(self.hidden(x, state), state)
