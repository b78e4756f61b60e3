"""Codecs computed by a library: no torch network, one recording at a time, packets that cannot be split.

A packet's bytes are its codes: as many codebooks of 256 entries as it has bytes, the last one smaller where its
bits do not fill a byte. So `bitrate` is what is sent, and tokens of a library travel like all others.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from vokens.errors import ConfigError, TokensError
from vokens.models.codec import Codec
from vokens.tokens import Tokens


class LibraryCodec(Codec):
    """A codec without a torch network.

    delay: samples by which the library's decoder lags behind the encoder's input; it is cut off here.
    packets: whether the codes of a frame are one packet, which cannot be split.
    """

    packets: ClassVar[bool] = True
    delay: int = 0

    @classmethod
    def from_folder(cls, folder: Path, config: Any) -> Self | None:
        """The codec of a config; it has no files."""
        return cls(config) if isinstance(config, cls.Config) else None

    def encode_row(self, wave: np.ndarray, frames: int) -> np.ndarray:
        """Codes (K, frames) of a wave (frames * hop_length,) float32 in [-1, 1]."""
        raise NotImplementedError

    def decode_row(self, codes: np.ndarray, first_codebook: int) -> np.ndarray:
        """Wave (T * hop_length,) float32 of codes (K, T), `delay` samples late."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def set_dtype(self, dtype: torch.dtype) -> Self:
        raise ConfigError(f"{dtype} was given: {self.name} is computed by a library, leave the type out")

    def num_frames(self, num_samples: Tensor | int) -> Any:
        """Frames until the last sample has left the decoder: ceil((N + delay) / hop_length)."""
        return -(-(num_samples + self.delay) // self.hop_length)

    def encode_batch(self, wave: Tensor, lengths: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        frames = self.num_frames(lengths)
        codes = torch.zeros(len(wave), num_codebooks, int(frames.max()), dtype=torch.int64)
        for row, (samples, count) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
            padded = np.zeros(count * self.hop_length, np.float32)
            padded[:samples] = wave[row, :samples].cpu().numpy()
            codes[row, :, :count] = torch.from_numpy(self.encode_row(padded, count)[:num_codebooks])
        return codes, frames

    def decode_batch(self, codes: Tensor, lengths: Tensor, first_codebook: int) -> Tensor:
        waves = torch.zeros(len(codes), codes.shape[2] * self.hop_length)
        for row, count in enumerate(lengths.tolist()):
            late = self.decode_row(codes[row, :, :count].cpu().numpy(), first_codebook)
            waves[row, : len(late) - self.delay] = torch.from_numpy(late[self.delay :])
        return waves

    def _count_codebooks(self, num_codebooks: int | None) -> int:
        if self.packets and num_codebooks not in (None, self.num_codebooks):
            raise ConfigError(
                f"num_codebooks={num_codebooks} was given: the {self.num_codebooks} bytes of a packet of {self.name} "
                "go together"
            )
        return super()._count_codebooks(num_codebooks)

    def _check(self, tokens: Tokens) -> None:
        super()._check(tokens)
        if self.packets and tokens.num_codebooks != self.num_codebooks:
            raise TokensError(
                f"{tokens.num_codebooks} codebooks were given: the {self.num_codebooks} bytes of a packet of "
                f"{self.name} go together"
            )
