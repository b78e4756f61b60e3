"""Pulse and noise source at the pitch in the latents (neural source-filter models, arXiv 1904.12088), which supplies
phase.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vokens.audio.f0 import track_pitch
from vokens.nn.float32 import Float32

MIDDLE, LOWEST, HIGHEST = 150.0, 50.0, 600.0  # Hz
NOISE = 0.3
PERIOD = 1 << 17  # samples after which the noise repeats, 5 s


def pitch_latents(wave: Tensor, sample_rate: int, hop: int, steps: int) -> Tensor:
    """Pitch latents (B, 2 * steps, T) of waves (B, N), tracked `steps` times per hop: octaves above 150 Hz,
    interpolated where unvoiced; and 1 where voiced, -1 where unvoiced."""
    tracks = [track_pitch(row, sample_rate, hop // steps) for row in wave.float().cpu().numpy()]
    rows = [np.stack([_filled(track), np.where(track > 0, 1.0, -1.0)]) for track in tracks]
    both = torch.from_numpy(np.stack(rows)).to(wave)  # (B, 2, steps * T)
    return both.unflatten(2, (-1, steps)).transpose(2, 3).flatten(1, 2)


def _filled(track: np.ndarray) -> np.ndarray:
    places = np.flatnonzero(track)
    if not len(places):
        return np.zeros(len(track))
    return np.interp(np.arange(len(track)), places, np.log2(track[places] / MIDDLE))


def hertz(latents: Tensor) -> Tensor:
    """Frequencies (B, steps * T) of latents (B, 2 * steps, T); 0 where there is no pitch."""
    octaves, voiced = (each.mT.flatten(1).float() for each in latents.chunk(2, 1))
    return torch.where(voiced > 0, (MIDDLE * octaves.exp2()).clamp(LOWEST, HIGHEST), 0.0)


def turns_of(frequency: Tensor, hop: int, sample_rate: int, start: Tensor | None = None) -> Tensor:
    """Turns (B, F) in [0, 1), float64, at the first sample of each step of `hop` samples; frequencies (B, F) in Hz.

    start: (B,) turns at the first of all, 0 by default.
    """
    turns = F.pad((frequency.double() * (hop / sample_rate)).cumsum(1), (1, -1))
    return (turns if start is None else turns + start[:, None]).remainder(1)


class Pulses(Float32):
    """Frequencies and turns (B, F) -> wave (B, F * hop): all harmonics at one amplitude, rms 1, and noise, of rms NOISE
    beside pulses and 1 where there are none (0 Hz). The noise of a sample depends on its position only."""

    table: Tensor  # (PERIOD,)

    def __init__(self, hop: int, sample_rate: int) -> None:
        super().__init__()
        self.hop, self.sample_rate = hop, sample_rate
        noise = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0))
        self.register_buffer("table", noise, persistent=False)

    def forward(self, frequency: Tensor, turns: Tensor, first: int = 0) -> Tensor:
        """first: place of the first step, for the noise."""
        # In float64: the highest of 50 harmonics turns 50 times as far, and by a pulse two small sines are divided.
        step = torch.arange(self.hop, device=frequency.device).double() / self.sample_rate
        angle = 2 * math.pi * (turns.double()[..., None] + frequency.double()[..., None] * step)
        count = (0.45 * self.sample_rate / frequency.clamp(min=LOWEST)).floor()[..., None]
        half = (angle / 2).sin()
        # Dirichlet's kernel: the sum of cos(k angle), k = 1 ... count. At a pulse it is count.
        small = half.abs() < 1e-4
        total = ((count + 0.5) * angle).sin() / torch.where(small, 1.0, half) / 2 - 0.5
        wave = torch.where(small, count, total).float() * (2 / count).sqrt()
        count = frequency.shape[1] * self.hop
        place = (torch.arange(count, device=frequency.device) + first * self.hop) % PERIOD
        noise, voiced = self.table[place].view(-1, self.hop), (frequency > 0)[..., None]
        return torch.where(voiced, wave + NOISE * noise, noise).flatten(1)
