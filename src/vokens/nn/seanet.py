"""SEANet encoder and decoder (SoundStream, arXiv 2107.03312 §3.1; sizes of SpeechTokenizer, arXiv 2308.16692).

Convolutions around one LSTM: `front` before it, `head` after it, so that long audio can pass the convolutions in
chunks and the LSTM in one sweep. Layers are numbered as published, which keeps checkpoints readable.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from vokens.nn.conv import Conv1d, LastConv1d, Upsample
from vokens.nn.lstm import SkipLSTM
from vokens.nn.snake import ELU, Snake

EDGE_KERNEL = 7  # taps of the first and the last convolution


def activation(name: str, channels: int) -> ELU | Snake:
    """ELU or Snake, by its published name."""
    return Snake(channels) if name == "Snake" else ELU()


class ResidualUnit(nn.Module):
    """x (B, C, T) -> shortcut(x) + 1x1(act(conv(act(x)))), with half the channels inside."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, act: str) -> None:
        super().__init__()
        hidden = channels // 2
        self.block = nn.ModuleList(
            [
                activation(act, channels),
                Conv1d(channels, hidden, kernel_size, dilation=dilation),
                activation(act, hidden),
                Conv1d(hidden, channels, 1),
            ]
        )
        self.shortcut = Conv1d(channels, channels, 1)
        self.reach = (kernel_size - 1) * dilation - (kernel_size - 1) * dilation // 2

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        act, conv, act_inside, project = self.block
        y = conv(act(x), lengths)  # not in place: the shortcut needs x
        return self.shortcut(x).add_(project(act_inside(y, in_place=True)))


class SEANet(nn.Module):
    """A stack of layers of which one is the LSTM."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._middle = next(i for i, layer in enumerate(layers) if isinstance(layer, SkipLSTM))

    @property
    def lstm(self) -> SkipLSTM:
        return cast(SkipLSTM, self.layers[self._middle])

    @property
    def front_reach(self) -> int:
        """Context of an output of `front` on either side, in inputs."""
        return _reach(self.layers[: self._middle])

    @property
    def head_reach(self) -> int:
        """Context of an output of `head` on either side, in frames."""
        return _reach(self.layers[self._middle + 1 :])

    def front(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The convolutions before the LSTM: (B, C, N) -> (B, width, T). With lengths (B,), rows end at their own."""
        return _run(self.layers[: self._middle], x, lengths)

    def head(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The convolutions after the LSTM. lengths are in frames."""
        return _run(self.layers[self._middle + 1 :], x, lengths)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.front(x)))


def _run(layers: Iterable[nn.Module], x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, C, N) through convolutional layers; lengths (B,) follow every change of rate. x itself is kept."""
    given = x
    for layer in layers:
        if isinstance(layer, ELU | Snake):
            x = layer(x, in_place=x is not given)
            continue
        x = layer(x, lengths)
        if lengths is not None and isinstance(layer, Conv1d):
            lengths = -(-lengths // layer.stride[0])
        elif lengths is not None and isinstance(layer, Upsample):
            lengths = lengths * layer.stride
    return x


def _reach(layers: Iterable[nn.Module]) -> int:
    """Inputs on either side that an output depends on."""
    reach = 0
    for layer in reversed(list(layers)):
        if isinstance(layer, Conv1d):
            reach = reach * layer.stride[0] + layer.left
        elif isinstance(layer, ResidualUnit):
            reach += layer.reach
        elif isinstance(layer, Upsample):
            reach = -(-reach // layer.stride) + 1
    return reach


@dataclass(frozen=True)
class SEANetSizes:
    """Sizes of an encoder and its decoder."""

    dim: int
    channels: int  # at the rate of the wave; every stage of the encoder doubles them
    ratios: tuple[int, ...]  # strides of the decoder, from the inside out, e.g. (8, 5, 4, 2)
    lstm_layers: int
    bidirectional: bool  # the encoder's LSTM
    residual_layers: int
    residual_kernel_size: int
    dilation_base: int
    act: str

    def units(self, channels: int) -> list[nn.Module]:
        """The residual units of a stage."""
        dilations = [self.dilation_base**unit for unit in range(self.residual_layers)]
        return [ResidualUnit(channels, self.residual_kernel_size, each, self.act) for each in dilations]


class SEANetEncoder(SEANet):
    """wave (B, 1, N) -> latent (B, dim, ceil(N / hop)), hop the product of ratios."""

    def __init__(self, sizes: SEANetSizes) -> None:
        channels, act = sizes.channels, sizes.act
        layers: list[nn.Module] = [Conv1d(1, channels, EDGE_KERNEL)]
        for ratio in sizes.ratios[::-1]:
            layers += sizes.units(channels)
            layers += [activation(act, channels), Conv1d(channels, 2 * channels, 2 * ratio, stride=ratio)]
            channels *= 2
        layers.append(SkipLSTM(channels, sizes.lstm_layers, bidirectional=sizes.bidirectional))
        channels *= 2 if sizes.bidirectional else 1
        layers += [activation(act, channels), Conv1d(channels, sizes.dim, EDGE_KERNEL)]
        super().__init__(layers)


class SEANetDecoder(SEANet):
    """latent (B, dim, T) -> wave (B, 1, hop * T)."""

    def __init__(self, sizes: SEANetSizes) -> None:
        channels, act = sizes.channels * 2 ** len(sizes.ratios), sizes.act
        layers: list[nn.Module] = [Conv1d(sizes.dim, channels, EDGE_KERNEL)]
        layers.append(SkipLSTM(channels, sizes.lstm_layers, bidirectional=False))
        for ratio in sizes.ratios:
            layers += [activation(act, channels), Upsample(channels, channels // 2, 2 * ratio, ratio)]
            channels //= 2
            layers += sizes.units(channels)
        layers += [activation(act, channels), LastConv1d(channels, 1, EDGE_KERNEL)]
        super().__init__(layers)
