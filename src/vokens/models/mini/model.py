"""mini: a small speech codec that works on short-time spectra at the frame rate.

Spectra in (log magnitude and compressed complex values), a ConvNeXt encoder, eight residual codebooks of which
the first is distilled from a speech recogniser (SpeechTokenizer, arXiv 2308.16692), a ConvNeXt decoder, and an
inverse Fourier transform (Vocos, arXiv 2306.00814). All convolutions run at 50 Hz: 0.35 GMAC per second of
speech, a fifteenth of SpeechTokenizer's encoder. Two spectra, 10 ms apart, make one 20 ms frame.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vokens.models.codec import Codec
from vokens.models.mini.config import MiniConfig
from vokens.nn.convnext import ConvNeXt
from vokens.nn.masks import padding_mask
from vokens.nn.product import Linear
from vokens.nn.stft import SpectrumIn, SpectrumOut
from vokens.quantize import ResidualVectorQuantizer


class MiniEncoder(nn.Module):
    """wave (B, T * hop) -> latent (B, T, latent_dim)."""

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        self.spectrum = SpectrumIn(config.n_fft, frames_per_step=2)
        self.embed = Linear(self.spectrum.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        hidden = config.width * config.expansion
        self.backbone = ConvNeXt(config.width, hidden, config.kernel_size, config.encoder_layers)
        self.final_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.project = Linear(config.width, config.latent_dim)

    def forward(self, wave: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.norm(self.embed(self.spectrum(wave).to(self.embed.weight.dtype)))
        return self.project(self.final_norm(self.backbone(x, mask)))


class MiniDecoder(nn.Module):
    """latent (B, T, latent_dim) -> wave (B, T * hop)."""

    def __init__(self, config: MiniConfig) -> None:
        super().__init__()
        self.embed = Linear(config.latent_dim, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        hidden = config.width * config.expansion
        self.backbone = ConvNeXt(config.width, hidden, config.kernel_size, config.decoder_layers)
        self.final_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.spectrum = SpectrumOut(config.width, config.n_fft, frames_per_step=2)

    def forward(self, latent: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.backbone(self.norm(self.embed(latent)), mask)
        return self.spectrum(self.final_norm(x), mask)


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
            config.latent_dim, config.codebook_size, config.num_codebooks
        )
        self.semantic = Linear(config.latent_dim, config.semantic_dim)
        self.decoder = MiniDecoder(config)
        # A window of the spectra reaches less than a frame beyond its own, in; two spectra, a frame each way, out.
        self.encode_context = self.encoder.backbone.reach + 1
        self.decode_context = self.decoder.backbone.reach + 2

    def latent(self, wave: Tensor) -> Tensor:
        return self.encoder(wave)

    def synthesis(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)

    def encode_batch(self, wave: Tensor, lengths: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        frames = self.num_frames(lengths)
        total = int(frames.max())
        wave = F.pad(wave, (0, total * self.hop_length - wave.shape[1]))
        latent = self.encoder(wave, padding_mask(frames, total)[..., None].to(self.dtype))
        return self.quantizer.encode(latent, num_codebooks), frames

    def decode_batch(self, codes: Tensor, lengths: Tensor, first_codebook: int) -> Tensor:
        latent = self.quantizer.decode(codes, first_codebook).to(self.dtype)
        return self.decoder(latent, padding_mask(lengths, codes.shape[2])[..., None].to(self.dtype))
