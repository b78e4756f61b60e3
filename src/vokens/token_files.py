"""The file formats of tokens: `.vok` (ours), json, npz and pt, each from and to (facts, arrays).

A `.vok` file is one safetensors file: codes in the smallest integers that hold them, the facts as json in the
header, and a sha256 over both, so that corrupted files are refused. Reading decides by content, not by suffix.
"""

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as dump_safetensors
from torch import Tensor

from vokens.atomic import atomic_write
from vokens.errors import TokensError, file_errors

FORMAT = "vokens-tokens"
VERSION = 1
_ZIP_MAGIC = b"PK\x03\x04"

PathLike = str | os.PathLike[str]
Facts = dict[str, Any]
Arrays = dict[str, np.ndarray]


# Writing: facts are json values; arrays are codes (B, K, T), lengths (B,), num_samples (B,), [global_vector]


def write_vok(path: PathLike, facts: Facts, arrays: Arrays) -> None:
    """Write a `.vok` file; equal tokens give equal bytes."""
    arrays = _shrink(facts, arrays)
    header = _header(facts)
    header["checksum"] = _checksum(header, arrays)
    # One metadata entry only: safetensors does not keep the order of several, so the bytes would vary.
    _write(path, dump_safetensors(arrays, {FORMAT: json.dumps(header, sort_keys=True)}))


def write_json(path: PathLike, facts: Facts, arrays: Arrays) -> None:
    """Write json for people: one line per fact, and one per item and codebook."""
    lines = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in _header(facts).items())
    items = ",\n".join(_json_item(arrays, i) for i in range(len(arrays["codes"])))
    _write(path, ("{\n" + lines + '  "items": [\n' + items + "\n  ]\n}\n").encode())


def write_npz(path: PathLike, facts: Facts, arrays: Arrays) -> None:
    """Write a compressed numpy archive; the facts are json text in the array `header`."""
    header = np.array(json.dumps(_header(facts)))
    content: dict[str, Any] = {**_shrink(facts, arrays), "header": header}
    with _writing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **content)


def write_pt(path: PathLike, facts: Facts, arrays: Arrays) -> None:
    """Write a dict of tensors (codes int64) and `header`, a dict of facts."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with _writing(path) as temporary:
        torch.save({**tensors, "header": _header(facts)}, temporary)


def _header(facts: Facts) -> Facts:
    return {"format": FORMAT, "version": VERSION, **facts}


def _shrink(facts: Facts, arrays: Arrays) -> Arrays:
    largest = max(facts["codebook_sizes"])
    smallest = np.uint8 if largest <= 1 << 8 else np.uint16 if largest <= 1 << 16 else np.int32
    return {**arrays, "codes": arrays["codes"].astype(smallest)}


def _checksum(header: Facts, arrays: Arrays) -> str:
    """sha256 over the header and every array's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _json_item(arrays: Arrays, i: int) -> str:
    codes = arrays["codes"][i, :, : arrays["lengths"][i]]
    rows = ",\n".join(f"      {json.dumps(row)}" for row in codes.tolist())
    facts = {name: arrays[name][i].tolist() for name in ("num_samples", "global_vector") if name in arrays}
    return f'    {json.dumps(facts)[:-1]}, "codes": [\n{rows}\n    ]}}'


@contextmanager
def _writing(path: PathLike) -> Iterator[Path]:
    remedy = "; check the folder, its rights and its space"
    with file_errors(TokensError, f"cannot write {path}", remedy), atomic_write(path) as temporary:
        yield temporary


def _write(path: PathLike, content: bytes) -> None:
    with _writing(path) as temporary:
        temporary.write_bytes(content)


def read(path: Path) -> tuple[Facts, Arrays]:
    """Read any of the four formats. TokensError on anything else, and on damaged files."""
    content = _read(path)
    try:
        return _READERS[_kind(content, path)](content, path)
    except TokensError:
        if read_ids(path) is None:
            raise
    except Exception as error:  # damaged bytes make readers raise almost any type, and ask for any memory
        raise _damaged(path) from error
    raise TokensError(
        f"{path} holds ids without their codec: vokens decode takes them with --model, "
        "Python with codec.tokens(ids)"
    )


def read_ids(path: Path) -> tuple[Any, Any] | None:
    """Bare codebook indices of a file, and their lengths or None; None for other files.

    An .npy array, an npz or pt archive with "codes" (and "lengths"), a tensor, or a json list of lists.
    """
    content = _read(path)
    try:
        if content.lstrip()[:1] in (b"[", b"{"):
            ids = json.loads(content)
        elif content[:4] == _ZIP_MAGIC and _kind(content, path) == "pt":
            ids = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        elif content[:4] in (_ZIP_MAGIC, b"\x93NUM"):
            ids = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            return None
        named = isinstance(ids, Mapping)
        if named and ("codes" not in ids or "header" in ids or "format" in ids):
            return None
        return (ids["codes"], ids.get("lengths")) if named else (ids, None)
    except Exception:  # as above
        return None


