"""Short-time spectra at the borders of a frame-rate network: waves in, waves out. Layout (B, T, D) inside.

Both use a Hann window of n_fft samples every n_fft/4 and divide by the constant overlap, so that a span of frames
can be computed alone, and a row's end does not depend on what is padded after it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vokens.nn.float32 import Hann
from vokens.nn.product import Linear


class SpectrumIn(nn.Module):
    """Windowed spectra of wave (B, N), N a multiple of the step, as features (B, T, width), float32.

    Per spectrum: log magnitude and the complex values with magnitude to the power 0.3 (the phase tells where in
    the frame things happen). Windows are centred on their hop, silence lies beyond the ends.
    """

    def __init__(self, n_fft: int, frames_per_step: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.frames_per_step = n_fft, n_fft // 4, frames_per_step
        self.width = frames_per_step * 3 * (n_fft // 2 + 1)
        self.window = Hann(n_fft)

    def forward(self, wave: Tensor) -> Tensor:
        return self.features(self.spectra(wave))

    def spectra(self, wave: Tensor) -> Tensor:
        """Complex spectra (B, F, bins) of wave (B, N)."""
        beyond = (self.n_fft - self.hop) // 2
        frames = F.pad(wave.float(), (beyond, beyond)).unfold(1, self.n_fft, self.hop)  # (B, F, n_fft)
        return torch.fft.rfft(self.window(frames), norm="ortho")

    def features(self, spectrum: Tensor) -> Tensor:
        """Spectra (B, F, bins) as features (B, T, width)."""
        power = spectrum.real.square() + spectrum.imag.square() + 1e-10  # -100 dB: below 16-bit noise
        compress = power.pow(-0.35)  # |X|^0.3 / |X|
        parts = [power.log() * 0.2, spectrum.real * compress, spectrum.imag * compress]
        features = torch.cat(parts, -1)
        return features.reshape(len(spectrum), -1, self.width)


class SpectrumOut(nn.Module):
    """Wave (B, T * step) float32 from features (B, T, D): a linear map to log magnitudes and directions, overlap-add.

    A phase is given as the direction of a vector (APNet, arXiv 2305.07952 §3.2), which has no jump at pi.
    """

    def __init__(self, width: int, n_fft: int, frames_per_step: int) -> None:
        super().__init__()
        self.n_fft, self.hop, self.frames_per_step = n_fft, n_fft // 4, frames_per_step
        self.bins = n_fft // 2 + 1
        self.project = Linear(width, frames_per_step * 3 * self.bins)
        self.bias("log_magnitude").fill_(-4.0)  # near the level of speech: rms 0.02 to 0.1 is -4 to -2
        # Hann squared at 75 % overlap sums to 1.5; one synthesis window holds the division.
        self.window = Hann(n_fft, 1 / 1.5)

    def bias(self, name: str) -> Tensor:
        """View (spectra of a step, bins) of the bias of log_magnitude, real or imag."""
        place = ("log_magnitude", "real", "imag").index(name)
        return self.project.bias.detach().view(self.frames_per_step, 3, self.bins)[:, place]

    def forward(
        self, x: Tensor, mask: Tensor | None = None, source: Tensor | None = None, gain: Tensor | None = None
    ) -> Tensor:
        """mask (B, T, 1): frames at 0 add nothing. source: spectra (B, F, bins) that are filtered. gain: log
        magnitudes (B, F, bins) that are added to."""
        batch = len(x)
        log_magnitude, real, imag = self.project(x).float().reshape(batch, -1, 3, self.bins).unbind(2)
        if gain is not None:
            log_magnitude = log_magnitude + gain
        magnitude = log_magnitude.clamp(max=6.0).exp()  # e^6 = 403: above Hann's largest spectrum, 320
        if mask is not None:
            magnitude = magnitude * mask.float().repeat_interleave(self.frames_per_step, 1)
        # 1e-2: near 0 no direction is meant.
        scale = magnitude * (real.square() + imag.square() + 1e-2).rsqrt()
        spectrum = torch.complex(real * scale, imag * scale)
        if source is not None:
            spectrum = spectrum * source
        frames = torch.fft.irfft(spectrum, n=self.n_fft, norm="ortho")
        return overlap_add(self.window(frames), self.hop)


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Sum of frames (B, F, N) placed hop apart, N a multiple of hop: the middle (B, F * hop) samples."""
    batch, count, size = frames.shape
    pieces = frames.reshape(batch, count, size // hop, hop)
    total = frames.new_zeros(batch, count + size // hop - 1, hop)
    for i in range(size // hop):
        total[:, i : i + count] += pieces[:, :, i]
    beyond = (size - hop) // 2
    return total.reshape(batch, -1)[:, beyond : beyond + count * hop]
