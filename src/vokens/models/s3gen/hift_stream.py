"""Padding of convolutions: a whole signal, a ragged batch, or a stream with look-ahead.

Layers of the vocoder are centred, so they look ahead, or causal. `Ends` is a whole signal, `Ragged` rows of several
lengths, `Stream` a piece of a signal: each layer then keeps the columns it still needs, gives what is settled, and
branches that look ahead differently wait for each other in `join`. So nothing is computed twice and the result is the
same.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vokens.nn.conv import conv_side_by_side, reflect

Padding = tuple[int, int]  # columns of zeros on the left and on the right


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


class Ends:
    """A whole signal, every row as long as the tensor, in layout (B, C, N)."""

    start = 0  # samples of the source before this piece
    last = True  # whether the piece holds the end

    def conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Padding, dilation: int
    ) -> Tensor:
        """Convolution with zeros beyond the ends."""
        left, right = padding
        if left != right:
            x, left = F.pad(x, padding), 0
        return conv1d(x, weight, bias, stride, left, dilation)

    def transposed(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        """Transposed convolution."""
        return F.conv_transpose1d(x, weight, bias, stride, padding)

    def mirror(self, x: Tensor, left: int, right: int) -> Tensor:
        """The signal continued by reflection."""
        return F.pad(x, (left, right), mode="reflect")

    def clear(self, x: Tensor) -> Tensor:
        """Zero what is not of the signal."""
        return x

    def join(self, *signals: Tensor) -> Sequence[Tensor]:
        """The columns that all signals have."""
        return signals

    def before(self, steps: Tensor) -> Tensor:
        """The sum of all steps (B, C, N) before each one, modulo 1."""
        return (steps.cumsum(-1) - steps).remainder(1)


WHOLE = Ends()


class Ragged(Ends):
    """Rows that end at their own lengths, each as if alone; what follows a row's end is meaningless.

    masks: (B, 1, N) of True inside each row, by N: one width belongs to one resolution.
    """

    def __init__(self, lengths: Mapping[int, Tensor]) -> None:
        self.lengths = lengths
        self.masks = {
            width: (torch.arange(width, device=rows.device) < rows[:, None])[:, None]
            for width, rows in lengths.items()
        }

    def conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Padding, dilation: int
    ) -> Tensor:
        return super().conv(self.clear(x) if any(padding) else x, weight, bias, stride, padding, dilation)

    def transposed(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        return super().transposed(self.clear(x), weight, bias, stride, padding)

    def mirror(self, x: Tensor, left: int, right: int) -> Tensor:
        return reflect(x, left, right, 1, self.lengths[x.shape[-1]])

    def clear(self, x: Tensor) -> Tensor:
        return x * self.masks[x.shape[-1]]


class Stream(Ends):
    """The next piece of a signal. Layers take what they kept in the order they run; `kept` is for the next piece."""

    def __init__(self, kept: Sequence[Tensor], start: int, last: bool) -> None:
        self.start, self.last = start, last
        self._past: Iterator[Tensor] | None = iter(kept) if kept else None
        self.kept: list[Tensor] = []

    def conv(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: Padding, dilation: int
    ) -> Tensor:
        span = (weight.shape[-1] - 1) * dilation + 1
        x, ready = self._extend(x, *padding, span, stride)
        if not ready:
            return x.new_zeros(len(x), weight.shape[0], 0)
        return conv1d(x, weight, bias, stride, 0, dilation)

    def transposed(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        # Columns j * stride ... of the result see columns j - left ... j + right of x.
        kernel = weight.shape[-1]
        left, right = (kernel - 1 - padding) // stride, (stride - 1 + padding) // stride
        beyond = right + (kernel - 2 * padding) // stride - 1
        x, ready = self._extend(x, left, beyond, left + right + 1, 1)
        if not ready:
            return x.new_zeros(len(x), weight.shape[1], 0)
        return F.conv_transpose1d(x, weight, bias, stride, padding + left * stride)

    def mirror(self, x: Tensor, left: int, right: int) -> Tensor:
        past = self._take(x)
        x = torch.cat([past, x], -1)
        self._keep(x[..., -right - 1 :])
        if not past.shape[-1] and x.shape[-1]:
            x = F.pad(x, (left, 0), mode="reflect")
        if self.last:
            x = F.pad(x, (0, right), mode="reflect")
        return x[..., past.shape[-1] :]

    def join(self, *signals: Tensor) -> Sequence[Tensor]:
        waiting = [_follow(self._take(x), x) for x in signals]
        ready = min(x.shape[-1] for x in waiting)
        for x in waiting:
            self._keep(x[..., ready:])
        return [x[..., :ready] for x in waiting]

    def before(self, steps: Tensor) -> Tensor:
        past = self._take(steps, 1)  # (B, C, 1): the sum so far, modulo 1
        total = torch.cat([past, steps], -1).cumsum(-1)
        self._keep(total[..., -1:].remainder(1))
        return total[..., :-1].remainder(1)

    def _extend(self, x: Tensor, left: int, right: int, span: int, stride: int) -> tuple[Tensor, int]:
        """The columns that the next results need, each result `span` of them, and how many results they give."""
        x = _follow(self._take(x, left), x)
        if self.last:
            x = F.pad(x, (0, right))
        ready = max(0, (x.shape[-1] - span) // stride + 1)
        self._keep(x[..., ready * stride :])
        return x[..., : (ready - 1) * stride + span if ready else 0], ready

    def _take(self, x: Tensor, zeros: int = 0) -> Tensor:
        """State of the calling layer from the last piece; zeros (B, C, zeros) before the first."""
        return x.new_zeros(*x.shape[:-1], zeros) if self._past is None else next(self._past)

    def _keep(self, x: Tensor) -> None:
        self.kept.append(x.clone())  # a view would hold the whole piece


def _follow(past: Tensor, x: Tensor) -> Tensor:
    """x (B, C, N) after what was before it, in the memory layout of x."""
    if x.stride(1) == 1:
        return torch.cat([past.transpose(1, 2), x.transpose(1, 2)], 1).transpose(1, 2)
    return torch.cat([past, x], -1)
