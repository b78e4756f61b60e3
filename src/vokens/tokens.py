"""`Tokens`: the discrete form of a batch of speech, with all that decoding it needs and nothing else.

Saved as one safetensors file (`.vok`): codes in the smallest integers that hold them, the facts as json in
the header, and a sha256 over both, so that no flipped bit is decoded. Also reads and writes json, npz and pt.
"""

import hashlib
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite, log2
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as dump_safetensors
from torch import Tensor

from vokens.atomic import atomic_write
from vokens.errors import TokensError

FORMAT = "vokens-tokens"
VERSION = 1
_FACTS = ("model", "fingerprint", "sample_rate", "frame_rate", "codebook_sizes", "first_codebook")
_ZIP_MAGIC = b"PK\x03\x04"

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """Codes of B items, K codebooks and up to T frames; immutable, checked when made.

    codes: (B, K, T) integers, `0 <= codes[:, k] < codebook_sizes[k]`; what lies beyond `lengths` is set to 0.
    lengths: (B,) frames of each item, at most T.
    num_samples: (B,) samples of the original audio at `sample_rate`; decoding cuts to these.
    model, fingerprint: the codec's name and 16 hex digits of its weights ("" when not known).
    frame_rate: frames per second (Hz). codebook_sizes: entries of each of the K codebooks.
    first_codebook: the place of codes[:, 0] among the codec's own codebooks (1 for layers 2 to 8 alone).
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
        codes = codes.masked_fill(beyond[:, None], 0)
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

    # What they are

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

    def entropy(self) -> Tensor:
        """(K,) float64, bits: the empirical entropy of each codebook over all valid frames (0 with none)."""
        frames = self.codes.transpose(1, 2)[self._valid()]  # (frames of all items, K)
        bits = torch.zeros(self.num_codebooks, dtype=torch.float64)
        for k, column in enumerate(frames.cpu().unbind(1)):
            count = torch.unique(column, return_counts=True)[1].double()
            share = count / count.sum()
            bits[k] = -(share * share.log2()).sum()
        return bits

    def _valid(self) -> Tensor:
        """(B, T) bool, true on frames within lengths."""
        return torch.arange(self.codes.shape[2], device=self.codes.device) < self.lengths[:, None]

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

    # Parts and wholes

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
            raise TokensError(
                f"select({start}, {stop}) of {self.num_codebooks} codebooks: "
                f"give 0 <= start < stop <= {self.num_codebooks}"
            )
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
        """Write a `.vok` file, whole or not at all. The same tokens always give the same bytes."""
        arrays = self._arrays()
        header = self._header()
        header["checksum"] = _checksum(header, arrays)
        # One metadata entry only: safetensors does not keep the order of several, and the bytes would vary.
        _write(path, dump_safetensors(arrays, {FORMAT: json.dumps(header, sort_keys=True)}))

    @staticmethod
    def load(path: PathLike) -> "Tokens":
        """Read `.vok`, json, npz or pt; the content decides which, not the suffix."""
        path = Path(path)
        return _READERS[_kind(path)](path)

    def to_json(self, path: PathLike) -> None:
        """Write json for people: the facts, then one line of codes per item and codebook, unpadded."""
        _write(path, self._json_text().encode())

    @staticmethod
    def from_json(path: PathLike) -> "Tokens":
        """Read what `to_json` wrote."""
        return _read_json(Path(path))

    def to_npz(self, path: PathLike) -> None:
        """Write a compressed numpy archive: codes, lengths, num_samples, [global_vector], header (json)."""
        arrays = {**self._arrays(), "header": np.array(json.dumps(self._header(), sort_keys=True))}
        with _writing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    @staticmethod
    def from_npz(path: PathLike) -> "Tokens":
        """Read what `to_npz` wrote."""
        return _read_npz(Path(path))

    def to_pt(self, path: PathLike) -> None:
        """Write a dict for `torch.load(path, weights_only=True)`: int64 tensors and a dict of facts."""
        tensors = {"codes": self.codes, "lengths": self.lengths, "num_samples": self.num_samples}
        if self.global_vector is not None:
            tensors["global_vector"] = self.global_vector
        content = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        with _writing(path) as temporary:
            torch.save({**content, "header": self._header()}, temporary)

    @staticmethod
    def from_pt(path: PathLike) -> "Tokens":
        """Read what `to_pt` wrote; nothing in the file is executed."""
        return _read_pt(Path(path))

    def _header(self) -> dict[str, Any]:
        facts = {name: getattr(self, name) for name in _FACTS}
        return {"format": FORMAT, "version": VERSION, **facts, "codebook_sizes": list(self.codebook_sizes)}

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            "codes": self.codes.cpu().numpy().astype(_smallest_dtype(self.codebook_sizes)),
            "lengths": self.lengths.cpu().numpy(),
            "num_samples": self.num_samples.cpu().numpy(),
        }
        if self.global_vector is not None:
            arrays["global_vector"] = self.global_vector.cpu().numpy()
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def _json_text(self) -> str:
        facts = "".join(f"  {json.dumps(k)}: {json.dumps(v)},\n" for k, v in self._header().items())
        return "{\n" + facts + '  "items": [\n' + ",\n".join(map(_json_item, self)) + "\n  ]\n}\n"


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
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise TokensError(f"{name} is {value!r}: give a whole number of at least {least}")
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
        raise TokensError(
            f"global_vector has {len(vector)} rows for {batch} items: give one per item, (B, D)"
        )
    if not bool(torch.isfinite(vector).all()):
        raise TokensError("global_vector holds NaN or infinity: encode again from sound audio")
    return vector.detach().to(device, torch.float32)


def _cat_vectors(vectors: list[Tensor | None]) -> Tensor | None:
    present = [vector for vector in vectors if vector is not None]
    if not present:
        return None
    if len(present) < len(vectors) or len({vector.shape[1] for vector in present}) > 1:
        raise TokensError(
            "some tokens have a global_vector and others none, or one of another size: not one codec"
        )
    return torch.cat(present)


# Writing and reading files


def _smallest_dtype(sizes: tuple[int, ...]) -> type[np.integer]:
    if max(sizes) <= 1 << 8:
        return np.uint8
    return np.uint16 if max(sizes) <= 1 << 16 else np.int32


def _checksum(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """sha256 over the header and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _json_item(item: Tokens) -> str:
    rows = ",\n".join(f"      {json.dumps(row)}" for row in item.codes[0].tolist())
    vector = (
        ""
        if item.global_vector is None
        else f', "global_vector": {json.dumps(item.global_vector[0].tolist())}'
    )
    return f'    {{"num_samples": {int(item.num_samples[0])}{vector}, "codes": [\n{rows}\n    ]}}'


