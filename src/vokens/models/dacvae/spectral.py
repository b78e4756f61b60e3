"""DAC-VAE's light networks: ConvNeXt on short-time spectra at the frame rate, in place of convolutions on samples.

Spectra in, an inverse Fourier transform out (Vocos, arXiv 2306.00814). Rows of a right-padded batch are independent.
"""

import torch
from torch import Tensor, nn

from vokens.models.dacvae.cepstra import Cepstra
from vokens.models.dacvae.config import DACVAEConfig
from vokens.models.dacvae.pulses import Pulses, turns_of
from vokens.nn.convnext import ConvNeXt
from vokens.nn.masks import padding_mask
from vokens.nn.product import Linear
from vokens.nn.stft import SpectrumIn, SpectrumOut

SPECTRA = 2  # to a frame


class SpectralEncoder(nn.Module):
    """Wave (B, 1, N), N a multiple of the hop -> (B, width, N / hop)."""

    def __init__(self, config: DACVAEConfig) -> None:
        super().__init__()
        width = self.channels = config.width
        self.hop = config.hop_length
        self.spectrum = SpectrumIn(config.n_fft, SPECTRA)
        self.embed = Linear(self.spectrum.width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.backbone = ConvNeXt(width, width * config.expansion, config.kernel_size, config.encoder_layers)
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.reach = self.backbone.reach + 1  # a spectrum sees less than a frame beyond its own

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths (B,): samples of each row, multiples of the hop."""
        x = self.norm(self.embed(self.spectrum(wave[:, 0]).to(self.embed.weight.dtype)))
        mask = (
            None if lengths is None else padding_mask(lengths // self.hop, x.shape[1])[..., None].to(x.dtype)
        )
        return self.final_norm(self.backbone(x, mask)).mT


class SpectralDecoder(nn.Module):
    """Latents (B, D, T) -> wave (B, 1, hop * T)."""

    def __init__(self, config: DACVAEConfig) -> None:
        super().__init__()
        width, self.config = config.width, config
        self.embed = Linear(config.latent_dim, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.backbone = ConvNeXt(width, width * config.expansion, config.kernel_size, config.decoder_layers)
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.spectrum = SpectrumOut(width, config.n_fft, SPECTRA)
        self.reach = self.backbone.reach + 2
        if config.pulses:
            self.pulses = Pulses(config.hop_length // SPECTRA, config.sample_rate)
            self.source = SpectrumIn(config.n_fft, SPECTRA)
            self.source_embed = Linear(self.source.width, width)
            count = config.latent_dim - 2 * SPECTRA
            self.cepstra = Cepstra(count, config.sample_rate, config.n_fft, SPECTRA)
            self.spectrum.start_at(log_magnitude=0.0, real=1.0)  # the source at the cepstra's level
            with torch.no_grad():
                self.spectrum.project.weight.mul_(0.1)

    def forward(self, z: Tensor, lengths: Tensor | None = None, source: Tensor | None = None) -> Tensor:
        """lengths (B,): frames of each row. source (B, hop * T): its pulses, where it has any."""
        x, spectra, gain = self.embed(z.mT), None, None
        if source is not None:
            spectra = self.source.spectra(source)
            gain = self.cepstra.gain(z[:, : self.cepstra.channels], spectra, lengths)
            x = x + self.source_embed(self.source.features(spectra).to(x.dtype))
        x = self.norm(x)
        mask = None if lengths is None else padding_mask(lengths, x.shape[1])[..., None].to(x.dtype)
        return self.spectrum(self.final_norm(self.backbone(x, mask)), mask, spectra, gain)[:, None]

    def pulses_of(self, frequency: Tensor) -> Tensor:
        """Pulses (B, hop * T) at frequencies (B, SPECTRA * T) in Hz."""
        return self.pulses(frequency, turns_of(frequency, self.pulses.hop, self.config.sample_rate))
