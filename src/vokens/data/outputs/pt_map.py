"""Maps from names to lists of numbers in `torch.save`'s format, written entry by entry in constant memory.

The file is torch's zip archive with a pickle inside; each list is written as one array of pickle instructions.
"""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from vokens.errors import CheckpointError

_KINDS = {  # pickle opcode of a number, and its struct format
    "i": np.dtype([("code", "S1"), ("value", "<i4")]),
    "f": np.dtype([("code", "S1"), ("value", ">f8")]),
}
_CODES = {"i": b"J", "f": b"G"}  # BININT and BINFLOAT


class PtMap:
    """A map under construction; a context manager."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path, "w")
        for name, content in (("version", "3\n"), ("byteorder", "little")):
            self._archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
        self._pickle = self._archive.open(zipfile.ZipInfo("archive/data.pkl"), "w", force_zip64=True)
        self._pickle.write(b"\x80\x02}")  # protocol 2, an empty dict

    def add(self, name: str, values: np.ndarray) -> None:
        """An entry of the dict: (n,) integers below 2^31, or floats."""
        key = name.encode("utf-8", "surrogatepass")
        kind = "f" if values.dtype.kind == "f" else "i"
        numbers = np.empty(len(values), _KINDS[kind])
        numbers["code"], numbers["value"] = _CODES[kind], values
        # BINUNICODE, EMPTY_LIST, MARK, the numbers, APPENDS, SETITEM
        self._pickle.write(b"X" + struct.pack("<I", len(key)) + key + b"](" + numbers.tobytes() + b"es")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pickle.write(b".")
        self._pickle.close()
        self._archive.close()


def write_pt_map(path: Path, entries: Mapping[str, np.ndarray]) -> None:
    """Write a whole map at once."""
    with PtMap(path) as file:
        for name, values in entries.items():
            file.add(name, values)


def read_pt_map(path: Path) -> dict[str, Any]:
    """A dict of lists that was saved by `torch.save`; nothing else is unpickled."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, AttributeError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is no map of utterances ({' '.join(str(error).split())[:100]}): make it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {type(content).__name__}, no map of utterances: make it again")
    return content
