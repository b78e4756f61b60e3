"""mini: a small speech codec that works on short-time spectra at the frame rate.

Spectra in (log magnitude and compressed complex values), a ConvNeXt encoder, eight residual codebooks of which
the first is distilled from a speech recogniser (SpeechTokenizer, arXiv 2308.16692), a ConvNeXt decoder, and an
inverse Fourier transform (Vocos, arXiv 2306.00814). All convolutions run at 50 Hz: 0.35 GMAC per second of
speech, a fifteenth of SpeechTokenizer's encoder. Two spectra, 10 ms apart, make one 20 ms frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vokens.models.codec import Codec, mask_of
from vokens.models.mini.config import MiniConfig
from vokens.nn.convnext import ConvNeXt
from vokens.nn.product import Linear
from vokens.nn.stft import SpectrumIn, SpectrumOut
from vokens.quantize import ResidualVectorQuantizer

CHUNK_FRAMES = 3000  # one minute: halos of 15 and 24 frames add under 2 % of work


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

    def latent(self, wave: Tensor) -> Tensor:
        return self.encoder(wave)

    def synthesis(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)

    def encode_batch(self, wave: Tensor, lengths: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        frames = self.num_frames(lengths)
        total = int(frames.max())
        wave = F.pad(wave, (0, total * self.hop_length - wave.shape[1]))
        parts = [
            self.quantizer.encode(
                self._encode_span(wave, frames, start, min(start + CHUNK_FRAMES, total)), num_codebooks
            )
            for start in range(0, total, CHUNK_FRAMES)
        ]
        return torch.cat(parts, 2), frames

    def _encode_span(self, wave: Tensor, frames: Tensor, start: int, end: int) -> Tensor:
        """Latent (B, end - start, D) of a span of frames, computed with just the context that it sees."""
        total = wave.shape[1] // self.hop_length
        left, right = (
            max(0, start - self.encoder.backbone.reach - 1),
            min(total, end + self.encoder.backbone.reach + 1),
        )
        mask = mask_of(frames, total)[:, left:right, None].to(self.dtype)
        latent = self.encoder(wave[:, left * self.hop_length : right * self.hop_length], mask)
        return latent[:, start - left : end - left]

    def decode_batch(self, codes: Tensor, lengths: Tensor, first_codebook: int) -> Tensor:
        total = codes.shape[2]
        parts = [
            self._decode_span(codes, lengths, first_codebook, start, min(start + CHUNK_FRAMES, total))
            for start in range(0, total, CHUNK_FRAMES)
        ]
        return torch.cat(parts, 1)

    def _decode_span(
        self, codes: Tensor, lengths: Tensor, first_codebook: int, start: int, end: int
    ) -> Tensor:
        """Wave (B, (end - start) * hop) of a span of frames, computed with just the context that it sees."""
        total, reach = codes.shape[2], self.decoder.backbone.reach + 2
        left, right = max(0, start - reach), min(total, end + reach)
        mask = mask_of(lengths, total)[:, left:right, None].to(self.dtype)
        latent = self.quantizer.decode(codes[:, :, left:right], first_codebook).to(self.dtype)
        wave = self.decoder(latent, mask)
        return wave[:, (start - left) * self.hop_length : (end - left) * self.hop_length]