def _read_vok(content: bytes, path: Path) -> tuple[Facts, Arrays]:
    """Content that `write_vok` wrote, checked against its checksum."""
    arrays = load_safetensors(content)
    (length,) = struct.unpack("<Q", content[:8])
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    if FORMAT not in metadata:
        raise TokensError(
            f"{path} is a safetensors file without tokens (it holds {', '.join(sorted(arrays)[:4])}), "
            "or damaged: weights are opened with vokens.load"
        )
    header = _parse_header(metadata[FORMAT], path)
    if header.pop("checksum", None) != _checksum(header, arrays):
        raise TokensError(f"{path} is damaged, its checksum does not match: copy or encode it again")
    return header, _widen(arrays)


def _read_json(content: bytes, path: Path) -> tuple[Facts, Arrays]:
    header = _parse_header(content, path)
    items = header.pop("items", None)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise TokensError(f'{path} has no list "items": write it with Tokens.to_json')
    try:
        return header, _pad_items(items, len(header["codebook_sizes"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TokensError(
            f'{path} has an item without "num_samples", or whose "codes" are not one equally long row of '
            f"integers per codebook ({error})"
        ) from error


def _read_npz(content: bytes, path: Path) -> tuple[Facts, Arrays]:
    """Content that `write_npz` wrote; pickled arrays are refused."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return _parse_header(str(arrays.pop("header", "{}")), path), _widen(arrays)


def _read_pt(content: bytes, path: Path) -> tuple[Facts, Arrays]:
    """Content that `write_pt` wrote; a file that would run code is refused."""
    try:
        held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TokensError(f"{path} holds more than tensors, or is damaged: it is not opened") from error
    if not isinstance(held, dict) or not isinstance(held.get("header"), dict):
        raise TokensError(f"{path} holds other torch data than tokens: write tokens with Tokens.to_pt")
    arrays = {name: value.numpy() for name, value in held.items() if isinstance(value, Tensor)}
    return _check_version(held["header"], path), _widen(arrays)


_READERS = {"vok": _read_vok, "json": _read_json, "npz": _read_npz, "pt": _read_pt}


def _kind(content: bytes, path: Path) -> str:
    if content[:4] == _ZIP_MAGIC:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
        return "pt" if any(name.endswith("/data.pkl") for name in names) else "npz"
    if content[8:9] == b"{" and b"\0" in content[:8]:  # 8 bytes of header length, then the header
        return "vok"
    if content.lstrip()[:1] == b"{":
        return "json"
    raise TokensError(
        f"{path} ({len(content)} bytes) is not a token file, or damaged: "
        "give a .vok file, or json, npz or pt written by Tokens"
    )


def _read(path: Path) -> bytes:
    with file_errors(TokensError, f"cannot read {path}"):
        return path.read_bytes()


def _damaged(path: Path) -> TokensError:
    return TokensError(f"{path} is damaged or truncated: copy or encode it again")


def _parse_header(text: str | bytes, path: Path) -> Facts:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokensError(f"{path} is no json, or damaged ({error}): copy or encode it again") from error
    return _check_version(header, path)


def _check_version(header: Any, path: Path) -> Facts:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise TokensError(f'{path} holds no tokens, or is damaged: its "format" is not {FORMAT!r}')
    version = header.get("version")
    if not isinstance(version, int) or version < 1:
        raise _damaged(path)
    if version > VERSION:
        raise TokensError(f"{path} is of format {version}, this vokens reads up to {VERSION}: upgrade vokens")
    return header


def _widen(arrays: Arrays) -> Arrays:
    """Integers as int64, which torch and all callers use."""
    return {n: a.astype(np.int64) if a.dtype.kind in "iu" else a for n, a in arrays.items()}


def _pad_items(items: list[dict[str, Any]], num_codebooks: int) -> Arrays:
    rows = [_rows(item["codes"], num_codebooks) for item in items]
    lengths = np.array([row.shape[1] for row in rows], dtype=np.int64)
    codes = np.zeros((len(rows), num_codebooks, lengths.max(initial=0)), dtype=np.int64)
    for i, row in enumerate(rows):
        codes[i, :, : row.shape[1]] = row
    num_samples = _rows([[item["num_samples"] for item in items]], 1)[0]
    arrays = {"codes": codes, "lengths": lengths, "num_samples": num_samples}
    if any("global_vector" in item for item in items):
        arrays["global_vector"] = np.array([item["global_vector"] for item in items], dtype=np.float32)
    return arrays


def _rows(codes: Any, num_codebooks: int) -> np.ndarray:
    rows = np.asarray(codes)
    if rows.ndim != 2 or len(rows) != num_codebooks or (rows.size and rows.dtype.kind != "i"):
        raise ValueError(f"shape {rows.shape}, type {rows.dtype}")
    return rows.astype(np.int64)
