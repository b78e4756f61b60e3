"""Mel cepstra of a frame and their spectral envelope: latents that are computed, not learned (mel-cepstral vocoding,
Imai 1983), and the initial filter of the decoder's pulses.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vokens.audio.mel import mel_filterbank
from vokens.nn.float32 import Float32
from vokens.nn.stft import SpectrumIn

BANDS = 80
FLOOR = 1e-7  # of a band's power: -70 dB below an orthonormal spectrum of rms 1
# Mean and standard deviation of the first cepstrum over speech, so that latents have about unit scale.
LEVEL, SPREAD = -105.0, 20.0


class Cepstra(Float32):
    """Waves to (B, D, T) cepstra of log-mel spectra, scaled to about unit deviation, and back to envelopes.

    count: D, at most 80 bands. spectra: to a frame.
    """

    bands: Tensor  # (BANDS, bins)
    cosines: Tensor  # (D, BANDS)
    spread: Tensor  # (BANDS, bins)
    scale: Tensor  # (D, 1)

    def __init__(self, count: int, sample_rate: int, n_fft: int, spectra: int) -> None:
        super().__init__()
        self.channels, self.spectra, self.reach = count, spectra, 1
        self.spectrum = SpectrumIn(n_fft, spectra)
        bands = mel_filterbank(sample_rate, n_fft, BANDS, norm=None)
        middle = (bands * torch.arange(bands.shape[1])).sum(1) / bands.sum(1).clamp(min=1e-6)
        order, place = torch.arange(count), (torch.arange(BANDS) + 0.5) / BANDS
        cosines = (math.pi * order[:, None] * place).cos() * math.sqrt(2 / BANDS)
        cosines[0] /= math.sqrt(2)
        scale = 10.0 / (1 + 0.25 * order)
        scale[0] = SPREAD
        self.register_buffer("bands", bands / bands.sum(1, keepdim=True).clamp(min=1e-6), persistent=False)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("spread", _between(middle, bands.shape[1]), persistent=False)
        self.register_buffer("scale", scale[:, None], persistent=False)

    @property
    def share(self) -> Tensor:
        """Effect of a unit of each latent dimension (D,) on the log spectrum; equal for level and tilt."""
        return self.scale[:, 0].clamp(max=float(self.scale[1]))

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Cepstra (B, D, T) of wave (B, 1, N), N whole frames; zero beyond its length; batch-invariant."""
        return self.of(self.spectrum.spectra(wave[:, 0]))

    def of(self, spectra: Tensor) -> Tensor:
        """Cepstra (B, D, T) of complex spectra (B, spectra * T, bins)."""
        power = spectra.real.square() + spectra.imag.square()
        mel = F.linear(power, self.bands).unflatten(1, (-1, self.spectra)).mean(2)
        cepstra = F.linear((mel + FLOOR).log(), self.cosines).mT
        cepstra = torch.cat([cepstra[:, :1] - LEVEL, cepstra[:, 1:]], 1)
        return cepstra / self.scale

    def gain(self, cepstra: Tensor, source: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log magnitudes (B, spectra * T, bins) that give spectra `source` the envelope of cepstra (B, D, T).

        Between frames they are interpolated; beyond its length (B,) frames a row keeps its last.
        """
        change = (cepstra.float() - self.of(source)) * self.scale
        if lengths is not None:
            last = (lengths - 1).clamp(min=0)[:, None]
            held = torch.arange(change.shape[2], device=change.device).minimum(last)
            change = change.gather(2, held[:, None].expand_as(change))
        bands = (change.mT @ self.cosines).mT  # (B, BANDS, T)
        bands = F.interpolate(bands, scale_factor=float(self.spectra), mode="linear").mT
        return 0.5 * bands @ self.spread


def _between(middle: Tensor, bins: int) -> Tensor:
    """Weights (BANDS, bins) that interpolate band values at their middles (BANDS,), in bins, linearly."""
    at = torch.arange(bins).float()
    right = torch.searchsorted(middle.contiguous(), at).clamp(1, len(middle) - 1)
    low, high = middle[right - 1], middle[right]
    share = ((at - low) / (high - low)).clamp(0, 1)
    weights = torch.zeros(len(middle), bins)
    weights[right - 1, torch.arange(bins)] = 1 - share
    weights[right, torch.arange(bins)] += share
    return weights
