"""DAC-VAE's light networks: ConvNeXt on short-time spectra at the frame rate, in place of convolutions on samples."""

import torch
from torch import Tensor

from vokens.models.dacvae.cepstra import Cepstra
from vokens.models.dacvae.config import DACVAEConfig
from vokens.models.dacvae.pulses import Pulses, turns_of
from vokens.nn import spectral
from vokens.nn.product import Linear
from vokens.nn.spectral import SPECTRA
from vokens.nn.stft import SpectrumIn


class SpectralEncoder(spectral.SpectralEncoder):
    """Wave (B, 1, N), N a multiple of the hop -> (B, width, N / hop)."""

    def __init__(self, config: DACVAEConfig) -> None:
        sizes = config.width, config.expansion, config.kernel_size
        super().__init__(config.n_fft, *sizes, config.encoder_layers)
        self.channels, self.hop = config.width, config.hop_length

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths (B,): samples of each row, multiples of the hop."""
        return super().forward(wave[:, 0], None if lengths is None else lengths // self.hop).mT


class SpectralDecoder(spectral.SpectralDecoder):
    """Latents (B, D, T) -> wave (B, 1, hop * T)."""

    def __init__(self, config: DACVAEConfig) -> None:
        sizes = config.width, config.expansion, config.kernel_size
        super().__init__(config.latent_dim, config.n_fft, *sizes, config.decoder_layers)
        self.config = config
        if config.pulses:
            self.pulses = Pulses(config.hop_length // SPECTRA, config.sample_rate)
            self.source = SpectrumIn(config.n_fft, SPECTRA)
            self.source_embed = Linear(self.source.width, config.width)
            count = config.latent_dim - 2 * SPECTRA
            self.cepstra = Cepstra(count, config.sample_rate, config.n_fft, SPECTRA)
            self.spectrum.bias("log_magnitude").zero_()  # the source at the cepstra's level
            self.spectrum.bias("real").fill_(1.0)
            with torch.no_grad():
                self.spectrum.project.weight.mul_(0.1)

    def forward(self, x: Tensor, lengths: Tensor | None = None, source: Tensor | None = None) -> Tensor:
        """lengths (B,): frames of each row. source (B, hop * T): its pulses, where it has any."""
        embedded, spectra, gain = self.embed(x.mT), None, None
        if source is not None:
            spectra = self.source.spectra(source)
            gain = self.cepstra.gain(x[:, : self.cepstra.channels], spectra, lengths)
            embedded = embedded + self.source_embed(self.source.features(spectra).to(embedded.dtype))
        return self.synthesis(embedded, lengths, spectra, gain)[:, None]

    def pulses_of(self, frequency: Tensor) -> Tensor:
        """Pulses (B, hop * T) at frequencies (B, SPECTRA * T) in Hz."""
        return self.pulses(frequency, turns_of(frequency, self.pulses.hop, self.config.sample_rate))
