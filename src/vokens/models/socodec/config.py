"""Sizes of SoCodec (arXiv 2409.00933); the defaults are the released `socodec_16384x4_120ms_16khz_chinese`.

`SoCodecConfig.of_paper` gives every configuration of the paper, 1 to 8 streams at 40, 120 or 240 ms.
"""

import math
from dataclasses import dataclass
from typing import Literal

from vokens.config import check_choices, check_positive
from vokens.errors import ConfigError

RATE = 16000  # Hz, of HuBERT and of the mel
SSL_HOP = 320  # samples between HuBERT's frames
MEL_HOP = 160  # samples between mel frames
_STRIDES = {40: (2,), 120: (2, 3), 240: (2, 2, 3)}  # frame shift in ms -> strides of the encoder


@dataclass(frozen=True)
class SoCodecConfig:
    """Sizes of SoCodec."""

    num_streams: int = 4  # K, ordered: the first carries most
    # Codebooks of a stream, each of codebook_size entries of width codebook_dim; a code is its digits in base
    # codebook_size, the lowest first.
    digits: int = 2
    codebook_size: int = 128
    codebook_dim: int = 128
    # Of the encoder, from HuBERT's 50 frames per second on; the decoders mirror them.
    strides: tuple[int, ...] = (2, 3)
    width: int = 1024  # channels of encoder and decoders, and width of the global vector
    groups: int = 32  # of their residual units
    n_mels: int = 80
    # Of the ECAPA network for the global vector, as speaker_attention and speaker_squeeze.
    speaker_channels: tuple[int, ...] = (256, 256, 256, 256, 768)
    speaker_attention: int = 64
    speaker_squeeze: int = 64
    # "bigvgan", as published, of vocoder_width channels after its first convolution, halved at each of
    # vocoder_strides; or "vocos", of vocoder_layers blocks of vocoder_width channels, seven times faster.
    vocoder: Literal["bigvgan", "vocos"] = "bigvgan"
    vocoder_width: int = 512
    vocoder_layers: int = 8
    vocoder_strides: tuple[int, ...] = (5, 4, 2, 2, 2)
    vocoder_kernels: tuple[int, ...] = (11, 8, 4, 4, 4)
    # Input of the encoder: "hubert", as published, or "mel", a log-mel through two convolutions, for which no
    # HuBERT is needed.
    features: Literal["hubert", "mel"] = "hubert"
    hubert: bool = True  # whether HuBERT is part of this codec; without it, it decodes and does not encode
    # Of the encoder's features, whichever they are, and of those that the semantic decoder predicts.
    hubert_width: int = 1024
    hubert_layers: int = 24
    hubert_heads: int = 16
    hubert_hidden: int = 4096
    hubert_conv_width: int = 512
    # "float16" computes its features as the published command does.
    hubert_dtype: Literal["float32", "float16"] = "float32"
    # Audio up to this length is one window of HuBERT, as published; longer audio has windows of this length, so
    # that memory is bounded.
    window_seconds: float = 60.0
    context_seconds: float = 6.0  # on either side of a window's output

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, free=("window_seconds", "context_seconds"))
        if not self.strides:
            raise ConfigError("no strides were given: at least one is needed, e.g. [2, 3] for 120 ms")
        if len(self.vocoder_strides) != len(self.vocoder_kernels):
            raise ConfigError("vocoder_strides and vocoder_kernels must be of equal length")
        if math.prod(self.vocoder_strides) != MEL_HOP:
            raise ConfigError(f"vocoder_strides={self.vocoder_strides}: their product must be {MEL_HOP}")
        if len(self.speaker_channels) != 5:
            raise ConfigError(f"speaker_channels={self.speaker_channels}: five numbers are accepted")
        if self.width % self.groups:
            raise ConfigError(f"width {self.width} must be a multiple of the {self.groups} groups")
        if self.context_tokens < 9 or self.window_tokens <= 2 * self.context_tokens:
            raise ConfigError(
                f"window_seconds={self.window_seconds}, context_seconds={self.context_seconds}: the context must hold "
                f"9 tokens ({9 * self.hop_length / RATE:g} s), which the encoder sees, the window more than twice it"
            )

    @property
    def hop_length(self) -> int:
        """Samples per token."""
        return SSL_HOP * math.prod(self.strides)

    @property
    def stream_size(self) -> int:
        """Codes of one stream."""
        return self.codebook_size**self.digits

    @property
    def window_tokens(self) -> int:
        return round(self.window_seconds * RATE / self.hop_length)

    @property
    def context_tokens(self) -> int:
        return round(self.context_seconds * RATE / self.hop_length)

    @classmethod
    def of_paper(cls, num_streams: int = 4, frame_ms: int = 120) -> "SoCodecConfig":
        """A configuration of the paper (section 4): 1, 2, 4 or 8 streams of 16384 codes, 40, 120 or 240 ms."""
        if num_streams not in (1, 2, 4, 8) or frame_ms not in _STRIDES:
            raise ConfigError(f"{num_streams} streams at {frame_ms} ms: 1, 2, 4, 8 and 40, 120, 240 exist")
        return cls(num_streams=num_streams, codebook_dim=512 // num_streams, strides=_STRIDES[frame_ms])


RELEASES = {"socodec_16384x4_120ms_16khz_chinese": SoCodecConfig()}
