"""The harmonic source of HiFT (neural source filter, arXiv 1904.12088): pitch in, nine sines and noise out.

Pitch is constant over a frame, so the phase of every sample has a closed form over phases at frame rate, which are
summed in float64 modulo one turn: no drift in long audio, and a stream keeps one number per harmonic. Randomness is
the published order of draws, or a hash of (seed, harmonic, sample), which no batch and no chunk can change.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vokens.errors import ConfigError
from vokens.models.s3gen.config import HiFTNetConfig
from vokens.nn.float32 import Float32
from vokens.nn.padding import WHOLE, Padding
from vokens.nn.product import Linear


class Draws(Protocol):
    """The randomness of a source of B rows and H sines, on a device."""

    def phase(self, device: torch.device) -> Tensor:
        """(B, H, 1) turns in [-0.5, 0.5)."""
        ...

    def noise(self, start: int, count: int, device: torch.device) -> Tensor:
        """(B, H, count) values for the samples from `start` on: normal, of v3 uniform in [0, 1)."""
        ...


@dataclass(frozen=True)
class GivenDraws:
    """Draws that are at hand: turns (B, H, 1) and values (B, H, N)."""

    turns: Tensor
    values: Tensor

    def phase(self, device: torch.device) -> Tensor:
        return self.turns.to(device)

    def noise(self, start: int, count: int, device: torch.device) -> Tensor:
        return self.values[..., start : start + count].to(device)

    @classmethod
    def published(
        cls,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        samples: Sequence[int],
        sines: int,
        version: str,
    ) -> "GivenDraws":
        """The draws of the published code, in its order: seeded, a batch of one gives its samples.

        generator: None for torch's own; or one per row, and rows are independent of each other.
        samples: of each row. sines: harmonics. version: of the source ("v1", "v2" or "v3", which has one noise for
        all rows of a generator).
        """
        if generator is None or isinstance(generator, torch.Generator):
            return cls(*_published(generator, len(samples), max(samples), sines, version))
        if len(generator) != len(samples):
            raise ConfigError(f"{len(generator)} generators were given for {len(samples)} rows")
        rows = [_published(one, 1, n, sines, version) for one, n in zip(generator, samples, strict=True)]
        noise = [F.pad(noise, (0, max(samples) - noise.shape[-1])) for _, noise in rows]
        return cls(torch.cat([phase for phase, _ in rows]), torch.cat(noise))


def _published(
    generator: torch.Generator | None, batch: int, samples: int, sines: int, version: str
) -> tuple[Tensor, Tensor]:
    device = "cpu" if generator is None else generator.device
    if version == "v3":
        phase = torch.rand(1, sines, 1, generator=generator, device=device) - 0.5  # nothing reads it
        noise = torch.rand(1, samples, sines, generator=generator, device=device).transpose(1, 2)
        return phase.expand(batch, -1, -1), noise.expand(batch, -1, -1)
    phase = torch.rand(batch, sines, 1, generator=generator, device=device) - 0.5
    noise = torch.empty(batch, sines, samples, device=device)
    # v2 fills a transposed view, which torch walks in memory order one value at a time: other numbers than v1's.
    (noise if version == "v1" else noise.transpose(1, 2)).normal_(generator=generator)
    torch.randn(batch, samples, 1, generator=generator, device=device)  # drawn and never used, as published
    return phase, noise


class KeyedDraws:
    """Values that depend on seed, harmonic and sample position only: for batches, streams and every device.

    uniform: noise in [0, 1), of v3, instead of a normal one.
    """

    def __init__(self, seeds: Sequence[int], sines: int, uniform: bool = False) -> None:
        self.seeds, self.sines, self.uniform = seeds, sines, uniform

    def phase(self, device: torch.device) -> Tensor:
        return _uniform(self._hash(-1, 1, device) >> 40) - 0.5

    def noise(self, start: int, count: int, device: torch.device) -> Tensor:
        bits = self._hash(start, count, device)
        if self.uniform:
            return _uniform(bits >> 40)
        radius = (-2 * _uniform(bits >> 40, 1).log()).sqrt()
        return radius * (2 * math.pi * _uniform(bits >> 16)).cos()  # Box and Muller 1958

    def _hash(self, start: int, count: int, device: torch.device) -> Tensor:
        """int64 (B, H, count)."""
        seeds = torch.tensor([seed % 2**63 for seed in self.seeds], device=device)[:, None, None]
        rows = _scramble(_scramble(seeds) + torch.arange(self.sines, device=device)[:, None])
        return _scramble(rows + torch.arange(start, start + count, device=device))


class ReleasedDraws:
    """The noise of CosyVoice 3's released vocoder, which is the same for every utterance: a stretch of torch's stream
    of seed 0 that begins where the published loader has built its modules. Drawn again as far as it is read: the
    published table takes 259 MB and ends after 300 s.
    """

    BEFORE = 5_052_961  # values that the loader has drawn; one phase per sine follows

    def __init__(self, rows: int, sines: int) -> None:
        self.rows, self.sines = rows, sines

    def phase(self, device: torch.device) -> Tensor:
        return torch.zeros(self.rows, self.sines, 1, device=device)

    def noise(self, start: int, count: int, device: torch.device) -> Tensor:
        skipped = self.BEFORE + self.sines * (1 + start)
        drawn = _stream_of_seed_0(skipped, count * self.sines).view(count, self.sines)
        return drawn.T.to(device).expand(self.rows, -1, -1)


def _stream_of_seed_0(start: int, count: int) -> Tensor:
    """Values start ... start + count - 1 that torch.rand gives of seed 0 on the CPU; 5 ns each, those before too."""
    generator, block = torch.Generator().manual_seed(0), 1 << 20
    for place in range(0, start, block):
        torch.rand(min(block, start - place), generator=generator)
    return torch.rand(count, generator=generator)


def _scramble(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014) on int64, which wraps around."""
    x = x * -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ (x >> 31 & (1 << 33) - 1)


