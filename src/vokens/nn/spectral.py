"""Networks at the frame rate: short-time spectra, two to a frame, around a ConvNeXt (Vocos, arXiv 2306.00814).

Rows of a right-padded batch are independent of each other.
"""

from torch import Tensor, nn

from vokens.nn.convnext import ConvNeXt
from vokens.nn.masks import frame_mask
from vokens.nn.product import Linear
from vokens.nn.stft import SpectrumIn, SpectrumOut

SPECTRA = 2  # to a frame


class SpectralEncoder(nn.Module):
    """Wave (B, T * hop), hop = n_fft / 2 -> (B, T, width).

    Attributes:
        reach: frames that one output frame sees on either side.
    """

    def __init__(self, n_fft: int, width: int, expansion: int, kernel_size: int, layers: int) -> None:
        super().__init__()
        self.spectrum = SpectrumIn(n_fft, SPECTRA)
        self.embed = Linear(self.spectrum.width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.backbone = ConvNeXt(width, width * expansion, kernel_size, layers)
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.reach = self.backbone.reach + 1  # a spectrum sees less than a frame beyond its own

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths (B,): frames of each row."""
        x = self.norm(self.embed(self.spectrum(wave).to(self.embed.weight.dtype)))
        return self.final_norm(self.backbone(x, frame_mask(lengths, x)))


class SpectralDecoder(nn.Module):
    """(B, T, inputs) -> wave (B, T * hop). reach: as in `SpectralEncoder`."""

    def __init__(
        self, inputs: int, n_fft: int, width: int, expansion: int, kernel_size: int, layers: int
    ) -> None:
        super().__init__()
        self.embed = Linear(inputs, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.backbone = ConvNeXt(width, width * expansion, kernel_size, layers)
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.spectrum = SpectrumOut(width, n_fft, SPECTRA)
        self.reach = self.backbone.reach + 2  # two spectra, a frame each way

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """lengths (B,): frames of each row."""
        return self.synthesis(self.embed(x), lengths)

    def synthesis(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        source: Tensor | None = None,
        gain: Tensor | None = None,
    ) -> Tensor:
        """Wave of embedded frames (B, T, width). source, gain: as in `SpectrumOut`."""
        x = self.norm(x)
        mask = frame_mask(lengths, x)
        return self.spectrum(self.final_norm(self.backbone(x, mask)), mask, source, gain)
