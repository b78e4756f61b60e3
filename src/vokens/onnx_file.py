"""ONNX files without the onnx package: nodes, attributes and lazily read tensors.

A reader of the protobuf wire format and of the five messages that hold a graph (onnx.proto, ONNX 1.x). The file is
memory-mapped: tensors are copied one by one. Nothing in a file is executed.
"""

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vokens.errors import CheckpointError

# TensorProto.DataType
_TYPES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool"}
_TYPES |= {10: "float16", 11: "float64", 16: "bfloat16"}
# TensorProto's typed fields; raw_data (9) holds any type.
_TYPED = {4: np.dtype("<f4"), 10: np.dtype("<f8")}
_VARINTS = (5, 7)  # int32_data, which also holds the narrower types, and int64_data


@dataclass(frozen=True)
class Node:
    """One operation: its input and output names. Attributes: numbers, text, lists of them, tensors."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor stored in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: "np.ndarray | memoryview"

    def read(self) -> Tensor:
        """A copy of its values."""
        dtype = getattr(torch, self.dtype)
        if isinstance(self.data, np.ndarray):
            return torch.from_numpy(self.data.copy()).to(dtype).reshape(self.shape)
        if not self.data:  # frombuffer refuses no bytes
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(bytearray(self.data), dtype=dtype).reshape(self.shape)


@dataclass(frozen=True)
class OnnxGraph:
    """A graph: nodes in order, and stored tensors by name."""

    nodes: tuple[Node, ...]
    initializers: dict[str, StoredTensor]
    constants: dict[str, StoredTensor]  # outputs of Constant nodes

    def size(self, name: str) -> int:
        """Number of elements of a stored tensor; 0 for a computed one."""
        stored = self.initializers.get(name) or self.constants.get(name)
        return 0 if stored is None else prod(stored.shape)

    def tensor(self, name: str) -> Tensor:
        """A copy of a stored tensor (initialiser or constant). Raises CheckpointError for other names."""
        stored = self.initializers.get(name) or self.constants.get(name)
        if stored is None:
            raise CheckpointError(f"the graph stores no tensor called {name!r}")
        return stored.read()


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """True if a file begins like an ONNX model: its version, then another field of a ModelProto."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError:
        return False
    # The first 8 bytes of a safetensors file are a length, perhaps 0x..08.
    safetensors = head[8:9] == b"{" and head[4:8] == bytes(4)
    version = len(head) > 2 and head[0] == 8 and 1 <= head[1] <= 32
    return version and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42\x72" and not safetensors


def read_onnx(path: str | os.PathLike[str]) -> OnnxGraph:
    """The graph of an ONNX file. Raises CheckpointError for other, damaged or split files."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise CheckpointError(f"cannot read {path}: {error}") from error
    try:
        return _model(content)
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(f"{path} is no whole ONNX file ({error}): download it again") from error


def _model(data: memoryview) -> OnnxGraph:
    graphs = _collect(data, {7: _bytes})[7]
    if not graphs:
        raise ValueError("it holds no graph")
    parts = _collect(graphs[-1], {1: _node, 5: _tensor})
    constants = {
        node.outputs[0]: node.attributes["value"]
        for node in parts[1]
        if node.op == "Constant" and isinstance(node.attributes.get("value"), StoredTensor)
    }
    return OnnxGraph(tuple(parts[1]), {tensor.name: tensor for tensor in parts[5]}, constants)


def _node(data: Any) -> Node:
    parts = _collect(data, {**dict.fromkeys((1, 2, 3, 4), _text), 5: _attribute})
    name, op = _last(parts[3], ""), _last(parts[4], "")
    return Node(name, op, tuple(parts[1]), tuple(parts[2]), dict(parts[5]))


def _attribute(data: Any) -> tuple[str, Any]:
    """Name and value of an attribute; None for kinds that are not needed (graphs, sparse tensors)."""
    one = {2: _floats, 3: _integers, 4: _string, 5: lambda value: [_tensor(value)]}
    parts = _collect(data, {1: _text, **one, 7: _floats, 8: _integers, 9: _string})
    many = [value for number in (7, 8, 9) for field in parts[number] for value in field]
    return _last(parts[1], ""), many or _last([value for number in one for (value,) in parts[number]], None)


def _tensor(data: Any) -> StoredTensor:
    raw, location = {9: _bytes, 4: _bytes, 10: _bytes}, {13: bool, 14: bool}
    integers = dict.fromkeys((1, *_VARINTS), _integers)
    parts = _collect(data, {**integers, 2: _signed, 8: _text, **raw, **location})
    name, kind, shape = _last(parts[8], ""), _last(parts[2], 0), tuple(chain.from_iterable(parts[1]))
    if any(parts[13] + parts[14]):
        raise ValueError(f"tensor {name!r} is stored in another file, which is not supported")
    if kind not in _TYPES:
        raise ValueError(f"tensor {name!r} is of the unsupported type {kind}")
    numbers = [value for number in _VARINTS for field in parts[number] for value in field]
    content = _narrowed(np.array(numbers, np.int64), _TYPES[kind])
    for number, dtype in _TYPED.items():
        content = np.frombuffer(_last(parts[number], b""), dtype) if parts[number] else content
    content = _last(parts[9], content)
    size = len(content) // (1 if isinstance(content, np.ndarray) else getattr(torch, _TYPES[kind]).itemsize)
    if min(shape, default=0) < 0 or size != prod(shape):
        raise ValueError(f"tensor {name!r} of shape {shape} has {size} values")
    return StoredTensor(name, shape, _TYPES[kind], content)


def _narrowed(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """int32_data and int64_data as values; 16-bit floats are stored as their bits."""
    if dtype == "float16":
        return numbers.astype(np.uint16).view(np.float16)
    if dtype == "bfloat16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers


def _collect(data: Any, readers: dict[int, Callable[[Any], Any]]) -> dict[int, list[Any]]:
    """Values of a message's fields by their numbers, each read by its function; other fields are skipped."""
    values: dict[int, list[Any]] = {number: [] for number in readers}
    for number, value in _fields(_bytes(data)):
        if number in readers:
            values[number].append(readers[number](value))
    return values


def _last(values: list[Any], default: Any) -> Any:
    """The value of a field that is not repeated: of several the last counts."""
    return values[-1] if values else default


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a message: whole numbers, or the bytes of anything else."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > end:
            raise ValueError(f"{at + size - end} bytes are missing")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[at]
        value |= (byte & 127) << (7 * place)
        at += 1
        if byte < 128:
            return value, at
    raise ValueError("a number is longer than 10 bytes")


def _signed(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("there are bytes where a number is expected")
    return value - (1 << 64) if value >> 63 else value


def _integers(value: Any) -> list[int]:
    """A repeated number: one varint, or many packed ones."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _bytes(value: Any) -> memoryview:
    if isinstance(value, int):
        raise ValueError("there is a number where bytes are expected")
    return value


def _text(value: Any) -> str:
    return bytes(_bytes(value)).decode()


def _floats(value: Any) -> list[float]:
    return np.frombuffer(_bytes(value), "<f4").tolist()


def _string(value: Any) -> list[str]:
    return [bytes(_bytes(value)).decode("utf-8", "replace")]
