"""`shard-000012.bin` and `.idx`: Megatron-LM's indexed dataset (MMIDIDX, version 1), and `.jsonl` with the keys.

A document is an utterance: its codes frame by frame, codebook k shifted by the sizes of those before it, then the
end of document, id sum(sizes), because Megatron concatenates documents and finds their borders by it. A
language model over these files thus has sum(sizes) + 1 ids. Give `--data-path` the path without suffix.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vokens.data.items import CodecInfo, Row
from vokens.data.outputs.output import AGAIN, Output, Shard, read_lines, to_record, write_lines
from vokens.errors import TokensError

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<QBQQ")  # version, type of ids, number of sequences, number of document borders
_VERSION = 1
_TYPES = {np.dtype("<u2"): 8, np.dtype("<i4"): 4}  # Megatron's type codes


class Megatron(Output):
    """Packed ids, memory-mapped: the smallest format without compression, and the fastest to train from."""

    pattern = "shard-*.jsonl"

    def _write(self, folder: Path, name: str, rows: Sequence[Row], facts: CodecInfo) -> list[str]:
        documents = [flatten(row.codes, facts.codebook_sizes) for row in rows]
        with (folder / f"{name}.bin").open("wb") as file:
            file.writelines(document.tobytes() for document in documents)
        index = _index([len(document) for document in documents], id_type(facts.codebook_sizes))
        (folder / f"{name}.idx").write_bytes(index)
        return [f"{name}.bin", f"{name}.idx", write_lines(folder, name, map(to_record, rows))]

    def open(self, folder: Path, file: Path, facts: CodecInfo) -> Shard:
        documents = Documents((folder / file).with_suffix(""))
        records = read_lines(folder / file)
        if len(documents) != len(records):
            raise TokensError(
                f"{folder / file} names {len(records)} utterances, its .idx {len(documents)}: "
                f"the files are not of one run: {AGAIN}"
            )
        return Shard(records, lambda i: unflatten(documents[i], facts.codebook_sizes))

    def frames(self, folder: Path, file: Path, facts: CodecInfo) -> np.ndarray:
        sizes = Documents((folder / file).with_suffix("")).sizes.astype(np.int64)
        return (sizes - 1) // len(facts.codebook_sizes)


class Documents:
    """The documents of a `.bin` and `.idx` file; `prefix` is their path without suffix."""

    def __init__(self, prefix: Path) -> None:
        try:
            index = Path(f"{prefix}.idx").read_bytes()
        except OSError as error:
            raise TokensError(f"{prefix}.idx is missing ({error}): {AGAIN}") from error
        if index[: len(_MAGIC)] != _MAGIC or len(index) < len(_MAGIC) + _HEAD.size:
            raise TokensError(
                f"{prefix}.idx is no index of Megatron-LM, or damaged: it does not begin with MMIDIDX"
            )
        version, code, count, borders = _HEAD.unpack_from(index, len(_MAGIC))
        types = {number: kind for kind, number in _TYPES.items()}
        if version != _VERSION or code not in types:
            raise TokensError(
                f"{prefix}.idx has version {version} and type {code}: version {_VERSION} with type 8 (uint16) or "
                "4 (int32) is read"
            )
        start = len(_MAGIC) + _HEAD.size
        if len(index) != start + 12 * count + 8 * borders:
            raise TokensError(f"{prefix}.idx is truncated: {AGAIN}")
        self.sizes = np.frombuffer(index, "<i4", count, start)
        self.pointers = np.frombuffer(index, "<i8", count, start + 4 * count)
        self._type = types[code]
        path = Path(f"{prefix}.bin")
        size = path.stat().st_size if path.exists() else -1
        if size != int(self.sizes.sum(dtype=np.int64)) * self._type.itemsize:
            raise TokensError(f"{path} has {size} bytes, not those of {prefix}.idx: {AGAIN}")
        self._ids = np.memmap(path, self._type, "r") if size else np.empty(0, self._type)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        start = self.pointers[index] // self._type.itemsize
        return self._ids[start : start + self.sizes[index]]


def id_type(sizes: Sequence[int]) -> np.dtype:
    """uint16 where sum(sizes) + 1 ids fit, else int32."""
    return np.dtype("<u2" if sum(sizes) < 1 << 16 else "<i4")


def flatten(codes: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """(K, T) codes to T·K + 1 ids: frame by frame, codebook k from sum(sizes[:k]) on, and the end of document."""
    shifted = codes + np.cumsum([0, *sizes[:-1]])[:, None]
    return np.append(shifted.T.reshape(-1), sum(sizes)).astype(id_type(sizes))


def unflatten(ids: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The codes (K, T) int64 of one document's ids."""
    if len(ids) % len(sizes) != 1 % len(sizes) or not len(ids) or ids[-1] != sum(sizes):
        raise TokensError(
            f"a document of {len(ids)} ids does not hold whole frames of {len(sizes)} codebooks and the end "
            f"{sum(sizes)}: it was made by another codec"
        )
    return ids[:-1].astype(np.int64).reshape(-1, len(sizes)).T - np.cumsum([0, *sizes[:-1]])[:, None]


def _index(sizes: Sequence[int], kind: np.dtype) -> bytes:
    borders = np.arange(len(sizes) + 1, dtype="<i8")
    ends = np.cumsum([0, *sizes], dtype="<i8") * kind.itemsize
    head = _MAGIC + _HEAD.pack(_VERSION, _TYPES[kind], len(sizes), len(borders))
    return head + np.array(sizes, "<i4").tobytes() + ends[:-1].tobytes() + borders.tobytes()
