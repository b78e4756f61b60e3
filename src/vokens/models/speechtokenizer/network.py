"""SEANet encoder and decoder (SoundStream, arXiv 2107.03312 §3.1).

Convolutions around one LSTM: `front` before it, `head` after it, so that long audio can pass the convolutions in
chunks and the LSTM in one sweep. Layers are numbered as published, which keeps checkpoints readable.
"""

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from vokens.models.speechtokenizer.config import SpeechTokenizerConfig
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


def units(config: SpeechTokenizerConfig, channels: int) -> list[nn.Module]:
    """The residual units of a stage."""
    dilations = [config.dilation_base**unit for unit in range(config.residual_layers)]
    kernel, act = config.residual_kernel_size, config.activation
    return [ResidualUnit(channels, kernel, dilation, act) for dilation in dilations]


class SEANetEncoder(SEANet):
    """wave (B, 1, N) -> latent (B, dimension, ceil(N / hop)), hop the product of strides."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        channels, act = config.n_filters, config.activation
        layers: list[nn.Module] = [Conv1d(1, channels, EDGE_KERNEL)]
        for stride in config.strides[::-1]:
            layers += units(config, channels)
            layers += [activation(act, channels), Conv1d(channels, 2 * channels, 2 * stride, stride=stride)]
            channels *= 2
        layers.append(SkipLSTM(channels, config.lstm_layers, bidirectional=config.bidirectional))
        channels *= 2 if config.bidirectional else 1
        layers += [activation(act, channels), Conv1d(channels, config.dimension, EDGE_KERNEL)]
        super().__init__(layers)


class SEANetDecoder(SEANet):
    """latent (B, dimension, T) -> wave (B, 1, hop * T)."""

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        channels, act = config.n_filters * 2 ** len(config.strides), config.activation
        layers: list[nn.Module] = [Conv1d(config.dimension, channels, EDGE_KERNEL)]
        layers.append(SkipLSTM(channels, config.lstm_layers, bidirectional=False))
        for stride in config.strides:
            layers += [activation(act, channels), Upsample(channels, channels // 2, 2 * stride, stride)]
            channels //= 2
            layers += units(config, channels)
        layers += [activation(act, channels), LastConv1d(channels, 1, EDGE_KERNEL)]
        super().__init__(layers)
