"""Base of all output formats: `Output` writes a shard, `Shard` is one opened for reading.

A format decides only how codes are packed. Everything else of a row is one json record, the same in all formats that
store it.
"""

import io
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np

from vokens.data.items import CodecInfo, Row, Utterance
from vokens.data.lease import Leases
from vokens.errors import TokensError

# Remedy for damaged or missing files of a run: extraction detects a missing file or another size by itself.
AGAIN = "run the same extraction again; if it finds nothing to do, vokens inspect names the receipt to remove"
_TEXTS = ("key", "audio", "text", "speaker", "language", "instruct")
_VECTORS = ("global_vector", "embedding")
_NAME_BYTES = 240  # file systems allow 255 bytes per name; the rest is for suffixes

Record = dict[str, Any]


class Written(NamedTuple):
    """A file of a shard: `path` below the temporary folder, `final` below the output folder (or absolute)."""

    path: Path
    final: Path


Files = Sequence[str | Written]


class FinishedRun(Protocol):
    """Interface of a finished run (`vokens.corpus.run.Run`) for outputs."""

    folder: Path
    facts: CodecInfo
    leases: Leases
    source_address: str

    def __len__(self) -> int: ...

    def utterances(self, shard: int) -> Iterator[Utterance]: ...

    def receipt(self, shard: int) -> Any: ...

    def publish(self, files: Iterable[tuple[Path, Path]]) -> None: ...


class Shard:
    """A stored shard: rows by number, decoded lazily. frames: (n,) int64, T of each."""

    def __init__(self, records: Sequence[Record], codes: Callable[[int], np.ndarray]) -> None:
        self.frames = np.array([record["frames"] for record in records], dtype=np.int64)
        self._records = records
        self._codes = codes

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a shard of {len(self)}")
        record = self._records[index]
        codes = np.asarray(self._codes(index), dtype=np.int64)
        if codes.shape[1:] != (record["frames"],):
            raise TokensError(
                f"{record['key']!r} has codes {codes.shape}, but its record says {record['frames']} frames: "
                "the files are not of one run, or damaged; verify the folder with vokens inspect"
            )
        return to_row(record, codes)

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))


class Output(ABC):
    """An output format."""

    pattern: str  # glob, below the output folder, of the file that completes a shard: each shard has one

    def write(self, folder: Path, shard: int, rows: Sequence[Row], facts: CodecInfo) -> list[Written]:
        """Write shard number `shard` below the empty folder `folder`: equal rows give equal bytes.

        Returns its files in the order in which they are to be renamed: the one that `pattern` matches is the last.
        Raises TokensError for rows that `check` refuses, and for two of one key.
        """
        for row in rows:
            self.check(row, facts)
        refuse_twice("the key", [row.key for row in rows])
        files = self._write(folder, shard_name(shard), rows, facts)
        return [file if isinstance(file, Written) else Written(Path(file), Path(file)) for file in files]

    @abstractmethod
    def _write(self, folder: Path, name: str, rows: Sequence[Row], facts: CodecInfo) -> Files:
        """As `write`, of checked rows and the name of the shard; of most files the temporary path is the final one."""

    @abstractmethod
    def open(self, folder: Path, file: Path, facts: CodecInfo) -> Shard:
        """The shard of `folder` with the completing file `file`, as listed by `shards`."""

    def check(self, row: Row, facts: CodecInfo) -> None:
        """Raise TokensError if the row cannot be stored; the run quarantines it before writing.

        Codes (K, T) lie within their codebooks, and UTF-8 can hold the names.
        """
        for name in _TEXTS:
            try:
                (getattr(row, name) or "").encode()
            except UnicodeEncodeError as error:
                raise TokensError(
                    f"{row.key!r}: {name} is not valid Unicode; rename the file or correct the manifest"
                ) from error
        if not (row.num_samples >= 0 and isfinite(row.duration) and row.duration >= 0):
            raise TokensError(
                f"{row.key!r} has {row.num_samples} samples and {row.duration} s: give 0 or more"
            )
        sizes = facts.codebook_sizes
        codes = row.codes
        if codes.ndim != 2 or len(codes) != len(sizes) or codes.dtype.kind not in "iu":
            raise TokensError(
                f"{row.key!r} has codes {codes.shape} of {codes.dtype}: give integers ({len(sizes)}, T), "
                f"as {facts.model} has {len(sizes)} codebooks"
            )
        if not codes.shape[1]:
            return
        for k, (low, high, size) in enumerate(zip(codes.min(1), codes.max(1), sizes, strict=True)):
            if low < 0 or high >= size:
                raise TokensError(
                    f"{row.key!r} holds code {low if low < 0 else high} in codebook {k}, which has {size} entries "
                    f"(0 to {size - 1}): these are not codes of {facts.model}"
                )

    def check_codec(self, facts: CodecInfo) -> None:  # noqa: B027  (most accept any)
        """Raise ConfigError for a codec whose tokens cannot be stored, MissingExtra where a package is missing."""

    def finish(self, run: FinishedRun) -> None:  # noqa: B027  (most have nothing to finish)
        """Write files that need all shards, once these are done. Idempotent; every worker calls it."""

    def shards(self, folder: Path) -> list[Path]:
        """The completing file of each shard in `folder`, in order, relative to it."""
        return sorted(path.relative_to(folder) for path in folder.glob(self.pattern))

    def frames(self, folder: Path, file: Path, facts: CodecInfo) -> np.ndarray:
        """(n,) int64, T of each row of a shard, without reading codes where possible, to plan batches."""
        return self.open(folder, file, facts).frames


