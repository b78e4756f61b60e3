"""mini: a small speech codec that works on short-time spectra at the frame rate.

Spectra in (log magnitude and compressed complex values), a ConvNeXt encoder, eight residual codebooks of which
the first is distilled from a speech recogniser (SpeechTokenizer, arXiv 2308.16692), a ConvNeXt decoder, and an
inverse Fourier transform (Vocos, arXiv 2306.00814). All convolutions run at 50 Hz: 0.35 GMAC per second of
speech, a fifteenth of SpeechTokenizer's encoder. Two spectra, 10 ms apart, make one 20 ms frame.
"""

import torch.nn.functional as F
from torch import Tensor

from vokens.models.codec import Codec
from vokens.models.mini.config import MiniConfig
from vokens.nn.product import Linear
from vokens.nn.spectral import SpectralDecoder, SpectralEncoder
from vokens.quantize import ResidualVectorQuantizer


class MiniEncoder(SpectralEncoder):
    """wave (B, T * hop) -> latent (B, T, latent_dim)."""

    def __init__(self, config: MiniConfig) -> None:
        sizes = config.width, config.expansion, config.kernel_size
        super().__init__(config.n_fft, *sizes, config.encoder_layers)
        self.project = Linear(config.width, config.latent_dim)

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.project(super().forward(wave, lengths))


class Mini(Codec):
    """The embedded codec. `vokens.load("mini")`."""

    system = "mini"
    Config = MiniConfig

    def __init__(self, config: MiniConfig) -> None:
        super().__init__(config)
        self.sample_rate = config.sample_rate
        self.hop_length = config.n_fft // 2
        self.codebook_sizes = (config.codebook_size,) * config.num_codebooks
        self.encoder = MiniEncoder(config)
        self.quantizer = ResidualVectorQuantizer(
            config.latent_dim, config.codebook_size, config.num_codebooks, beam=config.beam
        )
        self.semantic = Linear(config.latent_dim, config.semantic_dim)
        width, layers = config.decoder_width or config.width, (config.decoder_layers, config.fine_layers)
        sizes = config.n_fft, width, config.expansion, config.kernel_size
        self.decoder = SpectralDecoder(config.latent_dim, *sizes, *layers)
        self.encode_context, self.decode_context = self.encoder.reach, self.decoder.reach

    def latent(self, wave: Tensor) -> Tensor:
        return self.encoder(wave)

    def synthesis(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)

    def encode_batch(self, wave: Tensor, lengths: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        frames = self.num_frames(lengths)
        wave = F.pad(wave, (0, int(frames.max()) * self.hop_length - wave.shape[1]))
        return self.quantizer.encode(self.encoder(wave, frames), num_codebooks), frames

    def decode_batch(self, codes: Tensor, lengths: Tensor, first_codebook: int) -> Tensor:
        return self.decoder(self.quantizer.decode(codes, first_codebook).to(self.dtype), lengths)
