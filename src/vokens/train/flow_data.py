"""Training data for tokens -> frames: tokens, target frames and voice of each recording, cached; random crops.

Frames are log-mels at 24 kHz for S3Gen and latents for Learnable-Speech. The batch of a step is a pure function of
(seed, step), as in `vokens.train.data`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vokens import audio
from vokens.errors import ConfigError
from vokens.models.codec import Codec
from vokens.train.config import DataConfig
from vokens.train.data import Clip, RandomCrops, TensorBatch, paths_of
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

    def frames(number: int) -> np.ndarray:
        return compute(audio.load(clips[number].path, rate)[0])

    return cached_rows(data, name, paths_of(clips), frames, f"computing {name}")


def token_rows(data: DataConfig, clips: Sequence[Clip], codec: Codec) -> Rows:
    """Tokens (T, K) of all clips; the cache's name holds the codec's fingerprint."""

    def tokens(number: int) -> np.ndarray:
        return codec.encode(clips[number].path).codes[0].T.to(torch.int32).numpy()

    name = f"tokens-{codec.name}-{codec.fingerprint[:8]}"
    return cached_rows(data, name, paths_of(clips), tokens, "encoding tokens")


class FlowCrops(RandomCrops[FlowBatch]):
    """Random crops of recordings that have tokens, frames and a voice.

    Args:
        ratio: frames per token. crop: tokens of a crop; shorter recordings are taken whole.
        batch_size: crops per process. shortest: recordings of fewer tokens are left out; the others are `usable`.
        mean, std: (D,), by which frames are normalised; None leaves them as they are.
    """

    def __init__(
        self,
        tokens: Rows,
        frames: Rows,
        voices: Rows,
        *,
        ratio: int,
        crop: int,
        batch_size: int,
        seed: int,
        shortest: int = 10,
        mean: np.ndarray | None = None,
        std: np.ndarray | None = None,
    ) -> None:
        self.tokens, self.frames, self.voices = tokens, frames, voices
        self.ratio, self.crop = ratio, crop
        whole = np.minimum(np.diff(tokens.offsets), np.diff(frames.offsets) // ratio)
        self.sizes = np.where((whole >= shortest) & (np.diff(voices.offsets) > 0), whole, 0)
        if not self.sizes.any():
            raise ConfigError(
                f"no recording has {shortest} tokens, {ratio} frames for each of them, and a voice: give longer ones"
            )
        self.mean, self.std = mean, std
        self.usable: list[int] = np.flatnonzero(self.sizes).tolist()
        self.width = frames[self.usable[0]].shape[1]
        super().__init__(self.sizes, batch_size, seed)

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
