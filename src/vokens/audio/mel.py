"""Log-mel spectrograms: every recipe of the published systems is one `LogMel` with another `MelConfig`.

Filterbank: triangles on the Slaney (Auditory Toolbox) or HTK mel scale, float32 as librosa rounds them.
Reflect padding is a gather over each item's own samples, which makes ragged batches batch-invariant.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vokens.errors import AudioError, ConfigError

MelScale = Literal["slaney", "htk"]
Count = TypeVar("Count", int, Tensor)


@dataclass(frozen=True)
class MelConfig:
    """A log-mel recipe. Frame law: F = T // hop_length, plus one when centred frames are all kept."""

    sample_rate: int
    n_fft: int
    win_length: int  # periodic Hann window, centred in the n_fft samples
    hop_length: int
    n_mels: int
    f_min: float = 0.0  # Hz
    f_max: float | None = None  # Hz; None = sample_rate / 2
    scale: MelScale = "slaney"
    norm: Literal["slaney"] | None = "slaney"  # bands of equal area
    power: float = 1.0  # 1.0 magnitudes, 2.0 energies
    magnitude_eps: float = 0.0  # added to re² + im² before the root of power 1.0
    center: bool = False  # reflect padding: n_fft / 2 when centred, else (n_fft - hop_length) / 2, each side
    drop_last: bool = False  # drop the last centred frame, which is half padding
    log: Literal["ln", "log10", "whisper"] = "ln"  # whisper: log10, raised to maximum - 8, (x + 4) / 4
    floor: float = 1e-5  # mel values are clamped to this before the logarithm

    def __post_init__(self) -> None:
        sizes = (self.sample_rate, self.n_fft, self.win_length, self.hop_length, self.n_mels)
        if min(sizes) < 1 or self.win_length > self.n_fft or self.hop_length > self.n_fft:
            raise ConfigError(f"mel sizes must be positive, win_length and hop_length <= n_fft; got {self}")
        if self.power not in (1.0, 2.0):
            raise ConfigError(f"power must be 1.0 (magnitude) or 2.0 (energy), got {self.power}")
        if self.floor <= 0:
            raise ConfigError(f"floor must be above 0 (a logarithm follows), got {self.floor}")

    @property
    def padding(self) -> int:
        """Samples of reflect padding on each side."""
        return self.n_fft // 2 if self.center else (self.n_fft - self.hop_length) // 2

    def frames(self, num_samples: Count) -> Count:
        """Frames of a wave of `num_samples` samples: an int, or a tensor of lengths."""
        span = num_samples + 2 * self.padding - self.n_fft
        return span // self.hop_length + (0 if self.drop_last else 1)


def _whisper(n_mels: int) -> MelConfig:
    sizes = 16000, 400, 400, 160, n_mels
    return MelConfig(*sizes, power=2.0, center=True, drop_last=True, log="whisper", floor=1e-10)


def _bigvgan(sample_rate: int, n_fft: int, win_length: int, hop_length: int) -> MelConfig:
    return MelConfig(sample_rate, n_fft, win_length, hop_length, n_mels=80, f_max=8000.0, magnitude_eps=1e-9)


# Whisper's front end, and with 128 bands that of S3Tokenizer.
WHISPER_80 = _whisper(80)
WHISPER_128 = _whisper(128)
# CosyVoice 2 / S3Gen: 50 frames per second, the reference voice and the target of the flow.
MEL_24K_80 = _bigvgan(24000, 1920, 1920, 480)
# SoCodec: its speaker encoder and vocoder, 100 frames per second.
SOCODEC_16K_80 = _bigvgan(16000, 1024, 640, 160)
# SpeechTokenizer's four reconstruction losses, weighted 45, 1, 1, 1. Its 1e-9 on each magnitude is left out:
# a band sums less than 0.1 of it, against a floor of 1e-5. In the last two 2 and 13 bands are empty.
SPEECHTOKENIZER_LOSSES = tuple(
    MelConfig(16000, 1024 >> i, 1024 >> i, 240 >> i, n_mels=80, scale="htk") for i in range(4)
)


# Slaney's scale is linear up to 1 kHz (15 mels) and logarithmic above, 27 steps to a factor of 6.4.
_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_LOG_STEP = math.log(6.4) / 27.0


def hz_to_mel(hz: float, scale: MelScale) -> float:
    if scale == "htk":
        return 2595.0 * math.log10(1.0 + hz / 700.0)
    if hz < 1000.0:
        return hz / _SLANEY_HZ_PER_MEL
    return 15.0 + math.log(hz / 1000.0) / _SLANEY_LOG_STEP


def _mel_to_hz(mel: np.ndarray, scale: MelScale) -> np.ndarray:
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    return np.where(mel < 15.0, mel * _SLANEY_HZ_PER_MEL, 1000.0 * np.exp(_SLANEY_LOG_STEP * (mel - 15.0)))


