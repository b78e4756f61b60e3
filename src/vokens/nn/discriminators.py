"""Waveform discriminators of codec training, at any width: multi-period and multi-scale (HiFi-GAN, 2010.05646
section 2.3) and multi-scale STFT (EnCodec, 2210.13438 section 3.4), as SpeechTokenizer trains against them, and
multi-resolution spectrograms (UnivNet, 2106.07889 section 2.2), as HiFT does, and multi-band spectra (DAC, 2306.06546
section 3.4), as DAC-VAE does.

Each is a list of convolution stacks that see the same wave folded, averaged or transformed in different ways;
`forward(wave (B, 1, N))` gives one map of logits and one list of feature maps per stack.
"""

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, leaky_relu, normalize, pad
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization

from vokens.errors import ConfigError

PERIODS = (2, 3, 5, 7, 11)
PERIOD_CHANNELS = (32, 128, 512, 1024, 1024)
SCALE_CHANNELS = (128, 128, 256, 512, 1024, 1024, 1024)
WINDOWS = (1024, 2048, 512, 256, 128)
BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # edges, as shares of the spectrum
BAND_WINDOWS = (2048, 1024, 512)
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # n_fft, hop, window


class SpectralNorm(nn.Module):
    """Parametrization weight / sigma with one power iteration per training forward (1802.05957, algorithm 1).

    torch's own parametrization renews u before v, so that its sigma is half an iteration behind the older
    hook that the published discriminator was trained with; here v comes first.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)  # (out, in * kernel)
        self.register_buffer("u", normalize(torch.randn(matrix.shape[0]), dim=0))
        self.register_buffer("v", normalize(torch.randn(matrix.shape[1]), dim=0))
        for _ in range(15):  # random u and v give a sigma near 0, and eval mode would divide by it
            self.iterate(matrix)

    @torch.no_grad()
    def iterate(self, matrix: Tensor) -> None:
        self.v = normalize(matrix.mT @ self.u, dim=0)
        self.u = normalize(matrix @ self.v, dim=0)

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        with torch.autocast(weight.device.type, enabled=False):  # sigma scales every layer: keep its 24 bits
            if self.training:
                self.iterate(matrix)
            return weight / (self.u @ (matrix @ self.v))


def spectral_norm(conv: nn.Module) -> nn.Module:
    register_parametrization(conv, "weight", SpectralNorm(conv.get_parameter("weight")))
    return conv


def spectral_convs(inputs: int, channels: int) -> list[nn.Module]:
    """Convolutions over (frames, bins): four of 3 x 9, of which all but the first halve the bins, and one of 3 x 3."""
    shapes = [(inputs, channels, 1), *[(channels, channels, 2)] * 3]
    convs = [weight_norm(nn.Conv2d(a, b, (3, 9), (1, stride), (1, 4))) for a, b, stride in shapes]
    return [*convs, weight_norm(nn.Conv2d(channels, channels, 3, padding=1))]


def feature_maps(convs: Iterable[nn.Module], x: Tensor, slope: float) -> list[Tensor]:
    """Maps of x (B, C, ...) after each convolution and its leaky ReLU."""
    features = []
    for conv in convs:
        x = leaky_relu(conv(x), slope)
        features.append(x)
    return features


class ConvStack(nn.Module):
    """Convolutions with leaky ReLU over a view of the wave, then `conv_post` to one channel."""

    logits_are_features: ClassVar[bool] = False  # whether the last feature map is the logits, as published

    def __init__(self, convs: Sequence[nn.Module], conv_post: nn.Module, slope: float) -> None:
        super().__init__()
        self.convs, self.conv_post, self.slope = nn.ModuleList(convs), conv_post, slope

    def view(self, wave: Tensor) -> Tensor:
        """(B, 1, N) -> (B, C, ...), the input of the convolutions."""
        return wave

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        """wave (B, 1, N) -> logits (B, ...) and the feature map of each layer before `conv_post`."""
        features = feature_maps(self.convs, self.view(wave), self.slope)
        logits = self.conv_post(features[-1])
        return (logits.flatten(1), [*features, logits]) if self.logits_are_features else (logits, features)


class PeriodDiscriminator(ConvStack):
    """Compares samples one period apart: rows of `period` samples, 2-D kernels of width 1 across the rows."""

    logits_are_features = True

    def __init__(
        self, period: int, channels: Sequence[int] = PERIOD_CHANNELS, always_pad: bool = False
    ) -> None:
        """always_pad: DAC adds a whole period where none is missing."""
        shapes = zip([1, *channels[:-1]], channels, (3, 3, 3, 3, 1), strict=True)
        convs = [weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), (2, 0))) for a, b, stride in shapes]
        super().__init__(convs, weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0))), slope=0.1)
        self.period, self.always_pad = period, always_pad

    def view(self, wave: Tensor) -> Tensor:
        missing = -wave.shape[-1] % self.period
        missing = self.period if self.always_pad and not missing else missing
        return pad(wave, (0, missing), mode="reflect").unflatten(-1, (-1, self.period))


class ScaleDiscriminator(ConvStack):
    """Strided, grouped convolutions on the wave itself."""

    logits_are_features = True

    def __init__(self, channels: Sequence[int] = SCALE_CHANNELS, spectral: bool = False) -> None:
        norm = spectral_norm if spectral else weight_norm
        kernels, strides = (15, 41, 41, 41, 41, 41, 5), (1, 2, 2, 4, 4, 1, 1)
        groups = (1, 4, 16, 16, 16, 16, 1)
        shapes = zip([1, *channels[:-1]], channels, kernels, strides, groups, strict=True)
        convs = [norm(nn.Conv1d(a, b, k, s, k // 2, groups=math.gcd(g, a, b))) for a, b, k, s, g in shapes]
        super().__init__(convs, norm(nn.Conv1d(channels[-1], 1, 3, padding=1)), slope=0.1)


class STFTDiscriminator(ConvStack):
    """2-D convolutions on the complex spectrogram: two channels, real and imaginary, of (frames, bins)."""

    window: Tensor

    def __init__(self, n_fft: int, filters: int = 32) -> None:
        # The published first convolution has no weight norm: it was built without the argument.
        convs: list[nn.Module] = [nn.Conv2d(2, filters, (3, 9), padding=(1, 4))]
        convs += [
            weight_norm(nn.Conv2d(filters, filters, (3, 9), (1, 2), (dilation, 4), (dilation, 1)))
            for dilation in (1, 2, 4)
        ]
        convs.append(weight_norm(nn.Conv2d(filters, filters, (3, 3), padding=(1, 1))))
        super().__init__(convs, weight_norm(nn.Conv2d(filters, 1, (3, 3), padding=(1, 1))), slope=0.2)
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft))

    def view(self, wave: Tensor) -> Tensor:
        """(B, 1, N >= n_fft) -> (B, 2, frames, bins), divided by the window's L2 norm: one scale for every n_fft."""
        spectrum = torch.stft(
            wave.squeeze(1).float(),
            self.n_fft,
            self.n_fft // 4,
            window=self.window,
            center=False,
            return_complex=True,
        )
        spectrum = spectrum / self.window.square().sum().sqrt()
        return torch.view_as_real(spectrum).permute(0, 3, 2, 1)


