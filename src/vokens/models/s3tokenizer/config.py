"""Sizes of S3Tokenizer and its four releases, which are one encoder with different settings."""

from dataclasses import dataclass
from typing import Any, Literal

from vokens.checkpoint import later
from vokens.config import check_choices, check_positive
from vokens.errors import ConfigError


@dataclass(frozen=True)
class S3TokenizerConfig:
    """Sizes of S3Tokenizer; the defaults are `speech_tokenizer_v2_25hz` (CosyVoice 2, arXiv 2412.10117)."""

    n_mels: int = 128
    width: int = 1280
    heads: int = 20
    layers: int = 6
    # Mel frames per step of the first convolution: 1 gives 50 tokens per second, 2 gives 25.
    first_stride: int = 2
    # "sinusoid" adds a table of max_positions tokens, "rotary" rotates queries and keys.
    positions: Literal["sinusoid", "rotary"] = "rotary"
    max_positions: int = 1500
    memory_taps: int = 31  # of the FSMN beside each attention; 0 = none
    # 2 adds a last norm and a convolution of stride 2 on the states, so that the encoder of an ASR model, such as
    # Whisper's, can be the trunk of a tokenizer at 25 Hz.
    merge: int = later(1)
    # "vq", a codebook of codebook_size, or "fsq", whose codebook_size is a power of fsq_levels.
    quantizer: Literal["vq", "fsq"] = "fsq"
    codebook_size: int = 6561
    fsq_levels: int = later(3)
    # Of the layer norms, as mlp_eps. s3tokenizer 0.2.0 and older took attn_eps 1e-6 for v2, against the released
    # graph; 1 token of 250 differs.
    attn_eps: float = 1e-5
    mlp_eps: float = 1e-5
    # "complete" gives one token for every 2 * first_stride mel frames. "published" merges windows as s3tokenizer
    # 0.3.0 does, which loses up to 2 s of tokens of some recordings over 52 s.
    long_audio: Literal["complete", "published"] = "complete"

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self, free=("memory_taps", "attn_eps", "mlp_eps"))
        for name, accepted in {"first_stride": (1, 2), "merge": (1, 2), "fsq_levels": (3, 5, 7, 9)}.items():
            if getattr(self, name) not in accepted:
                raise ConfigError(f"{name}={getattr(self, name)!r} was given: {accepted} are accepted")
        if self.width % (2 * self.heads):
            raise ConfigError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        if self.memory_taps < 0 or (self.memory_taps and self.memory_taps % 2 == 0):
            raise ConfigError(f"memory_taps={self.memory_taps} was given: an odd count is accepted")
        if self.quantizer == "fsq" and self.codebook_size != self.fsq_levels**self.fsq_dims:
            raise ConfigError(
                f"codebook_size={self.codebook_size} was given: fsq takes a power of its levels, "
                f"e.g. {self.fsq_levels**4}"
            )

    @property
    def hop(self) -> int:
        """Mel frames per token."""
        return 2 * self.first_stride * self.merge

    @property
    def fsq_dims(self) -> int:
        """Digits of an id, each of fsq_levels."""
        dims = 1
        while self.fsq_levels ** (dims + 1) <= self.codebook_size:
            dims += 1
        return dims


_V1: dict[str, Any] = {"positions": "sinusoid", "memory_taps": 0, "quantizer": "vq", "codebook_size": 4096}
RELEASES: dict[str, S3TokenizerConfig] = {
    "speech_tokenizer_v1": S3TokenizerConfig(first_stride=1, **_V1),
    "speech_tokenizer_v1_25hz": S3TokenizerConfig(**_V1),
    "speech_tokenizer_v2_25hz": S3TokenizerConfig(),
    "speech_tokenizer_v3_25hz": S3TokenizerConfig(layers=12),
}
