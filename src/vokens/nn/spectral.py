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
    """(B, T, inputs) -> wave (B, T * hop). reach: as in `SpectralEncoder`.

    fine_layers: blocks after those at the frame rate, on vectors of their own for each of a frame's spectra. Without
        them one vector holds the phases of two spectra.
    """

    def __init__(
        self,
        inputs: int,
        n_fft: int,
        width: int,
        expansion: int,
        kernel_size: int,
        layers: int,
        fine_layers: int = 0,
    ) -> None:
        super().__init__()
        self.embed = Linear(inputs, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.backbone = ConvNeXt(width, width * expansion, kernel_size, layers)
        self.spectra = Spectra(width, width * expansion, kernel_size, fine_layers) if fine_layers else None
        self.final_norm = nn.LayerNorm(width, eps=1e-6)
        self.spectrum = SpectrumOut(width, n_fft, 1 if fine_layers else SPECTRA)
        self.reach = self.backbone.reach + 2  # two spectra, a frame each way
        if self.spectra is not None:
            self.reach += self.spectra.reach

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
        x = self.backbone(x, mask)
        if self.spectra is not None:
            x, mask = self.spectra(x, mask)
        return self.spectrum(self.final_norm(x), mask, source, gain)


class Spectra(nn.Module):
    """Frames (B, T, D) and their mask -> the same of their spectra, (B, T * SPECTRA, D). reach: in frames."""

    def __init__(self, width: int, hidden: int, kernel_size: int, layers: int) -> None:
        super().__init__()
        self.split = Linear(width, SPECTRA * width)
        self.backbone = ConvNeXt(width, hidden, kernel_size, layers)
        self.reach = -(-self.backbone.reach // SPECTRA)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.split(x).unflatten(-1, (SPECTRA, -1)).flatten(1, 2)
        mask = None if mask is None else mask.repeat_interleave(SPECTRA, 1)
        return self.backbone(x, mask), mask
