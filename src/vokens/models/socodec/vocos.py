"""SoCodec's light vocoder, a Vocos (arXiv 2306.00814): ConvNeXt on the mel's frames, then an inverse Fourier transform.

All its layers run at 100 Hz, where BigVGAN's run at up to 16 kHz: a better choice on CPUs, and quick to train.
"""

from torch import Tensor, nn

from vokens.models.socodec.config import MEL_HOP
from vokens.nn.convnext import ConvNeXt
from vokens.nn.stft import SpectrumOut

KERNEL = 7
EXPANSION = 3


class Vocos(nn.Module):
    """Mel (B, n_mels, T), in nepers, to wave (B, 160 * T).

    reach: mel frames on either side that a sample sees.
    """

    def __init__(self, n_mels: int, width: int, layers: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(n_mels, width, KERNEL, padding=KERNEL // 2)
        self.norm_first = nn.LayerNorm(width)
        self.backbone = ConvNeXt(width, EXPANSION * width, KERNEL, layers)
        self.norm_last = nn.LayerNorm(width)
        self.spectrum = SpectrumOut(width, 4 * MEL_HOP, frames_per_step=1)
        self.reach = KERNEL // 2 + self.backbone.reach + 2  # a spectrum spans 1.5 frames on either side

    def forward(self, mel: Tensor) -> Tensor:
        x = self.first((mel + 5) / 2.5).transpose(1, 2)  # speech: mean -5, deviation 2.5
        return self.spectrum(self.norm_last(self.backbone(self.norm_first(x))))
