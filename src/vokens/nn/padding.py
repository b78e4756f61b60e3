"""Padding of convolutions: a whole signal, a ragged batch, or a stream with look-ahead.

Layers of the vocoder are centred, so they look ahead, or causal. In a stream each layer keeps the columns it still
needs, by its key in the streaming state, gives what is settled, and branches that look ahead differently wait for each
other in `join`. So nothing is computed twice and the result is the same.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vokens.nn.conv import conv_side_by_side, reflect
from vokens.nn.masks import padding_mask
from vokens.nn.streaming import StreamState

Sides = tuple[int, int]  # columns on the left and on the right
Columns = tuple[Tensor, Sides]  # those at hand, and the zeros that are yet to add


def conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int
) -> Tensor:
    """F.conv1d, on the CPU with channels side by side in memory: at 64 to 256 channels 1.3 times as fast.

    Layouts are strides only, shapes stay (B, C, N); see `side_by_side` for weights.
    """
    if x.device.type != "cpu" or x.dtype == torch.float64 or weight.shape[1] == 1:
        return F.conv1d(x, weight, bias, stride, padding, dilation)
    return conv_side_by_side(x, weight, bias, stride, padding, dilation)


def side_by_side(weight: Tensor) -> Tensor:
    """The same weight (out, in, kernel), laid out as `conv1d` wants it on the CPU."""
    return weight.transpose(1, 2).contiguous().transpose(1, 2)


class Padding:
    """Of a whole signal, every row as long as the tensor, in layout (B, C, N). key: names the layer that calls."""

    start = 0  # samples of the source before this chunk
    last = True  # whether the chunk holds the end

    def conv(
        self,
        key: Hashable,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int = 1,
        sides: Sides = (0, 0),
        dilation: int = 1,
    ) -> Tensor:
        """Convolution with zeros on both sides."""
        span = (weight.shape[-1] - 1) * dilation + 1
        x, sides = self._columns(key, x, sides, span, stride)
        if x.shape[-1] + sum(sides) < span:
            return x.new_zeros(len(x), weight.shape[0], 0)
        left, right = sides
        if left != right:
            x, left = F.pad(x, sides), 0
        return conv1d(x, weight, bias, stride, left, dilation)

    def transposed(
        self, key: Hashable, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        """Transposed convolution, `padding` columns less on both sides."""
        # Columns j * stride ... of the result see columns j - left ... j + right of x.
        kernel = weight.shape[-1]
        left, right = (kernel - 1 - padding) // stride, (stride - 1 + padding) // stride
        span, beyond = left + right + 1, right + (kernel - 2 * padding) // stride - 1
        x, sides = self._columns(key, x, (left, beyond), span, 1)
        if x.shape[-1] + sum(sides) < span:
            return x.new_zeros(len(x), weight.shape[1], 0)
        return F.conv_transpose1d(x, weight, bias, stride, padding + (left - sides[0]) * stride)

    def mirror(self, key: Hashable, x: Tensor, left: int, right: int) -> Tensor:
        """The signal continued by reflection."""
        return F.pad(x, (left, right), mode="reflect")

    def clear(self, x: Tensor) -> Tensor:
        """Zero what is not of the signal."""
        return x

    def join(self, key: Hashable, *signals: Tensor) -> Sequence[Tensor]:
        """The columns that all signals have."""
        return signals

    def before(self, key: Hashable, steps: Tensor) -> Tensor:
        """The sum of all steps (B, C, N) before each one, modulo 1."""
        return (steps.cumsum(-1) - steps).remainder(1)

    def _columns(self, key: Hashable, x: Tensor, sides: Sides, span: int, stride: int) -> Columns:
        """The columns that the next results need, each `span` of them, and the zeros that are yet to add."""
        return x, sides


WHOLE = Padding()


class RaggedPadding(Padding):
    """Of rows that end at their own lengths; what follows a row's end is meaningless.

    lengths: (B,) by N, for one width belongs to one resolution.
    """

    def __init__(self, lengths: Mapping[int, Tensor]) -> None:
        self.lengths = lengths
        self.masks = {width: padding_mask(rows, width)[:, None] for width, rows in lengths.items()}

    def mirror(self, key: Hashable, x: Tensor, left: int, right: int) -> Tensor:
        return reflect(x, left, right, 1, self.lengths[x.shape[-1]])

    def clear(self, x: Tensor) -> Tensor:
        return x * self.masks[x.shape[-1]]

    def _columns(self, key: Hashable, x: Tensor, sides: Sides, span: int, stride: int) -> Columns:
        return self.clear(x) if any(sides) else x, sides


class StreamPadding(Padding):
    """Of the next chunk of a signal; `state` is then for the chunk after it."""

    def __init__(self, state: StreamState, start: int, last: bool) -> None:
        self.state, self.start, self.last = StreamState(state), start, last

    def mirror(self, key: Hashable, x: Tensor, left: int, right: int) -> Tensor:
        before = self._take(key, x)
        x = torch.cat([before, x], -1)
        self._keep(key, x[..., -right - 1 :])
        if not before.shape[-1] and x.shape[-1]:
            x = F.pad(x, (left, 0), mode="reflect")
        if self.last:
            x = F.pad(x, (0, right), mode="reflect")
        return x[..., before.shape[-1] :]

    def join(self, key: Hashable, *signals: Tensor) -> Sequence[Tensor]:
        waiting = [_follow(self._take((key, place), x), x) for place, x in enumerate(signals)]
        ready = min(x.shape[-1] for x in waiting)
        for place, x in enumerate(waiting):
            self._keep((key, place), x[..., ready:])
        return [x[..., :ready] for x in waiting]

    def before(self, key: Hashable, steps: Tensor) -> Tensor:
        total = torch.cat([self._take(key, steps, 1), steps], -1).cumsum(-1)  # on the sum so far, modulo 1
        self._keep(key, total[..., -1:].remainder(1))
        return total[..., :-1].remainder(1)

    def _columns(self, key: Hashable, x: Tensor, sides: Sides, span: int, stride: int) -> Columns:
        left, right = sides
        x = _follow(self._take(key, x, left), x)
        if self.last:
            x = F.pad(x, (0, right))
        ready = max(0, (x.shape[-1] - span) // stride + 1)  # results
        self._keep(key, x[..., ready * stride :])
        return x[..., : (ready - 1) * stride + span if ready else 0], (0, 0)

    def _take(self, key: Hashable, x: Tensor, zeros: int = 0) -> Tensor:
        """Kept columns of a layer from the last chunk; zeros (B, C, zeros) before the first."""
        before = self.state.before(key)
        return x.new_zeros(*x.shape[:-1], zeros) if before is None else before

    def _keep(self, key: Hashable, x: Tensor) -> None:
        self.state[key] = x.clone()  # a view would hold the whole chunk


def _follow(before: Tensor, x: Tensor) -> Tensor:
    """x (B, C, N) after what was before it, in the memory layout of x."""
    if x.stride(1) == 1:
        return torch.cat([before.transpose(1, 2), x.transpose(1, 2)], 1).transpose(1, 2)
    return torch.cat([before, x], -1)