@contextmanager
def _writing(path: PathLike) -> Iterator[Path]:
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or error
        raise TokensError(
            f"cannot write {path}: {reason}; check the folder, its rights and its space"
        ) from error


def _write(path: PathLike, content: bytes) -> None:
    with _writing(path) as temporary:
        temporary.write_bytes(content)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokensError(f"cannot read {path}: {error.strerror or error}") from error


def _kind(path: Path) -> str:
    content = _read(path)
    if content[:4] == _ZIP_MAGIC:
        try:
            names = zipfile.ZipFile(path).namelist()
        except zipfile.BadZipFile as error:
            raise _damaged(path) from error
        return "pt" if any(name.endswith("/data.pkl") for name in names) else "npz"
    if content[8:9] == b"{" and content[:8].count(0) >= 4:  # 8 bytes of header length, then the header
        return "vok"
    if content.lstrip()[:1] == b"{":
        return "json"
    raise TokensError(
        f"{path} ({len(content)} bytes) is not a token file: give a .vok file, or json, npz or pt written by Tokens"
    )


def _damaged(path: Path) -> TokensError:
    return TokensError(f"{path} is damaged or truncated: copy or encode it again")


def _read_vok(path: Path) -> Tokens:
    content = _read(path)
    try:
        arrays = load_safetensors(content)
        (length,) = struct.unpack("<Q", content[:8])
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if FORMAT not in metadata:
        raise TokensError(
            f"{path} is a safetensors file without tokens (tensors {', '.join(sorted(arrays)[:4])}): "
            "weights are opened with vokens.load"
        )
    header = _parse_json(metadata[FORMAT], path)
    _check_version(header, path)
    if header.pop("checksum", None) != _checksum(header, arrays):
        raise TokensError(f"{path} is damaged, its checksum does not agree: copy or encode it again")
    return _build(header, arrays, path)


