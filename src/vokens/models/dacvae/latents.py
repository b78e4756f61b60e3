"""Continuous latents of recordings and what decoding them needs: the counterpart of `Tokens`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vokens.checkpoint import save_safetensors
from vokens.errors import TokensError


@dataclass(frozen=True, eq=False, repr=False)
class Latents:
    """Latents of B recordings."""

    values: Tensor  # (B, D, T) float32, zero beyond lengths
    lengths: Tensor  # (B,) int64 frames
    num_samples: Tensor  # (B,) int64 original samples at sample_rate, to which decoding cuts
    model: str  # of the weights that encoded, as the fingerprint
    fingerprint: str
    sample_rate: int
    frame_rate: float  # frames per second

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        items = "1 item" if len(self) == 1 else f"{len(self)} items"
        seconds = float(self.num_samples.sum()) / self.sample_rate
        return (
            f"Latents({self.model!r}, {items}, {seconds:.2f} s, {int(self.lengths.sum())} frames of "
            f"{self.values.shape[1]} numbers, {self.frame_rate:g} Hz)"
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        facts = {name: getattr(self, name) for name in ("model", "fingerprint", "sample_rate", "frame_rate")}
        tensors = {name: getattr(self, name) for name in ("values", "lengths", "num_samples")}
        save_safetensors(path, tensors, {"vokens.latents": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises TokensError for other files."""
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["vokens.latents"])
                return cls(**{name: file.get_tensor(name) for name in file.keys()}, **facts)  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise TokensError(f"{path} holds no latents ({error}): give a file of Latents.save") from error