class SpectrogramDiscriminator(ConvStack):
    """2-D convolutions on magnitudes of one resolution: one channel of (frames, bins).

    n_fft, hop, window: of the spectrogram, in samples; a Hann window in the middle of n_fft.
    """

    logits_are_features = True
    window: Tensor

    def __init__(self, n_fft: int, hop: int, window: int, channels: int = 32) -> None:
        convs = spectral_convs(1, channels)
        super().__init__(convs, weight_norm(nn.Conv2d(channels, 1, 3, padding=1)), slope=0.1)
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def view(self, wave: Tensor) -> Tensor:
        """(B, 1, N > n_fft / 2) -> (B, 1, frames, bins). The root has no gradient at 0: energies are at least 1e-7."""
        size, window = self.n_fft, self.window.float()
        spectrum = torch.stft(
            wave.squeeze(1).float(), size, self.hop, window.shape[0], window, return_complex=True
        )
        energy = spectrum.real.square() + spectrum.imag.square()
        return energy.clamp(min=1e-7).sqrt().mT[:, None]


class BandDiscriminator(nn.Module):
    """2-D convolutions on the complex spectrum, (B, 2, frames, bins), a stack for each band of them."""

    def __init__(self, n_fft: int, channels: int = 32) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.edges = [int(share * (n_fft // 2 + 1)) for share in BANDS]
        self.band_convs = nn.ModuleList(nn.ModuleList(spectral_convs(2, channels)) for _ in BANDS[1:])
        self.conv_post = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    window: Tensor

    def spectrum(self, wave: Tensor) -> Tensor:
        """(B, 1, N) -> (B, 2, ceil(N / hop), bins), the hop a quarter of the window."""
        hop = self.n_fft // 4
        beyond = (self.n_fft - hop) // 2
        wave = pad(wave.float(), (beyond, beyond + -wave.shape[-1] % hop), mode="reflect")
        # Centred, so reflected once more; the two frames at either end that see only that are dropped.
        spectrum = torch.stft(
            wave.squeeze(1), self.n_fft, hop, window=self.window.float(), return_complex=True
        )
        return torch.view_as_real(spectrum[..., 2:-2]).permute(0, 3, 2, 1)

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        """wave (B, 1, N > 3/8 n_fft) -> logits (B, M), 25 feature maps (without the logits)."""
        spectrum = self.spectrum(wave)
        bands = [
            feature_maps(convs.children(), spectrum[..., first:last], 0.1)
            for first, last, convs in zip(self.edges[:-1], self.edges[1:], self.band_convs, strict=True)
        ]
        logits = self.conv_post(torch.cat([features[-1] for features in bands], -1))
        return logits.flatten(1), [one for features in bands for one in features]


class Discriminator(nn.Module):
    """Discriminators of the same wave."""

    def __init__(self, stacks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(stacks)

    def views(self, wave: Tensor) -> list[Tensor]:
        """The view of the wave for each stack."""
        return [wave] * len(self.discriminators)

    def forward(self, wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """wave (B, 1, N) -> logits: one tensor (B, ...) per stack; features: one list of maps per stack."""
        if wave.dim() != 3 or wave.shape[1] != 1:
            raise ConfigError(f"a discriminator takes a mono wave (B, 1, N), not {tuple(wave.shape)}")
        judgements = [stack(view) for stack, view in zip(self.discriminators, self.views(wave), strict=True)]
        return [logits for logits, _ in judgements], [features for _, features in judgements]


class MultiPeriodDiscriminator(Discriminator):
    """One stack per period; 41.1 M parameters at divisor 1. `divisor` divides every width."""

    def __init__(self, divisor: int = 1) -> None:
        channels = narrowed(PERIOD_CHANNELS, divisor)
        super().__init__([PeriodDiscriminator(period, channels) for period in PERIODS])


class MultiScaleDiscriminator(Discriminator):
    """Three stacks, on the wave and on its averages by 2 and 4; 29.6 M parameters at divisor 1.

    Only the first stack, which sees the raw wave, has spectral norm.
    """

    def __init__(self, divisor: int = 1) -> None:
        channels = narrowed(SCALE_CHANNELS, divisor)
        super().__init__([ScaleDiscriminator(channels, spectral=scale == 0) for scale in range(3)])

    def views(self, wave: Tensor) -> list[Tensor]:
        half = avg_pool1d(wave, 4, 2, padding=2)
        return [wave, half, avg_pool1d(half, 4, 2, padding=2)]


class MultiScaleSTFTDiscriminator(Discriminator):
    """One stack per STFT window; 0.47 M parameters at 32 filters. Takes no wave shorter than a window."""

    def __init__(self, filters: int = 32, windows: Sequence[int] = WINDOWS) -> None:
        super().__init__([STFTDiscriminator(n_fft, filters) for n_fft in windows])
        self.min_samples = max(windows)

    def views(self, wave: Tensor) -> list[Tensor]:
        if wave.shape[-1] < self.min_samples:
            raise ConfigError(
                f"the multi-scale STFT discriminator needs {self.min_samples} samples (its longest window), "
                f"got {wave.shape[-1]}: train on longer segments or leave out long windows"
            )
        return super().views(wave)


class MultiResolutionDiscriminator(Discriminator):
    """One stack per spectrogram (n_fft, hop, window); 0.28 M parameters at 32 channels."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__([SpectrogramDiscriminator(*sizes, channels) for sizes in RESOLUTIONS])


class DACDiscriminator(Discriminator):
    """DAC's: five periods and three multi-band spectra; 42.5 M parameters at full size.

    divisor: divides the widths of the first. channels: of the second.

    Every wave is judged without its mean and at a peak of 0.8. Feature maps leave the logits out.
    """

    def __init__(self, divisor: int = 1, channels: int = 32, windows: Sequence[int] = BAND_WINDOWS) -> None:
        widths = narrowed(PERIOD_CHANNELS, divisor)
        stacks: list[nn.Module] = [PeriodDiscriminator(p, widths, always_pad=True) for p in PERIODS]
        super().__init__([*stacks, *(BandDiscriminator(n_fft, channels) for n_fft in windows)])

    def views(self, wave: Tensor) -> list[Tensor]:
        wave = wave - wave.mean(-1, keepdim=True)
        return super().views(0.8 * wave / (wave.abs().amax(-1, keepdim=True) + 1e-9))

    def forward(self, wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        logits, features = super().forward(wave)
        maps = [
            maps[:-1] if isinstance(stack, PeriodDiscriminator) else maps
            for stack, maps in zip(self.discriminators, features, strict=True)
        ]
        return logits, maps


def narrowed(channels: Sequence[int], divisor: int) -> list[int]:
    if divisor < 1 or any(width % divisor for width in channels):
        raise ConfigError(f"divisor {divisor} does not divide the widths {tuple(channels)}: use a power of 2")
    return [width // divisor for width in channels]