def _read_json(path: Path) -> Tokens:
    header = _parse_json(_read(path), path)
    _check_version(header, path)
    items = header.pop("items", None)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise TokensError(f'{path} has no list "items": write it with Tokens.to_json')
    sizes = header.get("codebook_sizes")
    try:
        rows = [np.asarray(item["codes"], dtype=np.int64).reshape(len(sizes), -1) for item in items]
        frames = max((row.shape[1] for row in rows), default=0)
        codes = np.zeros((len(rows), len(sizes), frames), dtype=np.int64)
        for i, row in enumerate(rows):
            codes[i, :, : row.shape[1]] = row
        arrays = {
            "codes": codes,
            "lengths": np.array([row.shape[1] for row in rows], dtype=np.int64),
            "num_samples": np.array([item["num_samples"] for item in items], dtype=np.int64),
        }
        if any("global_vector" in item for item in items):
            arrays["global_vector"] = np.array([item["global_vector"] for item in items], dtype=np.float32)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TokensError(
            f'{path} has an item without "num_samples" or with "codes" that are not one equally long row of '
            f"integers per codebook ({error})"
        ) from error
    return _build(header, arrays, path)


def _read_npz(path: Path) -> Tokens:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path) from error
    return _from_header(arrays, path)


def _read_pt(path: Path) -> Tokens:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TokensError(f"{path} holds more than tensors and is not opened, it could run code") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise TokensError(f"{path} holds a {type(content).__name__}, not tokens: write it with Tokens.to_pt")
    arrays = {name: value.numpy() for name, value in content.items() if isinstance(value, Tensor)}
    header = content.get("header")
    return _from_header({**arrays, "header": np.array(json.dumps(header) if header else "{}")}, path)


def _from_header(arrays: dict[str, np.ndarray], path: Path) -> Tokens:
    header = _parse_json(str(arrays.pop("header", "{}")), path)
    _check_version(header, path)
    return _build(header, arrays, path)


def _parse_json(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise TokensError(f"{path} is not readable json ({error}): copy or encode it again") from error
    if not isinstance(header, dict):
        raise TokensError(
            f"{path} holds a json {type(header).__name__}, not tokens: write it with Tokens.to_json"
        )
    return header


def _check_version(header: dict[str, Any], path: Path) -> None:
    if header.get("format") != FORMAT or not isinstance(header.get("version"), int):
        raise TokensError(f"{path} holds no tokens (format is {header.get('format')!r}, not {FORMAT!r})")
    if header["version"] > VERSION:
        raise TokensError(
            f"{path} is in version {header['version']} of the format, this vokens reads up to {VERSION}: upgrade vokens"
        )


def _build(header: dict[str, Any], arrays: dict[str, np.ndarray], path: Path) -> Tokens:
    tensors = {
        name: arrays[name] for name in ("codes", "lengths", "num_samples", "global_vector") if name in arrays
    }
    missing = [name for name in _FACTS if name not in header]
    missing += [name for name in ("codes", "lengths", "num_samples") if name not in tensors]
    if missing:
        raise TokensError(f"{path} lacks {', '.join(missing)}: encode it again")
    try:
        values: dict[str, Any] = {
            name: torch.from_numpy(array if array.dtype == np.float32 else array.astype(np.int64))
            for name, array in tensors.items()
        }
        return Tokens(**values, **{name: header[name] for name in _FACTS})
    except (TokensError, TypeError, ValueError) as error:
        raise TokensError(f"{path}: {error}") from error


_READERS = {"vok": _read_vok, "json": _read_json, "npz": _read_npz, "pt": _read_pt}
