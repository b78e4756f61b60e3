"""Deterministic tar archives, and random access to their members."""

import io
import mmap
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vokens.data.outputs.output import AGAIN, Record, dump
from vokens.errors import TokensError

_END = 2 * tarfile.BLOCKSIZE  # an archive ends with two empty blocks


def write_samples(path: Path, samples: Iterable[tuple[str, np.ndarray, Record]], ending: str) -> None:
    """Two members for each sample, NAME + ending with its array and NAME.json with its record, in the given order;
    owner, mode and time are those of an empty `TarInfo` (0, 0644, 0)."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, array, record in samples:
            file = io.BytesIO()
            np.save(file, array, allow_pickle=False)
            for member, content in (
                (name + ending, file.getvalue()),
                (f"{name}.json", dump(record).encode()),
            ):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


class Archive:
    """A memory-mapped tar archive, indexed in one pass over its headers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with tarfile.open(path, "r:") as archive:
                self._places = {m.name: (m.offset_data, m.size) for m in archive.getmembers()}
        except (OSError, ValueError, tarfile.TarError) as error:
            raise TokensError(f"{path} is missing or not a complete tar archive ({error})") from error
        end = max((start + size for start, size in self._places.values()), default=0)
        if len(self._bytes) < end + _END:  # tarfile accepts an archive that is truncated between members
            raise TokensError(f"{path} is truncated: {AGAIN}")

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def read(self, name: str) -> bytes:
        """The content of a member."""
        if name not in self._places:
            raise TokensError(f"{self._path} has no member {name!r}: it is damaged, or of another run")
        start, size = self._places[name]
        return self._bytes[start : start + size]

    def array(self, name: str) -> np.ndarray:
        """The array of a .npy member; nothing is unpickled."""
        try:
            return np.load(io.BytesIO(self.read(name)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise TokensError(f"{self._path}: the member {name!r} is damaged ({error})") from error
