"""Batches of whole utterances with their texts, of similar durations, for recognition.

The batch of a step is a pure function of (seed, step), and so is its augmentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vokens.errors import ConfigError
from vokens.train.buckets import Buckets
from vokens.train.data import TensorBatch, features_at, wave_of
from vokens.train.rows import Rows

SMALLEST_BUCKET = 32  # utterances


@dataclass(frozen=True)
class AugmentConfig:
    """Data augmentation: SpecAugment (arXiv 1904.08779), of mels or of the features of a frozen trunk, and speed
    perturbation as in Kaldi's recipes."""

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)  # one is drawn for each utterance; 1.1 is faster and higher
    bands: int = 2  # masks over frequency
    band_share: float = 0.15  # the largest share of the mels that each hides
    gaps: int = 2  # masks over time
    gap_share: float = 0.05  # the largest share of the utterance that each hides

    def __post_init__(self) -> None:
        if not self.speeds or min(self.speeds) < 0.5 or max(self.speeds) > 2:
            raise ConfigError(f"augment.speeds = {self.speeds}: factors from 0.5 to 2 are accepted")
        if not (0 <= self.band_share <= 1 and 0 <= self.gap_share <= 1):
            raise ConfigError(f"augment.band_share and gap_share are shares from 0 to 1, got {self}")


@dataclass(frozen=True)
class UtteranceBatch(TensorBatch):
    """Utterances with their texts."""

    wave: Tensor  # (B, N) float32, zero-padded
    lengths: Tensor  # (B,) samples
    texts: Tensor  # (B, L) int64 symbols, 0 beyond each end
    text_lengths: Tensor  # (B,)
    teacher: Tensor | None  # (B, T, S) features at the middles of the tokens
    trunk: Tensor | None = None  # (B, T', D) features of a frozen trunk, zero-padded


@dataclass(eq=False)
class Utterances:
    """Batches of whole utterances of a corpus."""

    pcm: Rows  # samples of all clips
    clips: Sequence[int]  # which of them
    texts: Sequence[list[int]]  # the symbols of each of these
    sample_rate: int
    hop: int  # samples per token
    seconds: float  # duration of a batch per process, padding included
    seed: int
    speeds: Sequence[float] = (1.0,)
    teacher: Rows | None = None  # features of all clips
    grid: tuple[float, float] = (0.02, 0.01)  # their spacing, and the middle of the first, in seconds
    trunk: Rows | None = None  # features of a frozen trunk for all clips

    def __post_init__(self) -> None:
        if not self.clips:
            raise ConfigError(
                "no utterance is left to train on: see above what was left out, and give others"
            )
        samples = np.diff(self.pcm.offsets)[np.asarray(self.clips)]
        slowest = self.sample_rate * min(self.speeds)
        self.buckets = Buckets(
            np.argsort(samples, kind="stable"),
            lambda row: int(self.seconds / (samples[row] / slowest)),
            smallest=SMALLEST_BUCKET,
            seed=self.seed,
        )
        self.batches_per_epoch = self.buckets.batches_per_epoch

    def batch(self, number: int, rank: int = 0, world: int = 1) -> UtteranceBatch:
        """Batch `number`: this process's share of the rows drawn for all processes."""
        rows = self.buckets.rows(number, rank, world)
        draw = np.random.default_rng((self.seed, number, 1))
        speeds = draw.choice(np.asarray(self.speeds), world * len(rows))  # of the rows of all processes
        return self._collate(rows, np.split(speeds, world)[rank])

    def fixed(self) -> list[tuple[list[int], UtteranceBatch]]:
        """All utterances once, without augmentation, in batches with their places in `clips`."""
        return [(rows, self._collate(rows, np.ones(len(rows)))) for rows in self.buckets.fixed()]

    def _collate(self, rows: Sequence[int] | np.ndarray, speeds: np.ndarray) -> UtteranceBatch:
        waves = [self._wave(int(row), float(speed)) for row, speed in zip(rows, speeds, strict=True)]
        texts = [torch.tensor(self.texts[row]) for row in rows]
        teacher = trunk = None
        if self.teacher is not None:
            longest = -(-max(len(wave) for wave in waves) // self.hop)
            features = [
                self._features(int(row), float(s), longest) for row, s in zip(rows, speeds, strict=True)
            ]
            teacher = torch.from_numpy(np.stack(features))
        if self.trunk is not None:
            states = [torch.from_numpy(np.array(self.trunk[self.clips[int(row)]])).float() for row in rows]
            trunk = pad_sequence(states, batch_first=True)
        return UtteranceBatch(
            wave=pad_sequence([torch.from_numpy(wave) for wave in waves], batch_first=True),
            lengths=torch.tensor([len(wave) for wave in waves]),
            texts=pad_sequence(texts, batch_first=True),
            text_lengths=torch.tensor([len(text) for text in texts]),
            teacher=teacher,
            trunk=trunk,
        )

    def _wave(self, row: int, speed: float) -> np.ndarray:
        wave = wave_of(self.pcm[self.clips[row]])
        return wave if speed == 1 else soxr.resample(wave, self.sample_rate * speed, self.sample_rate, "LQ")

    def _features(self, row: int, speed: float, tokens: int) -> np.ndarray:
        """Teacher features (tokens, S) at the middles of the tokens."""
        assert self.teacher is not None
        middles = (np.arange(tokens) + 0.5) * self.hop / self.sample_rate * speed
        return features_at(self.teacher[self.clips[row]], middles, self.grid)


def masked(
    mel: Tensor, frames: Tensor, augment: AugmentConfig, generators: Sequence[torch.Generator]
) -> Tensor:
    """SpecAugment: mel (B, n_mels, F) with bands and gaps set to each row's mean; frames (B,), a generator for
    each row."""
    bands, longest = mel.shape[1:]
    mean = mel.mean((1, 2), keepdim=True)

    def spans(count: int, share: float, size: Tensor, positions: int) -> Tensor:
        """(B, positions) bool: inside one of `count` random spans."""
        chance = torch.stack([torch.rand(2, count, 1, generator=own) for own in generators]).to(mel.device)
        width = chance[:, 0] * share
        start = chance[:, 1] * (1 - width)
        place = (torch.arange(positions, device=mel.device) + 0.5) / size[:, None, None]
        return ((place >= start) & (place < start + width)).any(1)

    size = torch.full_like(frames, bands)
    hidden = spans(augment.bands, augment.band_share, size, bands)[:, :, None]
    hidden = hidden | spans(augment.gaps, augment.gap_share, frames, longest)[:, None, :]
    return torch.where(hidden, mean, mel)
