"""Training data for tokens -> frames: tokens, target frames and voice of each recording, cached; random crops.

Frames are log-mels at 24 kHz for S3Gen and latents for Learnable-Speech. The batch of a step is a pure function of
(seed, step), as in `vokens.train.data`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vokens import audio
from vokens.errors import ConfigError
from vokens.models.codec import Codec
from vokens.train.config import DataConfig
from vokens.train.data import Clip, RandomCrops, TensorBatch
from vokens.train.rows import Rows, cached_rows

Frames = Callable[[np.ndarray], np.ndarray]  # wave (N,) at its rate -> (T, D)


@dataclass(frozen=True)
class FlowBatch(TensorBatch):
    """Crops of B recordings."""

    tokens: Tensor  # (B, T) int64, zero beyond lengths
    frames: Tensor  # (B, D, ratio * T) float32, zero beyond ratio * lengths
    lengths: Tensor  # (B,) tokens
    voices: Tensor  # (B, V) float32 speaker vectors


def frame_rows(data: DataConfig, name: str, clips: Sequence[Clip], compute: Frames, rate: int) -> Rows:
    """Frames (T, D) of all clips; half precision keeps log-mels to 2e-3. name: of the cache."""
    paths = [clip.path for clip in clips]
    return cached_rows(
        data, name, paths, lambda path: compute(audio.load(path, rate)[0]), f"computing {name}"
    )


def token_rows(data: DataConfig, clips: Sequence[Clip], codec: Codec) -> Rows:
    """Tokens (T, K) of all clips; the cache's name holds the codec's fingerprint."""

    def tokens(path: Path) -> np.ndarray:
        return codec.encode(path).codes[0].T.to(torch.int32).numpy()

    name = f"tokens-{codec.name}-{codec.fingerprint[:8]}"
    return cached_rows(data, name, [clip.path for clip in clips], tokens, "encoding tokens")


@dataclass(eq=False)
class FlowCrops(RandomCrops[FlowBatch]):
    """Random crops of recordings that have tokens, frames and a voice: those in `usable`."""

    tokens: Rows
    frames: Rows
    voices: Rows
    ratio: int  # frames per token
    crop: int  # tokens of a crop; shorter recordings are taken whole
    batch_size: int  # crops per process
    seed: int
    shortest: int = 10  # recordings of fewer tokens are left out
    mean: np.ndarray | None = None  # (D,), by which frames are normalised; None leaves them as they are
    std: np.ndarray | None = None

    def __post_init__(self) -> None:
        tokens, frames, voices = (np.diff(rows.offsets) for rows in (self.tokens, self.frames, self.voices))
        whole = np.minimum(tokens, frames // self.ratio)
        self.sizes = np.where((whole >= self.shortest) & (voices > 0), whole, 0)
        if not self.sizes.any():
            raise ConfigError(
                f"no recording has {self.shortest} tokens, {self.ratio} frames for each of them, and a voice: give "
                "longer ones"
            )
        self.usable: list[int] = np.flatnonzero(self.sizes).tolist()
        self.width = self.frames[self.usable[0]].shape[1]
        super().__init__(self.sizes, self.batch_size, self.seed)

    def collate(self, drawn: list[tuple[int, float]]) -> FlowBatch:
        lengths = [min(self.crop, int(self.sizes[clip])) for clip, _ in drawn]
        longest, width = max(lengths), self.width
        tokens = np.zeros((len(drawn), longest), np.int64)
        frames = np.zeros((len(drawn), width, self.ratio * longest), np.float32)
        for row, ((clip, place), length) in enumerate(zip(drawn, lengths, strict=True)):
            start = int(place * (int(self.sizes[clip]) - length + 1))
            tokens[row, :length] = self.tokens[clip][start : start + length, 0]
            piece = self.frames[clip][self.ratio * start : self.ratio * (start + length)]
            if self.mean is not None and self.std is not None:
                piece = (piece - self.mean) / self.std
            frames[row, :, : len(piece)] = piece.T
        voices = np.concatenate([self.voices[clip] for clip, _ in drawn]).astype(np.float32)
        return FlowBatch(
            torch.from_numpy(tokens),
            torch.from_numpy(frames),
            torch.tensor(lengths),
            torch.from_numpy(voices),
        )
