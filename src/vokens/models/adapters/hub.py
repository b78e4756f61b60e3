"""Tokenizers that transformers ships: its networks and weights, our batches, lengths and errors.

Each recording is computed alone: these networks pad with zeros, reflections or attention that later layers see,
so a batch would change codes. The config is the hub's own, kept unchanged, so that a saved folder is complete.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from vokens.errors import CheckpointError, ConfigError, needs_extra
from vokens.models.codec import Codec
from vokens.text.files import read_json

# Not part of the network's config.
_PASSING = ("transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype")


@dataclass(frozen=True)
class HubConfig:
    """values: the content of the hub's config.json."""

    values: dict[str, Any]


class HubCodec(Codec):
    """A codec around one network of transformers, in `network`; `system` is its model_type."""

    Config = HubConfig
    classes: ClassVar[tuple[str, str]]  # of transformers: the network's and its config's
    network: Any  # a PreTrainedModel

    def __init__(self, config: HubConfig, network: Any = None) -> None:
        super().__init__(config)
        if network is None:
            with _quiet():
                network = self.network_class()(self.network_config(config.values))
        self.network = network
        self.sample_rate, self.hop_length, self.codebook_sizes = self.sizes(network.config)

    def sizes(self, config: Any) -> tuple[int, int, tuple[int, ...]]:
        """Sample rate (Hz), samples of a frame, entries of each codebook, of a config of transformers."""
        raise NotImplementedError

    def encode_row(self, wave: Tensor) -> Tensor:
        """Codes (1, K, T) of a wave (1, 1, N)."""
        raise NotImplementedError

    def decode_row(self, codes: Tensor, first_codebook: int) -> Tensor:
        """Wave (1, 1, M), M at least T * hop_length less a few samples, of codes (1, K, T)."""
        raise NotImplementedError

    @classmethod
    def network_class(cls) -> Any:
        return transformers_class(cls.classes[0])

    @classmethod
    def network_config(cls, values: dict[str, Any]) -> Any:
        """Raises ConfigError for values that transformers does not accept."""
        try:
            return transformers_class(cls.classes[1]).from_dict(dict(values))
        except (TypeError, ValueError, KeyError) as error:
            raise ConfigError(f"this is no config of {cls.system}: {error}") from error

    @classmethod
    def from_folder(cls, folder: Path, config: Any) -> Self | None:
        """A folder as the hub has it: config.json with this model_type, model.safetensors. Strict."""
        values = _hub_config(folder)
        if values.get("model_type") != cls.system:
            return None
        with _quiet():
            try:
                network, info = cls.network_class().from_pretrained(
                    folder,
                    config=cls.network_config(values),
                    local_files_only=True,
                    output_loading_info=True,
                    dtype=torch.float32,
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise CheckpointError(f"{folder} is no {cls.system} of transformers: {error}") from error
        wrong = {name: sorted(map(str, keys))[:3] for name, keys in info.items() if keys}
        if wrong:
            raise CheckpointError(f"the weights in {folder} do not fit {cls.system}: {wrong}")
        return cls.of(network, values)

    @classmethod
    def of(cls, network: Any, values: dict[str, Any] | None = None) -> Self:
        """The codec around a network of transformers that is in memory."""
        values = json.loads(network.config.to_json_string()) if values is None else values
        return cls(HubConfig({k: v for k, v in values.items() if k not in _PASSING}), network)

    def encode_batch(self, wave: Tensor, lengths: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
        frames = self.num_frames(lengths)
        shape = len(wave), num_codebooks, int(frames.max())
        codes = torch.zeros(shape, dtype=torch.int64, device=wave.device)
        for row, (samples, count) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
            row_codes = self.encode_row(wave[row : row + 1, None, :samples].to(self.dtype))
            codes[row, :, :count] = row_codes[0, :num_codebooks, :count]
        return codes, frames

    def decode_batch(self, codes: Tensor, lengths: Tensor, first_codebook: int) -> Tensor:
        waves = torch.zeros(len(codes), codes.shape[2] * self.hop_length, device=codes.device)
        for row, count in enumerate(lengths.tolist()):
            wave = self.decode_row(codes[row : row + 1, :, :count], first_codebook)[0, 0]
            kept = min(len(wave), waves.shape[1])
            waves[row, :kept] = wave[:kept]
        return waves


def to_whole_frames(wave: Tensor, hop: int) -> Tensor:
    """(..., N) with zeros after it up to a multiple of hop."""
    return F.pad(wave, (0, -wave.shape[-1] % hop))


def sum_of(layers: Any, codes: Tensor, first: int) -> Tensor:
    """Sum of the embeddings of codes (B, K, T) of residual layers `first` and on."""
    parts = [layers[first + k].decode(codes[:, k]) for k in range(codes.shape[1])]
    return torch.stack(parts).sum(0)


def transformers_class(name: str) -> Any:
    """A class of transformers. Raises MissingExtra without it, or where it is too old to have that class."""
    with needs_extra("transformers", "hf", "This tokenizer"):
        import transformers
    try:
        return getattr(transformers, name)
    except AttributeError as error:
        raise ConfigError(
            f"transformers {transformers.__version__} has no {name}: pip install --upgrade transformers"
        ) from error


def _hub_config(folder: Path) -> dict[str, Any]:
    try:
        values = read_json(folder / "config.json")
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings about what `from_folder` checks itself, or its progress bar."""
    theirs = transformers_class("utils").logging
    bar, level = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    theirs.disable_progress_bar()
    theirs.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bar:
            theirs.enable_progress_bar()
