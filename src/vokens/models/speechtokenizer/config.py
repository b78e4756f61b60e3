"""Sizes of SpeechTokenizer, and their published names."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from vokens.config import check_choices, check_positive
from vokens.errors import ConfigError
from vokens.text.files import read_json


@dataclass(frozen=True)
class SpeechTokenizerConfig:
    """Sizes of SpeechTokenizer (arXiv 2308.16692); defaults are the published ELU model, 16 kHz, 50 Hz, 8 x 1024."""

    n_filters: int = 64  # channels after the first convolution
    # Of the decoder from the inside out; the encoder has them reversed. Their product is the hop.
    strides: tuple[int, ...] = (8, 5, 4, 2)
    dimension: int = 1024  # width of the quantized vector
    semantic_dim: int = 768  # width of the teacher's features; equal to dimension, there is no projection
    bidirectional: bool = True  # whether the encoder's LSTM also runs backwards (the decoder's never does)
    dilation_base: int = 2  # residual unit j of a stage has dilation dilation_base**j
    residual_kernel_size: int = 3
    residual_layers: int = 1
    lstm_layers: int = 2
    activation: Literal["ELU", "Snake"] = "ELU"
    codebook_size: int = 1024
    num_codebooks: int = 8
    sample_rate: int = 16000
    # Train codebooks as speechtokenizer 1.0.1 does, faults included (see quantize/rvq.py).
    published_training: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        check_positive(self)
        if not self.strides:
            raise ConfigError("no strides were given: at least one is needed, e.g. [8, 5, 4, 2]")

    @classmethod
    def from_published(cls, source: Mapping[str, Any] | str | Path) -> "SpeechTokenizerConfig":
        """From a published config.json (its path or content); its training settings are ignored."""
        if isinstance(source, (str, Path)):
            try:
                source = read_json(source)
            except ConfigError as error:
                raise ConfigError(f"not a readable config.json: {error}") from error
        if not isinstance(source, Mapping):
            raise ConfigError(f"a config.json holds one object, not {type(source).__name__}")
        missing = sorted(set(PUBLISHED.values()) - set(source))
        if missing:
            raise ConfigError(f"the published config lacks {missing}: give the config.json of the weights")
        values: dict[str, Any] = {ours: source[published] for ours, published in PUBLISHED.items()}
        values["strides"] = tuple(values["strides"])
        return cls(**values)

    def to_published(self) -> dict[str, Any]:
        """The content of a published config.json."""
        values = {published: getattr(self, ours) for ours, published in PUBLISHED.items()}
        return {**values, "strides": list(self.strides)}


# The 13 settings of the published config.json: ours -> published.
PUBLISHED = {field.name: field.name for field in fields(SpeechTokenizerConfig)} | {
    "semantic_dim": "semantic_dimension",
    "residual_layers": "n_residual_layers",
    "num_codebooks": "n_q",
}
del PUBLISHED["published_training"]