class NamedFiles(Output):
    """Base of the formats whose keys name files below a folder: relative, without `..`, not too long."""

    def check(self, row: Row, facts: CodecInfo) -> None:
        super().check(row, facts)
        key = row.key
        parts = key.split("/")
        if "\0" in key or any(part in ("", ".", "..") for part in parts) or str(PurePosixPath(key)) != key:
            raise TokensError(
                f"the key {key!r} cannot name a file: give a relative path without '..', '.', empty parts and NUL, "
                "or choose the output jsonl, parquet or megatron, where keys are plain text"
            )
        longest = max(parts, key=lambda part: len(part.encode()))
        if len(longest.encode()) > _NAME_BYTES:
            raise TokensError(
                f"the key {key[:40]!r}… has a part of {len(longest.encode())} bytes, a file name holds "
                f"{_NAME_BYTES}: shorten it, or choose the output jsonl, parquet or megatron"
            )


def code_type(facts: CodecInfo) -> np.dtype:
    """Little-endian uint16 where all codes fit, else int32."""
    return np.dtype("<u2" if max(facts.codebook_sizes) <= 1 << 16 else "<i4")


def to_record(row: Row) -> Record:
    """A row without its codes as json values; None is left out."""
    record = {"key": row.key, "frames": row.codes.shape[1]}
    record |= {"num_samples": int(row.num_samples), "duration": float(row.duration)}
    record |= {name: getattr(row, name) for name in _TEXTS[1:] if getattr(row, name) is not None}
    return record | vectors(row)


def vectors(row: Row) -> Record:
    """The vectors that a row has, as lists."""
    present = {name: getattr(row, name) for name in _VECTORS if getattr(row, name) is not None}
    return {name: np.asarray(vector, dtype=np.float32).tolist() for name, vector in present.items()}


def to_row(record: Record, codes: np.ndarray) -> Row:
    """The row of a record and its codes (K, T)."""
    facts: Record = {name: record[name] for name in ("key", "num_samples", "duration")}
    facts |= {name: record.get(name) for name in _TEXTS[1:]}
    floats = {name: record[name] for name in _VECTORS if record.get(name) is not None}
    facts |= {name: np.array(vector, dtype=np.float32) for name, vector in floats.items()}
    return Row(codes=codes, **facts)


def dump(record: Record) -> str:
    """One line of json."""
    return json.dumps(record, ensure_ascii=False)


def write_lines(folder: Path, name: str, records: Iterable[Record]) -> str:
    """Write NAME.jsonl, one record per line; returns its name."""
    file = f"{name}.jsonl"
    (folder / file).write_bytes("".join(dump(record) + "\n" for record in records).encode())
    return file


def read_lines(path: Path) -> list[Record]:
    """Read what `write_lines` wrote. Only a line feed ends a line: keys may contain other separators."""
    try:
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    except (OSError, ValueError) as error:
        raise TokensError(f"{path} cannot be read ({error}): {AGAIN}") from error


def load_array(file: Path | io.BytesIO, name: object) -> np.ndarray:
    """The array of a .npy file, called `name` in errors; nothing is unpickled."""
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TokensError(f"{name} is damaged or missing ({error}): {AGAIN}") from error


def shard_name(shard: int) -> str:
    """`shard-000012`."""
    return f"shard-{shard:06d}"


def refuse_twice(what: str, names: Sequence[str]) -> None:
    """Raise TokensError if two names are equal."""
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise TokensError(f"{what} {name!r} appears {count} times in one shard: each must occur once")