@lru_cache
@torch.inference_mode(False)  # the cached tensor may be made in inference and used in training
def mel_filterbank(
    sample_rate: int,
    n_fft: int,
    n_mels: int,
    f_min: float = 0.0,
    f_max: float | None = None,
    scale: MelScale = "slaney",
    norm: Literal["slaney"] | None = "slaney",
) -> Tensor:
    """Triangular mel bands (n_mels, n_fft // 2 + 1), float32 on the CPU; cached, so do not write into it.

    Frequencies in Hz. Bands narrower than the FFT grid may be all zero. Raises ConfigError for an
    unknown scale or norm, or a range outside 0 <= f_min < f_max <= sample_rate / 2.
    """
    f_max = sample_rate / 2 if f_max is None else f_max
    if not 0.0 <= f_min < f_max <= sample_rate / 2:
        raise ConfigError(f"mel range {f_min}..{f_max} Hz must lie within 0..{sample_rate / 2} Hz")
    if scale not in ("slaney", "htk") or norm not in ("slaney", None):
        raise ConfigError(f"scale must be 'slaney' or 'htk', norm 'slaney' or None; got {scale!r}, {norm!r}")
    mels = np.linspace(hz_to_mel(f_min, scale), hz_to_mel(f_max, scale), n_mels + 2)
    edges = _mel_to_hz(mels, scale)  # (n_mels + 2,): left, peak and right of band i are edges i, i + 1, i + 2
    bins = np.fft.rfftfreq(n_fft, 1.0 / sample_rate)
    slopes = (bins - edges[:, None]) / np.diff(edges, append=np.inf)[:, None]
    rising, falling = slopes[:-2], 1.0 - slopes[1:-1]
    # Rounded to float32 before and after the norm: bit-equal to librosa's order in all but a few entries.
    bands = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    if norm == "slaney":
        bands = (bands * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)
    return torch.from_numpy(bands)


class Magnitude(torch.autograd.Function):
    """sqrt(|rfft(frames * window)|^2 + eps) of frames (..., n_fft), with the gradient by one inverse real FFT.

    Autograd goes back through rfft by a complex FFT of full length: this halves the time of a mel loss, and the
    gradient at magnitude 0 is 0 (that of the root of a square is not finite).
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor, window: Tensor, eps: float) -> Tensor:
        spectrum = torch.fft.rfft(frames * window)
        magnitude = spectrum.real.square().add_(spectrum.imag.square()).add_(eps).sqrt_()
        ctx.save_for_backward(spectrum, magnitude, window)
        return magnitude

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        spectrum, magnitude, window = ctx.saved_tensors
        n_fft = len(window)
        scale = grad_outputs[0] / magnitude.clamp(min=1e-30)
        scale[..., 1 : (n_fft + 1) // 2] *= 0.5  # irfft counts these bins twice
        return torch.fft.irfft(spectrum * scale, n=n_fft, norm="forward") * window, None, None


def stft_magnitude(wave: Tensor, window: Tensor, hop_length: int, eps: float = 0.0) -> Tensor:
    """sqrt(|STFT|^2 + eps) of wave (B, T) without padding: (B, F, n_fft // 2 + 1), n_fft = len(window)."""
    return Magnitude.apply(wave.unfold(-1, len(window), hop_length), window, eps)


class LogMel(nn.Module):
    """Waves (B, T) in [-1, 1] to log-mels (B, n_mels, F), in float32 on the device of the module."""

    window: Tensor  # (win_length,)
    filterbank: Tensor  # (n_mels, n_fft // 2 + 1)

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        for name, constant in self._constants().items():
            self.register_buffer(name, constant, persistent=False)

    def _constants(self) -> dict[str, Tensor]:
        c = self.config
        bank = mel_filterbank(c.sample_rate, c.n_fft, c.n_mels, c.f_min, c.f_max, c.scale, c.norm)
        return {"window": torch.hann_window(c.win_length, device="cpu"), "filterbank": bank}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move with the model but never change precision: log-mels of half-precision bands are 1e-2 off."""
        super()._apply(fn, recurse)
        for name, constant in self._constants().items():
            setattr(self, name, constant.to(getattr(self, name).device))
        return self

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log-mels (B, n_mels, F), F = config.frames(T); differentiable.

        lengths (B,), in samples: each item is then padded by reflection at its own end, and its first
        config.frames(length) frames are independent of the other items; later frames are the log of silence.
        Raises AudioError for items too short to reflect (length <= config.padding).
        """
        c = self.config
        shortest = wave.shape[-1] if lengths is None else int(lengths.min())
        if wave.dim() != 2 or shortest <= c.padding:
            raise AudioError(
                f"log-mel of a wave {tuple(wave.shape)}, shortest item {shortest} samples: give (batch, "
                f"samples) with at least {c.padding + 1} samples per item (pad with zeros)"
            )
        with torch.autocast(wave.device.type, enabled=False):
            padded = self._reflect(wave.float(), lengths)
            margin = c.n_fft - c.win_length
            window = functional.pad(self.window, (margin // 2, margin - margin // 2))
            strength = stft_magnitude(padded, window, c.hop_length, c.magnitude_eps)  # (B, F, n_fft // 2 + 1)
            strength = strength[:, : c.frames(wave.shape[-1])]
            mel = (strength.square() if c.power == 2.0 else strength) @ self.filterbank.T
            mel = mel.transpose(1, 2)
            if lengths is not None:
                frames = c.frames(lengths.to(mel.device))
                mel = mel * (torch.arange(mel.shape[-1], device=mel.device) < frames[:, None, None])
            return self._log(mel)

    def _reflect(self, wave: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T) -> (B, T + 2 padding)."""
        pad = self.config.padding
        if lengths is None:
            return functional.pad(wave[:, None], (pad, pad), mode="reflect")[:, 0]
        last = lengths.to(wave.device)[:, None] - 1
        index = torch.arange(-pad, wave.shape[-1] + pad, device=wave.device).abs()
        index = torch.where(index > last, 2 * last - index, index)
        return wave.gather(-1, index.clamp(min=0))

    def _log(self, mel: Tensor) -> Tensor:
        mel = mel.clamp(min=self.config.floor)
        if self.config.log == "ln":
            return mel.log()
        mel = mel.log10()
        if self.config.log == "log10":
            return mel
        loudest = mel.amax((-2, -1), keepdim=True)  # per item: the reference couples the items of a batch
        return (torch.maximum(mel, loudest - 8.0) + 4.0) / 4.0