def _uniform(bits: Tensor, least: int = 0) -> Tensor:
    """24 bits as float32 in [0, 1), or (0, 1] with least=1."""
    return ((bits & 0xFFFFFF) + least).float() * 2.0**-24


class HarmonicSource(Float32):
    """Sines at multiples of the pitch, with noise, mixed to one signal: `m_source` of the published layout."""

    def __init__(self, config: HiFTNetConfig) -> None:
        super().__init__()
        self.config = config
        self.l_linear = Linear(config.nb_harmonics + 1, 1)

    def forward(self, f0: Tensor, draws: Draws, padding: Padding = WHOLE) -> Tensor:
        """Source (B, 1, N) in [-1, 1], N = T * hop, of the pitch (B, T) in Hz; 0 is unvoiced."""
        sines = self.sines(f0.float(), draws, padding)
        return torch.tanh(self.l_linear(sines.transpose(1, 2))).transpose(1, 2)

    @torch.no_grad()
    def sines(self, f0: Tensor, draws: Draws, padding: Padding = WHOLE) -> Tensor:
        """(B, H, N): nb_harmonics + 1 sines where voiced, and noise: little there, much elsewhere."""
        c = self.config
        harmonics = torch.arange(1, c.nb_harmonics + 2, device=f0.device)
        steps = f0[:, None] * harmonics[:, None] / c.sampling_rate  # (B, H, T) turns per sample
        voiced = (f0 > c.nsf_voiced_threshold).float()[:, None].repeat_interleave(c.hop_length, -1)
        if c.arithmetic == "published":
            angle = self._published(steps)
        else:
            turns = {"v1": self._turns_v1, "v2": self._turns_v2, "v3": self._turns_v3}[c.source]
            angle = 2 * math.pi * turns(steps, padding)
        if c.source == "v1":  # from a random phase, but the fundamental starts at 0
            angle = angle + 2 * math.pi * F.pad(draws.phase(f0.device)[:, 1:], (0, 0, 1, 0))
        sine, voiced = padding.join(self, torch.sin(angle), voiced)
        noise = draws.noise(padding.start, sine.shape[-1], f0.device)
        loudness = voiced * c.nsf_sigma + (1 - voiced) * (c.nsf_alpha / 3)
        return c.nsf_alpha * sine * voiced + loudness * noise

    def _turns_v1(self, steps: Tensor, padding: Padding) -> Tensor:
        """The running sum of the steps of all samples up to each one: (B, H, N) turns, whole ones left out."""
        each = exact(steps)
        before = padding.before((self, "turns"), each * self.config.hop_length)  # (B, H, T)
        inside = torch.arange(1, self.config.hop_length + 1, device=steps.device, dtype=each.dtype)
        return (before[..., None] + each[..., None] * inside).remainder(1).flatten(-2).to(steps)

    def _turns_v2(self, steps: Tensor, padding: Padding) -> Tensor:
        """Phase on straight lines between the centres of frames, constant before the first and after the last.

        The published code adds a random phase to the first sample, then reads only the middle of each frame: it
        has no effect, and there is none here.
        """
        hop = self.config.hop_length
        each = exact(steps).remainder(1) * hop
        before = padding.before((self, "turns"), each)  # the phase at the centre of the frame before
        share = (torch.arange(hop, device=each.device, dtype=each.dtype) + 0.5) / hop
        # From half a frame before each frame.
        turns = (before[..., None] + each[..., None] * share).flatten(-2)
        if padding.start == 0 and turns.shape[-1]:
            held = (before + each)[..., :1].expand(-1, -1, hop // 2)
            turns = torch.cat([held, turns[..., hop:]], -1)
        if padding.last:
            held = (before + each)[..., -1:].expand(-1, -1, hop // 2)
            turns = torch.cat([turns, held], -1)
        return turns.remainder(1).to(steps)

    def _turns_v3(self, steps: Tensor, padding: Padding) -> Tensor:
        """Phase after each whole frame, held over its samples; as of v2, the random phase has no effect."""
        each = exact(steps).remainder(1) * self.config.hop_length
        held = (padding.before((self, "turns"), each) + each).remainder(1)
        return held.repeat_interleave(self.config.hop_length, -1).to(steps)

    def _published(self, steps: Tensor) -> Tensor:
        """Angles as the published code rounds them."""
        hop = self.config.hop_length
        if self.config.source == "v1":
            return 2 * math.pi * steps.repeat_interleave(hop, -1).cumsum(-1).remainder(1)
        centres = steps.remainder(1).transpose(1, 2).cumsum(1).transpose(1, 2) * 2 * math.pi * hop
        if self.config.source == "v3":
            return centres.repeat_interleave(hop, -1)
        return F.interpolate(centres, scale_factor=hop, mode="linear")


def exact(x: Tensor) -> Tensor:
    """In float64, where the device has it."""
    return x.float() if x.device.type == "mps" else x.double()
