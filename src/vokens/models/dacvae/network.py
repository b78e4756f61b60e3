"""DAC-VAE's convolutions: the Descript Audio Codec's encoder and decoder (arXiv 2306.06546) around a Gaussian latent.

Convolutions are centred with zeros beyond the borders. In a right-padded batch every row is kept at zero beyond its
own end before each convolution that would look there, so rows are independent of each other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vokens.models.dacvae.config import DACVAEConfig
from vokens.nn.conv import PlainConv1d
from vokens.nn.float32 import Float32Conv1d
from vokens.nn.masks import padding_mask
from vokens.nn.snake import Snake

DILATIONS = (1, 3, 9)


def silence_beyond(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, C, T) with zeros beyond each row's length (B,); None: all rows are full."""
    if lengths is None:
        return x
    return x * padding_mask(lengths, x.shape[2]).unsqueeze(1)


class Conv(PlainConv1d):
    """(B, in, T) -> (B, out, T'): a centred convolution and, as in the published weights, a leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        slope: float,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        padding = -(-stride // 2) if stride > 1 else dilation * (kernel_size - 1) // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation)
        self.slope = slope

    def forward(self, input: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.kernel_size[0] > 1:
            input = silence_beyond(input, lengths)
        output = super().forward(input)
        return output if self.slope == 1.0 else F.leaky_relu(output, self.slope)


class LastConv(Float32Conv1d, Conv):
    pass


class ResidualUnit(nn.Module):
    """x + conv1(snake(conv7(snake(x)))), (B, C, T) to the same."""

    def __init__(self, channels: int, dilation: int, slope: float) -> None:
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = Conv(channels, channels, 7, slope, dilation=dilation)
        self.snake2 = Snake(channels)
        self.conv2 = Conv(channels, channels, 1, slope)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        y = self.snake2(self.conv1(self.snake1(x), lengths), in_place=True)
        return x + self.conv2(y)


class EncoderStage(nn.Module):
    """(B, C, T) -> (B, 2C, T / stride)."""

    def __init__(self, channels: int, stride: int, slope: float) -> None:
        super().__init__()
        self.units = nn.ModuleList(ResidualUnit(channels, dilation, slope) for dilation in DILATIONS)
        self.snake = Snake(channels)
        self.down = Conv(channels, 2 * channels, 2 * stride, slope, stride)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        for unit in self.units:
            x = unit(x, lengths)
        return self.down(self.snake(x, in_place=True), lengths)


class Encoder(nn.Module):
    """Wave (B, 1, N) -> (B, D, T), T = N / hop for N a multiple of it."""

    def __init__(self, config: DACVAEConfig) -> None:
        super().__init__()
        channels, slope = config.encoder_dim, config.conv_slope
        self.rates = config.encoder_rates
        self.first = Conv(1, channels, 7, slope)
        self.stages = nn.ModuleList(
            EncoderStage(channels << stage, stride, slope) for stage, stride in enumerate(self.rates)
        )
        channels <<= len(self.rates)
        self.snake = Snake(channels)
        self.last = Conv(channels, config.latent_dim, 3, slope)
        self.channels, self.reach = config.latent_dim, reach_of_encoder(config)

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths (B,): samples of each row, multiples of the hop."""
        x = self.first(wave.to(self.first.bias), lengths)
        for stage, rate in zip(self.stages, self.rates, strict=True):
            x = stage(x, lengths)
            lengths = None if lengths is None else lengths // rate
        # This leaky ReLU (0.01) is the published network's own, beside those of conv_slope.
        return F.leaky_relu(self.last(self.snake(x, in_place=True), lengths))


class DecoderStage(nn.Module):
    """(B, C, T) -> (B, C / 2, stride * T)."""

    def __init__(self, channels: int, stride: int, slope: float) -> None:
        super().__init__()
        self.snake = Snake(channels)
        self.up = nn.ConvTranspose1d(
            channels, channels // 2, 2 * stride, stride, -(-stride // 2), output_padding=stride % 2
        )
        self.units = nn.ModuleList(ResidualUnit(channels // 2, dilation, slope) for dilation in DILATIONS)
        self.stride = stride

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.up(silence_beyond(self.snake(x, in_place=True), lengths))
        lengths = None if lengths is None else lengths * self.stride
        for unit in self.units:
            x = unit(x, lengths)
        return x


class Decoder(nn.Module):
    """Latents (B, D, T) -> wave (B, 1, hop * T) in [-1, 1]."""

    def __init__(self, config: DACVAEConfig) -> None:
        super().__init__()
        channels, slope = config.decoder_dim, config.conv_slope
        self.project = Conv(config.latent_dim, config.latent_dim, 1, slope)
        self.first = Conv(config.latent_dim, channels, 7, slope)
        self.rates, self.reach = config.decoder_rates, reach_of_decoder(config)
        self.stages = nn.ModuleList(
            DecoderStage(channels >> stage, stride, slope) for stage, stride in enumerate(self.rates)
        )
        channels >>= len(self.rates)
        self.snake = Snake(channels)
        self.last = LastConv(channels, 1, 7, slope)

    def forward(self, z: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths (B,): frames of each row."""
        x = self.first(self.project(z), lengths)
        for stage, rate in zip(self.stages, self.rates, strict=True):
            x = stage(x, lengths)
            lengths = None if lengths is None else lengths * rate
        return torch.tanh(self.last(self.snake(x, in_place=True), lengths))


def reach_of_encoder(config: DACVAEConfig) -> int:
    """Frames on either side that a frame's numbers depend on, rounded up."""
    samples, width = 3, 1  # the first convolution
    for stride in config.encoder_rates:
        samples += (3 * sum(DILATIONS) + stride) * width
        width *= stride
    return -(-(samples + width) // width)


def reach_of_decoder(config: DACVAEConfig) -> int:
    """Frames on either side that a frame's samples depend on, rounded up."""
    frames, width = 3.0, 1
    for stride in config.decoder_rates:
        frames += 1 / width  # the transposed convolution reaches less than one step of its input
        width *= stride
        frames += 3 * sum(DILATIONS) / width
    return -int(-(frames + 3 / width) // 1)
