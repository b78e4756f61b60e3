"""`Tokens`: the discrete form of a batch of speech, with everything that decoding needs.

One immutable value from encoder to file to decoder: padded codes, lengths, and the codec and codebooks that they
belong to. Validated on construction, so that no later step checks again.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, log2
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vokens import token_files
from vokens.errors import TokensError
from vokens.one_or_list import type_name

PathLike = str | os.PathLike[str]
_FACTS = ("model", "fingerprint", "sample_rate", "frame_rate", "codebook_sizes", "first_codebook")
_TENSORS = ("codes", "lengths", "num_samples", "global_vector")


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """Codes of B items, K codebooks and up to T frames; immutable, validated on construction.

    codes: (B, K, T) integers, `0 <= codes[:, k] < codebook_sizes[k]`; padding beyond `lengths` is set to 0.
    lengths: (B,) frames of each item, at most T.
    num_samples: (B,) samples of the original audio at `sample_rate`; decoding cuts to these.
    model, fingerprint: the codec's name and 16 hex digits of its weights ("" when not known).
    frame_rate: frames per second (Hz). codebook_sizes: entries of each of the K codebooks.
    first_codebook: the index of codes[:, 0] among the codec's codebooks (1 for layers 2 to 8).
    global_vector: (B, D) float32, one vector per item, for codecs that have one (SoCodec's speaker).

    Raises TokensError for anything else.
    """

    codes: Tensor
    lengths: Tensor
    num_samples: Tensor
    model: str
    fingerprint: str
    sample_rate: int
    frame_rate: float
    codebook_sizes: tuple[int, ...]
    first_codebook: int = 0
    global_vector: Tensor | None = None

    def __post_init__(self) -> None:
        codes = _integers("codes", self.codes, 3, "(B, K, T)")
        batch, num_codebooks, frames = codes.shape
        lengths = _counts("lengths", self.lengths, batch, codes.device)
        if batch and int(lengths.max()) > frames:
            raise TokensError(
                f"lengths has {int(lengths.max())} frames but codes {tuple(codes.shape)} only {frames}: "
                "lengths counts frames, not samples"
            )
        sizes = tuple(_whole_number("codebook_sizes", size, 1) for size in self.codebook_sizes)
        if num_codebooks == 0 or len(sizes) != num_codebooks:
            raise TokensError(
                f"codes {tuple(codes.shape)} have {num_codebooks} codebooks but codebook_sizes names "
                f"{len(sizes)}: give one size per codebook, and at least one codebook"
            )
        if not (isfinite(self.frame_rate) and self.frame_rate > 0):
            raise TokensError(f"frame_rate is {self.frame_rate}: give frames per second, above 0")
        for name in ("model", "fingerprint"):
            if not isinstance(getattr(self, name), str):
                raise TokensError(f"{name} is {getattr(self, name)!r}: give a text ('' when not known)")
        beyond = torch.arange(frames, device=codes.device) >= lengths[:, None]
        # Always exactly one copy of the input: hours of codes have hundreds of MB.
        fill = Tensor.masked_fill if codes.dtype == self.codes.dtype else Tensor.masked_fill_
        codes = fill(codes, beyond[:, None], 0)
        _check_range(codes, sizes)
        checked = {
            "codes": codes,
            "lengths": lengths,
            "num_samples": _counts("num_samples", self.num_samples, batch, codes.device),
            "sample_rate": _whole_number("sample_rate", self.sample_rate, 1),
            "frame_rate": float(self.frame_rate),
            "codebook_sizes": sizes,
            "first_codebook": _whole_number("first_codebook", self.first_codebook, 0),
            "global_vector": _vectors(self.global_vector, batch, codes.device),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    # Properties

    @property
    def num_codebooks(self) -> int:
        """K, the codebooks present."""
        return self.codes.shape[1]

    @property
    def bitrate(self) -> float:
        """Bits per second of audio: log2 of every codebook size, summed, times the frame rate."""
        return sum(log2(size) for size in self.codebook_sizes) * self.frame_rate

    @property
    def duration(self) -> Tensor:
        """(B,) float64, seconds of the original audio of each item."""
        return self.num_samples.double() / self.sample_rate

    @property
    def batch_kind(self) -> tuple[Any, ...]:
        """Properties that tokens of one batch share."""
        vector = None if self.global_vector is None else self.global_vector.shape[1]
        return (*(getattr(self, name) for name in _FACTS), vector)

    def entropy(self) -> Tensor:
        """(K,) float64, bits: the empirical entropy of each codebook over all valid frames (0 with none)."""
        valid = torch.arange(self.codes.shape[2], device=self.codes.device) < self.lengths[:, None]  # (B, T)
        frames = self.codes.transpose(1, 2)[valid]  # (valid frames of all items, K)
        bits = torch.zeros(self.num_codebooks, dtype=torch.float64)
        for k, column in enumerate(frames.cpu().unbind(1)):
            bits[k] = codebook_use(column.numpy(), 1)[1]
        return bits

    def __repr__(self) -> str:
        sizes = self.codebook_sizes
        uniform = len(set(sizes)) == 1
        books = f"{len(sizes)} x {sizes[0]}" if uniform else " + ".join(map(str, sizes))
        first = f" from codebook {self.first_codebook}" if self.first_codebook else ""
        items = "1 item" if len(self) == 1 else f"{len(self)} items"
        return (
            f"Tokens({self.model!r}, {items}, {float(self.duration.sum()):.2f} s, "
            f"{int(self.lengths.sum())} frames of {books}{first}, {self.frame_rate:g} Hz, "
            f"{self.bitrate / 1000:.3g} kbit/s)"
        )

    # Items and codebooks

    def __len__(self) -> int:
        return self.codes.shape[0]

    def __iter__(self) -> Iterator["Tokens"]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice) -> "Tokens":
        """One item (B = 1) or a slice of items, cut to its longest item."""
        if not isinstance(index, slice):
            item = range(len(self))[index]  # IndexError outside, and negative indices
            index = slice(item, item + 1)
        lengths = self.lengths[index]
        frames = int(lengths.max()) if len(lengths) else 0
        return replace(
            self,
            codes=self.codes[index, :, :frames],
            lengths=lengths,
            num_samples=self.num_samples[index],
            global_vector=None if self.global_vector is None else self.global_vector[index],
        )

    def select(self, start: int = 0, stop: int | None = None) -> "Tokens":
        """Codebooks start (included) to stop (not included), counted among the K present."""
        stop = self.num_codebooks if stop is None else stop
        if not 0 <= start < stop <= self.num_codebooks:
            raise TokensError(f"select({start}, {stop}): 0 <= start < stop <= {self.num_codebooks} is needed")
        return replace(
            self,
            codes=self.codes[:, start:stop],
            codebook_sizes=self.codebook_sizes[start:stop],
            first_codebook=self.first_codebook + start,
        )

    def to(self, device: str | torch.device) -> "Tokens":
        """The same tokens with all tensors on another device."""
        return replace(self, codes=self.codes.to(device))

    @staticmethod
    def cat(parts: Sequence["Tokens"]) -> "Tokens":
        """One batch of all items, in order. The parts must come from the same codec and codebooks."""
        parts = list(parts)
        if not parts:
            raise TokensError("no tokens to join: give at least one Tokens")
        first = parts[0]
        for i, part in enumerate(parts):
            for name in _FACTS:
                ours, theirs = getattr(first, name), getattr(part, name)
                if ours != theirs:
                    raise TokensError(
                        f"tokens 0 and {i} differ in {name} ({ours!r}, {theirs!r}): join only tokens of one "
                        "codec and the same codebooks (Tokens.select picks a range)"
                    )
        frames = max(part.codes.shape[2] for part in parts)
        padded = [torch.nn.functional.pad(part.codes, (0, frames - part.codes.shape[2])) for part in parts]
        return replace(
            first,
            codes=torch.cat(padded),
            lengths=torch.cat([part.lengths for part in parts]),
            num_samples=torch.cat([part.num_samples for part in parts]),
            global_vector=_cat_vectors([part.global_vector for part in parts]),
        )

    # Files

    def save(self, path: PathLike) -> None:
        """Write a `.vok` file atomically. Equal tokens give equal bytes."""
        token_files.write_vok(path, *self._parts())

    @staticmethod
    def load(path: PathLike) -> "Tokens":
        """Read `.vok`, json, npz or pt; the content decides which, and nothing in it is executed."""
        return Tokens._from_parts(path, *token_files.read(Path(path)))

    from_json = from_npz = from_pt = load

    def to_json(self, path: PathLike) -> None:
        """Write json for people: the facts, then one line of codes per item and codebook, unpadded."""
        token_files.write_json(path, *self._parts())

    def to_npz(self, path: PathLike) -> None:
        """Write a compressed numpy archive: codes, lengths, num_samples, [global_vector], header (json)."""
        token_files.write_npz(path, *self._parts())

    def to_pt(self, path: PathLike) -> None:
        """Write a dict for `torch.load(path, weights_only=True)`: int64 tensors and a dict of facts."""
        token_files.write_pt(path, *self._parts())

    def _parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The facts as json values and the tensors as arrays, for all file formats."""
        facts = {name: getattr(self, name) for name in _FACTS}
        arrays = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        return (
            {**facts, "codebook_sizes": list(self.codebook_sizes)},
            {name: np.ascontiguousarray(tensor.cpu().numpy()) for name, tensor in arrays.items()},
        )

    @staticmethod
    def _from_parts(path: PathLike, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Tokens":
        missing = [name for name in _FACTS if name not in facts]
        missing += [name for name in _TENSORS[:3] if name not in arrays]
        if missing:
            raise TokensError(f"{path} lacks {', '.join(missing)}: encode it again")
        fields: dict[str, Any] = {name: torch.from_numpy(arrays[name]) for name in _TENSORS if name in arrays}
        try:
            return Tokens(**fields, **{name: facts[name] for name in _FACTS})
        except (TokensError, TypeError) as error:
            raise TokensError(f"{path}: {error}") from error


def codebook_use(codes: np.ndarray, size: int) -> tuple[float, float]:
    """Share of the `size` entries that occur in codes (N,), and the entropy of their frequencies in bits."""
    counts = np.unique(codes, return_counts=True)[1]
    return len(counts) / size, entropy(counts)


def entropy(counts: np.ndarray) -> float:
    """Bits per symbol of a histogram."""
    share = counts[counts > 0] / max(1e-12, counts.sum())
    return float(-(share * np.log2(share)).sum()) + 0.0


def padded_ids(ids: Any, num_codebooks: int) -> tuple[Tensor, Tensor]:
    """Codes (B, K, T), zero beyond their lengths (B,), from integers in any form that `Codec.tokens` takes.

    Raises TokensError for anything else.
    """
    accepted = f"integers (B, K, T) or (K, T), or a list of (K, T), K from 1 to {num_codebooks}"
    if num_codebooks == 1:
        accepted = "integers (T,), (B, T) or (B, 1, T), or a list of (T,)"
    try:
        items = [torch.as_tensor(item) for item in ids]
        if items and items[0].dim() == 0 and num_codebooks == 1:
            items = [torch.stack(items)]
        if items and items[0].dim() == 1:
            items = [item[None] for item in items] if num_codebooks == 1 else [torch.stack(items)]
        shapes = [(item.dim(), item.dtype, len(item)) for item in items]
        if not items or len(set(shapes)) > 1 or shapes[0][0] != 2 or not 1 <= shapes[0][2] <= num_codebooks:
            raise ValueError(f"shapes {sorted({tuple(item.shape) for item in items})[:3]}")
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise TokensError(f"{type_name(ids)} was given as ids ({error}): give {accepted}") from error
    codes = [_integers("ids", item, 2, "(K, T)").T for item in items]  # (T, K)
    return pad_sequence(codes, batch_first=True).transpose(1, 2), torch.tensor([len(item) for item in codes])


# Checks of single fields


def _integers(name: str, tensor: Tensor, dims: int, shape: str) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.dim() != dims:
        given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TokensError(f"{name} is {given}: give an integer tensor {shape}")
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TokensError(f"{name} has dtype {tensor.dtype}: give integers {shape}, such as torch.int64")
    return tensor.detach().to(torch.int64)


def _counts(name: str, tensor: Tensor, batch: int, device: torch.device) -> Tensor:
    counts = _integers(name, tensor, 1, "(B,)").to(device)
    if len(counts) != batch:
        raise TokensError(f"{name} has {len(counts)} entries for {batch} items: give one per item, (B,)")
    if batch and int(counts.min()) < 0:
        raise TokensError(f"{name} holds {int(counts.min())}: counts start at 0")
    return counts


def _whole_number(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value < 2**63:
        raise TokensError(f"{name} is {value!r}: give a whole number of at least {least} and below 2^63")
    return int(value)


def _check_range(codes: Tensor, sizes: tuple[int, ...]) -> None:
    if codes.numel() == 0:
        return
    low, high = codes.amin(dim=(0, 2)).tolist(), codes.amax(dim=(0, 2)).tolist()
    for k, size in enumerate(sizes):
        if low[k] < 0 or high[k] >= size:
            wrong = low[k] if low[k] < 0 else high[k]
            raise TokensError(
                f"codes[:, {k}] holds {wrong}, but its codebook has {size} entries (0 to {size - 1}): "
                "check codebook_sizes, the order of the axes (B, K, T), and lengths if this is padding"
            )


def _vectors(vector: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
    if vector is None:
        return None
    if not isinstance(vector, Tensor) or not vector.is_floating_point() or vector.dim() != 2:
        raise TokensError("global_vector must be a float tensor (B, D), or None")
    if len(vector) != batch:
        raise TokensError(f"global_vector has {len(vector)} rows for {batch} items: give one per item (B, D)")
    if not bool(torch.isfinite(vector).all()):
        raise TokensError("global_vector holds NaN or infinity: encode again from sound audio")
    return vector.detach().to(device, torch.float32)


def _cat_vectors(vectors: list[Tensor | None]) -> Tensor | None:
    present = [vector for vector in vectors if vector is not None]
    if not present:
        return None
    if len(present) < len(vectors) or len({vector.shape[1] for vector in present}) > 1:
        raise TokensError("some tokens have a global_vector, others none or another size: not one codec")
    return torch.cat(present)
