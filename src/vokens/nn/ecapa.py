"""ECAPA-TDNN (arXiv 2005.07143) without batch norm, as SoCodec has it: one vector for the voice of an utterance.

Squeeze-excitation and the attentive pooling need sums over all of time, the rest is convolutions with mirrored
ends: recordings beyond `WINDOW` frames are passed once for every such sum, so that memory stays bounded.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vokens.nn.float32 import Float32
from vokens.nn.windows import windows

WINDOW = 12000  # mel frames, two minutes at 10 ms: 37 MB in the widest layer
SHORTEST = 5  # frames that the widest mirrored end needs


class MirrorConv(nn.Conv1d):
    """Centred convolution with mirrored ends: (B, in, T) -> (B, out, T)."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 1, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, kernel_size, dilation=dilation)
        self.reach = dilation * (kernel_size - 1) // 2

    def forward(self, input: Tensor) -> Tensor:
        if self.reach:
            input = F.pad(input, (self.reach, self.reach), mode="reflect")
        return super().forward(input)


class SERes2Net(nn.Module):
    """Residual block: half of the channels are convolved, and all are gated by a function of their mean."""

    def __init__(self, width: int, squeeze: int, dilation: int) -> None:
        super().__init__()
        self.tdnn1 = MirrorConv(width, width)
        self.res2net = MirrorConv(width // 2, width // 2, 3, dilation)
        self.tdnn2 = MirrorConv(width, width)
        self.squeeze = nn.Conv1d(width, squeeze, 1)
        self.excite = nn.Conv1d(squeeze, width, 1)
        self.reach = self.res2net.reach

    def branch(self, x: Tensor) -> Tensor:
        """(B, C, T), before the gate."""
        still, moved = F.relu(self.tdnn1(x)).chunk(2, 1)
        return F.relu(self.tdnn2(torch.cat([still, F.relu(self.res2net(moved))], 1)))

    def gate(self, mean: Tensor) -> Tensor:
        """(B, C, 1) from the branch's mean (B, C, 1) over time."""
        return torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))


class AttentiveStatistics(nn.Module):
    """Mean and deviation over time with a weight per channel and frame (section 3.1 of the paper)."""

    def __init__(self, width: int, attention: int) -> None:
        super().__init__()
        self.tdnn = nn.Conv1d(3 * width, attention, 1)
        self.conv = nn.Conv1d(attention, width, 1)

    def scores(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, C, T) logits of the weights; context (B, 2C, 1) is the mean and deviation over all of time."""
        here, around = self.tdnn.weight.split([x.shape[1], context.shape[1]], 1)
        hidden = F.conv1d(x, here, self.tdnn.bias) + F.conv1d(context, around)
        return self.conv(torch.tanh(F.relu(hidden)))


class ECAPA(Float32):
    """Mel (B, n_mels, T) to vectors (B, width), in float32: one vector colours all that is decoded with it.

    channels: of the first layer, the three blocks and the layer that joins them, as published.
    """

    def __init__(
        self, n_mels: int, channels: Sequence[int], attention: int, squeeze: int, width: int
    ) -> None:
        super().__init__()
        self.first = MirrorConv(n_mels, channels[0], 5)
        self.blocks = nn.ModuleList(SERes2Net(channels[i], squeeze, i + 1) for i in (1, 2, 3))
        self.join = MirrorConv(sum(channels[1:4]), channels[4])
        self.pool = AttentiveStatistics(channels[4], attention)
        self.out = nn.Conv1d(2 * channels[4], width, 1)
        self.reach = self.first.reach + sum(block.reach for block in self._blocks())

    def forward(self, mel: Tensor) -> Tensor:
        """Vectors (B, width), not normalised, of mels (B, n_mels, T) of one length, T >= 5."""
        if mel.shape[2] > WINDOW:
            return self._long(mel)
        gates: list[Tensor] = []
        x, parts = F.relu(self.first(mel)), []
        for block in self._blocks():
            y = block.branch(x)
            gates.append(block.gate(y.mean(2, keepdim=True)))
            x = x + gates[-1] * y
            parts.append(x)
        x = F.relu(self.join(torch.cat(parts, 1)))
        mean = x.mean(2, keepdim=True)
        context = torch.cat([mean, _deviation((x - mean).square().mean(2, keepdim=True))], 1)
        weights = self.pool.scores(x, context).softmax(2)
        mean = (weights * x).sum(2, keepdim=True)
        deviation = _deviation((weights * (x - mean).square()).sum(2, keepdim=True))
        return self.out(torch.cat([mean, deviation], 1)).squeeze(2)

    def _long(self, mel: Tensor) -> Tensor:
        """The same in windows, with sums in float64 (a deviation is then the difference of two of them)."""
        total = mel.shape[2]
        gates: list[Tensor] = []
        for block in self._blocks():
            sums = [
                y.double().sum(2, keepdim=True) for y in self._pieces(mel, partial(self._branch, gates=gates))
            ]
            gates.append(block.gate((torch.stack(sums).sum(0) / total).to(mel.dtype)))
        joined = partial(self._joined, gates=gates)
        sums = [_moments(x.double()).sum(3) for x in self._pieces(mel, joined)]
        context = _statistics(torch.stack(sums).sum(0) / total).to(mel.dtype)
        strengths, averages = [], []  # of each window
        for x in self._pieces(mel, joined):
            scores = self.pool.scores(x, context).double()
            strengths.append(scores.logsumexp(2))
            averages.append((scores.softmax(2) * _moments(x.double())).sum(3))
        share = torch.stack(strengths).softmax(0).unsqueeze(1)  # (windows, 1, B, C)
        return self.out(_statistics((share * torch.stack(averages)).sum(0)).to(mel.dtype)).squeeze(2)

    def _blocks(self) -> list[SERes2Net]:
        return cast("list[SERes2Net]", list(self.blocks))

    def _pieces(self, mel: Tensor, compute: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """compute(mel) in consecutive pieces of WINDOW frames, each from a window that reaches over its ends."""
        return (w.cut(compute(w.read(mel))) for w in windows(mel.shape[2], WINDOW, self.reach))

    def _trunk(self, mel: Tensor, gates: Sequence[Tensor]) -> list[Tensor]:
        """The output of the first layer, and of each block whose gate is known."""
        outputs = [F.relu(self.first(mel))]
        for block, gate in zip(self._blocks(), gates, strict=False):
            outputs.append(outputs[-1] + gate * block.branch(outputs[-1]))
        return outputs

    def _branch(self, mel: Tensor, gates: Sequence[Tensor]) -> Tensor:
        return self._blocks()[len(gates)].branch(self._trunk(mel, gates)[-1])

    def _joined(self, mel: Tensor, gates: Sequence[Tensor]) -> Tensor:
        return F.relu(self.join(torch.cat(self._trunk(mel, gates)[1:], 1)))


def _deviation(variance: Tensor) -> Tensor:
    return variance.clamp(min=1e-12).sqrt()


def _moments(x: Tensor) -> Tensor:
    """(2, B, C, T): x and its square."""
    return torch.stack([x, x.square()])


def _statistics(moments: Tensor) -> Tensor:
    """(B, 2C, 1): mean and deviation from the means (2, B, C) of x and of its square."""
    mean, square = moments
    return torch.cat([mean, _deviation(square - mean.square())], 1).unsqueeze(2)
