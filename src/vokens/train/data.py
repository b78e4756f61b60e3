"""Training data: manifests of recordings, and random crops of their cached samples (`vokens.train.rows`).

The batch of step s is a pure function of (seed, s): resuming needs no more than the step, and n processes see
the rows that one would. Decoding Opus for each crop costs more CPU than a small model's training step, so samples
are decoded once into one int16 file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from vokens import audio
from vokens.audio_files import find_files
from vokens.data.items import Clip
from vokens.data.sources.records import clip_of, read_manifest
from vokens.errors import ConfigError
from vokens.train.config import DataConfig
from vokens.train.rows import Rows, cached_rows


def read_clips(
    source: str | Path, split: str | None = None, language: str | None = None, *, with_text: bool = False
) -> list[Clip]:
    """Recordings of a manifest or folder.

    Args:
        source: a folder (all audio below it), or a jsonl(.gz) file whose lines are ours (`path`, relative to the
            manifest), NeMo's (`audio_filepath`) or lhotse cuts (`recording`).
        split: keep lines whose `split` is this; lines without one are kept.
        language: keep recordings of this language, and those that name none. with_text: keep those with text.
    """
    source = Path(source)
    if source.is_dir():
        paths = find_files(source)
        clips = [Clip(str(path.relative_to(source).with_suffix("")), path) for path in paths]
    elif source.is_file():
        clips = [
            clip_of(utterance, source)
            for utterance in read_manifest(source)
            if utterance.split in (None, split or utterance.split)
        ]
    else:
        raise ConfigError(
            f"{source} is neither a folder nor a manifest: give a folder of audio or a jsonl file"
        )
    clips = [clip for clip in clips if language is None or clip.language in (None, language)]
    if with_text:
        clips = [clip for clip in clips if clip.text]
    if not clips:
        filters = [f" of split {split!r}"] * bool(split) + [f" in language {language!r}"] * bool(language)
        raise ConfigError(f"{source} has no recordings" + "".join(filters) + " with text" * with_text)
    return clips


def pcm_rows(data: DataConfig, clips: Sequence[Clip], sample_rate: int) -> Rows:
    """Samples of all clips at sample_rate, int16, width 1."""

    def decode(path: Path) -> np.ndarray:
        wave, _ = audio.load(path, sample_rate)
        return np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)[:, None]

    return cached_rows(data, f"pcm{sample_rate}", [clip.path for clip in clips], decode, "decoding audio")


def wave_of(samples: np.ndarray) -> np.ndarray:
    """Samples (N, 1) of `pcm_rows` as a wave (N,) float32 in [-1, 1]."""
    return samples[:, 0].astype(np.float32) / 32768


def features_at(rows: np.ndarray, seconds: np.ndarray, grid: tuple[float, float]) -> np.ndarray:
    """Features (T, S) float32 at T moments, by linear interpolation between rows; zeros where there are none.

    rows (N, S); grid: seconds between rows, and the moment of the first.
    """
    if len(rows) == 0:
        return np.zeros((len(seconds), rows.shape[1]), np.float32)
    place = np.clip((seconds - grid[1]) / grid[0], 0, len(rows) - 1)
    low = place.astype(int)
    high = np.minimum(low + 1, len(rows) - 1)
    weight = (place - low)[:, None].astype(np.float32)
    return rows[low].astype(np.float32) * (1 - weight) + rows[high].astype(np.float32) * weight


@dataclass(frozen=True)
class TensorBatch:
    """Base of batches, some of whose fields are tensors."""

    def to(self, device: torch.device) -> Self:
        """The batch with its tensors on a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})


@dataclass(frozen=True)
class Batch(TensorBatch):
    """A batch of crops."""

    wave: Tensor  # (B, N) float32 in [-1, 1], zero-padded where a clip is shorter
    lengths: Tensor  # (B,) samples that are speech
    teacher: Tensor | None  # (B, T, S) float32 features at the codec's frame rate


Drawn = TypeVar("Drawn")


class RandomCrops(Generic[Drawn]):
    """Batches of random crops, as `collate` makes them of (recording, place from 0 to 1).

    Args:
        sizes: of each recording; one is drawn in proportion, so that every second of speech is equally likely.
    """

    def __init__(self, sizes: np.ndarray, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.share = np.cumsum(sizes) / sizes.sum()

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Drawn:
        """The batch of a step: rows rank*B .. (rank+1)*B of the world*B rows drawn for it."""
        draw = np.random.default_rng((self.seed, step))
        clips = np.searchsorted(self.share, draw.random(world * self.batch_size), side="right")
        places = draw.random(world * self.batch_size)
        rows = range(rank * self.batch_size, (rank + 1) * self.batch_size)
        return self.collate([(int(clips[row]), float(places[row])) for row in rows])

    def fixed(self, clips: Sequence[int]) -> Drawn:
        """The middle crop of each of these clips."""
        return self.collate([(clip, 0.5) for clip in clips])

    def collate(self, drawn: list[tuple[int, float]]) -> Drawn:
        raise NotImplementedError


@dataclass(eq=False)
class Crops(RandomCrops[Batch]):
    """Random crops of a corpus."""

    pcm: Rows
    sample_rate: int
    crop: int  # samples per crop, a multiple of hop
    hop: int  # crops start on multiples of it, so that teacher frames align
    batch_size: int
    seed: int
    teacher: Rows | None = None  # features of all clips
    grid: tuple[float, float] = (0.02, 0.01)  # their spacing, and the middle of the first, in seconds

    def __post_init__(self) -> None:
        sizes = np.diff(self.pcm.offsets)
        if not sizes.any():
            raise ConfigError(
                f"none of the {len(self.pcm)} recordings can be read: see the errors above, and repair their paths"
            )
        super().__init__(sizes, self.batch_size, self.seed)

    def spread(self, most: int) -> Batch:
        """The middle crops of at most `most` clips, evenly spaced over the corpus."""
        count = min(most, len(self.pcm))
        return self.fixed(np.linspace(0, len(self.pcm) - 1, count).round().astype(int).tolist())

    def collate(self, drawn: list[tuple[int, float]]) -> Batch:
        wave = np.zeros((len(drawn), self.crop), np.float32)
        lengths, features = [], []
        for row, (clip, place) in zip(wave, drawn, strict=True):
            samples = self.pcm[clip]
            start = int(place * max(0, len(samples) - self.crop)) // self.hop * self.hop
            piece = wave_of(samples[start : start + self.crop])
            row[: len(piece)] = piece
            lengths.append(len(piece))
            if self.teacher is not None:
                middles = (start + (np.arange(self.crop // self.hop) + 0.5) * self.hop) / self.sample_rate
                features.append(features_at(self.teacher[clip], middles, self.grid))
        teacher = torch.from_numpy(np.stack(features)) if features else None
        return Batch(torch.from_numpy(wave), torch.tensor(lengths), teacher)
