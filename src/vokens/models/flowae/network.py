"""The flow's network: compressed complex spectra of a wave from noise and latents, two spectra to a frame.

The network predicts the clean spectra and not the velocity: clean speech is low-dimensional, while a velocity has
all of the noise, which no narrow network can pass (arXiv 2511.13720). The input spectra are added with a predicted gain
per bin, as in a Wiener filter, so that fine structure need not pass through the network. A
ConvNeXt on spectra is RFWave's (2403.05010), compressed magnitudes 2008.05214's.
"""

import torch
from torch import Tensor, nn

from vokens.models.flowae.config import FlowAEConfig
from vokens.nn.convnext import ConvNeXtBlock
from vokens.nn.float32 import Float32, Float32Buffers
from vokens.nn.product import Linear
from vokens.nn.spectral import SPECTRA
from vokens.nn.stft import SpectrumIn, overlap_add

TIME_WIDTH = 64
# Least 1 - t in the velocities (clean - x) / (1 - t). Closer to the data the network would have to copy its input,
# which it cannot at a width below the number of channels, and the loss's weight would grow without bound.
NEAR = 0.5


class Spectra(Float32):
    """Waves (B, T * hop) to spectra (B, T, channels) and back: real and imaginary parts with magnitude to a power, each
    bin divided by its standard deviation over speech (`scale`)."""

    scale: Tensor

    def __init__(self, hop: int, power: float) -> None:
        super().__init__()
        self.spectrum, self.power, self.bins = SpectrumIn(2 * hop, SPECTRA), power, hop + 1
        self.channels = SPECTRA * 2 * self.bins
        self.register_buffer("scale", torch.ones(self.bins))

    def of_speech(self, wave: Tensor) -> Tensor:
        real, imag = self.compressed(wave)
        return self._join(real / self.scale, imag / self.scale)

    def compressed(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts (B, F, bins) of wave (B, N), with magnitude to the power."""
        spectrum = self.spectrum.spectra(wave)
        real, imag = spectrum.real, spectrum.imag
        gain = (real.square() + imag.square() + 1e-10).pow((self.power - 1) / 2)
        return real * gain, imag * gain

    @torch.no_grad()
    def fit(self, wave: Tensor) -> None:
        """Set `scale` from speech (B, N): the spectra then have a deviation of 1 in every bin."""
        real, imag = self.compressed(wave)
        power = (real.square() + imag.square()).mean((0, 1)) / 2
        self.scale.copy_(power.sqrt().clamp(min=1e-3))

    def of_noise(self, wave: Tensor) -> Tensor:
        """White noise of deviation 1 as spectra of deviation 1, uncompressed."""
        spectrum, window = self.spectrum.spectra(wave), self.spectrum.window.values
        gain = (2 * len(window) / window.square().sum()).sqrt()
        return self._join(spectrum.real * gain, spectrum.imag * gain)

    def to_speech(self, spectra: Tensor) -> Tensor:
        """Wave (B, T * hop) of spectra (B, T, channels)."""
        parts = spectra.float().reshape(len(spectra), -1, 2, self.bins) * self.scale
        real, imag = parts.unbind(2)
        gain = (real.square() + imag.square() + 1e-10).pow((1 / self.power - 1) / 2)
        frames = torch.fft.irfft(torch.complex(real * gain, imag * gain), norm="ortho")
        # Hann squared at 75 % overlap sums to 1.5.
        return overlap_add(self.spectrum.window(frames) / 1.5, self.spectrum.hop)

    def _join(self, real: Tensor, imag: Tensor) -> Tensor:
        return torch.stack([real, imag], 2).reshape(len(real), -1, self.channels)


class FlowDecoder(Float32Buffers):
    """Prediction of the clean spectra, given those at a time of the path and the latents.

    `shift` and `spread` (D,) bring latents to a mean of 0 and a deviation of 1, where they have been set.
    """

    shift: Tensor
    spread: Tensor

    def __init__(self, config: FlowAEConfig) -> None:
        super().__init__()
        width, layers = config.flow_width, config.flow_layers
        self.spectra = Spectra(config.hop_length, config.power)
        self.enter = Linear(self.spectra.channels + config.latent_dim, width)
        self.time = nn.Sequential(Linear(TIME_WIDTH, width), nn.SiLU(), Linear(width, layers * width))
        sizes = width, width * config.expansion, config.kernel_size
        self.blocks = nn.ModuleList(ConvNeXtBlock(*sizes, 1 / layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.leave = Linear(width, self.spectra.channels + SPECTRA * self.spectra.bins)
        self.reach = layers * (config.kernel_size // 2)
        self.register_buffer("shift", torch.zeros(config.latent_dim))
        self.register_buffer("spread", torch.ones(config.latent_dim))

    def normalised(self, z: Tensor) -> Tensor:
        """(B, T, D) of latents (B, D, T)."""
        return (z.mT - self.shift) / self.spread

    def forward(self, x: Tensor, t: Tensor, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Clean spectra (B, T, C) from x (B, T, C) at times t (B,), 0 noise and 1 data, and normalised latents
        z (B, T, D); mask (B, T, 1) is 1 inside and 0 beyond each row's end."""
        h = self.enter(torch.cat([x.to(z), z], 2))
        shifts = self.time(waves_of(t).to(z)).unsqueeze(1).chunk(len(self.blocks), 2)
        for block, shift in zip(self.blocks, shifts, strict=True):
            h = h + shift
            h = block(h if mask is None else h * mask)
        spectra, gain = self.leave(self.norm(h)).split([x.shape[2], SPECTRA * self.spectra.bins], 2)
        kept = x.unflatten(2, (SPECTRA, 2, -1)) * gain.unflatten(2, (SPECTRA, 1, -1))
        return spectra + kept.flatten(2)


def waves_of(t: Tensor) -> Tensor:
    """(B, TIME_WIDTH): sines and cosines of times t (B,), of periods from 2 pi down to 2 pi / 100."""
    rates = torch.logspace(0, 2, TIME_WIDTH // 2, device=t.device)
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def velocity(clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Velocity (B, T, C) that leads from x at times t (B,) to the clean spectra at time 1."""
    return (clean - x) / (1 - t).clamp(min=NEAR)[:, None, None]
