"""Log mel filter-bank energies as Kaldi computes them (`compute-fbank-feats`), for speaker encoders.

Frames are cut without padding; each loses its mean, is pre-emphasised and weighted by Povey's window (a Hann
window to the power .85). The filters are triangles on the mel axis, not on the frequency axis as elsewhere.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vokens.errors import AudioError

FRAME, HOP, N_FFT = 400, 160, 512  # samples at 16 kHz: 25 ms frames each 10 ms, padded to a power of two
PRE_EMPHASIS = 0.97
FLOOR = torch.finfo(torch.float32).eps  # of an energy of samples in [-1, 1]: silence is ln(eps) = -15.9424


def kaldi_fbank(wave: Tensor, n_mels: int = 80) -> Tensor:
    """Natural-log mel energies (..., F, n_mels) float32 of 16 kHz waves (..., T) in [-1, 1].

    F = 1 + (T - 400) // 160; bands from 20 Hz to 8 kHz, power spectrum, no dither, no energy column. Kaldi
    itself works on 16-bit integer scale: its values are higher by 2 ln 32768 = 20.79 above the floor.
    Raises AudioError below 400 samples.
    """
    if wave.shape[-1] < FRAME:
        raise AudioError(f"fbank needs at least {FRAME} samples at 16 kHz (25 ms), got {wave.shape[-1]}")
    frames = wave.float().unfold(-1, FRAME, HOP)  # (..., F, 400)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - PRE_EMPHASIS * previous) * _povey_window().to(wave.device)
    power = torch.fft.rfft(F.pad(frames, (0, N_FFT - FRAME))).abs().square()  # (..., F, 257)
    return (power @ _filters(n_mels).to(wave.device)).clamp_min(FLOOR).log()


@cache
def _povey_window() -> Tensor:
    return torch.hann_window(FRAME, periodic=False, dtype=torch.float64).pow(0.85).float()


@cache
def _filters(n_mels: int) -> Tensor:
    """Triangles (257, n_mels) over m = 1127 ln(1 + f/700); the last bin, Nyquist, belongs to none."""
    hertz = torch.tensor([20.0, 8000.0], dtype=torch.float64)
    low, high = 1127 * torch.log1p(hertz / 700)
    edges = torch.linspace(float(low), float(high), n_mels + 2, dtype=torch.float64)
    bins = torch.arange(N_FFT // 2, dtype=torch.float64) * (16000 / N_FFT)
    mel = (1127 * torch.log1p(bins / 700))[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_min(0)
    return F.pad(triangles, (0, 0, 0, 1)).float()
