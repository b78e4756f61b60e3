"""ONNX files without the onnx package: nodes, attributes and lazily read tensors.

A reader of the protobuf wire format and of the five messages that hold a graph (onnx.proto, ONNX 1.x). The file is
memory-mapped: tensors are copied one by one. Nothing in a file is executed.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vokens.errors import CheckpointError

_TYPES: dict[int, str] = {  # TensorProto.DataType
    1: "float32",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
}
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
        values = (
            torch.frombuffer(bytearray(self.data), dtype=dtype) if self.data else torch.empty(0, dtype=dtype)
        )
        return values.reshape(self.shape)


@dataclass(frozen=True)
class OnnxGraph:
    """A graph: nodes in order, stored tensors by name, input and output names."""

    nodes: tuple[Node, ...]
    initializers: dict[str, StoredTensor]
    constants: dict[str, StoredTensor]  # outputs of Constant nodes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int

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
    if head[8:9] == b"{" and head[4:8] == bytes(4):
        return False  # safetensors: its first 8 bytes are a length, perhaps 0x..08
    return head[:1] == b"\x08" and 1 <= head[1] <= 32 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42\x72"


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
        raise CheckpointError(
            f"{path} is no ONNX file, or truncated or damaged ({error}): download it again"
        ) from error


class _Damaged(ValueError):
    """Bytes that are not a valid ONNX file."""


# The messages ----------------------------------------------------------------------------------------------


def _model(data: memoryview) -> OnnxGraph:
    graph, opset = None, 0
    for number, value in _fields(data):
        if number == 7:
            graph = _bytes(value)
        elif number == 8:
            imported = dict(_fields(_bytes(value)))
            if not imported.get(1):  # the domain of standard operations is ""
                opset = imported.get(2, 0)
    if graph is None:
        raise _Damaged("it holds no graph")
    return _graph(graph, opset)


def _graph(data: memoryview, opset: int) -> OnnxGraph:
    nodes, initializers, inputs, outputs = [], {}, [], []
    for number, value in _fields(data):
        if number == 1:
            nodes.append(_node(_bytes(value)))
        elif number == 5:
            tensor = _tensor(_bytes(value))
            initializers[tensor.name] = tensor
        elif number in (11, 12):
            names = inputs if number == 11 else outputs
            names.append(_text(dict(_fields(_bytes(value))).get(1, memoryview(b""))))
    constants = {
        node.outputs[0]: node.attributes["value"]
        for node in nodes
        if node.op == "Constant" and isinstance(node.attributes.get("value"), StoredTensor)
    }
    return OnnxGraph(tuple(nodes), initializers, constants, tuple(inputs), tuple(outputs), opset)


def _node(data: memoryview) -> Node:
    text: dict[int, str] = {3: "", 4: ""}
    names: dict[int, list[str]] = {1: [], 2: []}
    attributes: dict[str, Any] = {}
    for number, value in _fields(data):
        if number in names:
            names[number].append(_text(value))
        elif number in text:
            text[number] = _text(value)
        elif number == 5:
            name, content = _attribute(_bytes(value))
            attributes[name] = content
    return Node(text[3], text[4], tuple(names[1]), tuple(names[2]), attributes)


def _attribute(data: memoryview) -> tuple[str, Any]:
    """Name and value of an attribute; None for kinds that are not needed (graphs, sparse tensors)."""
    name, value, many = "", None, []
    for number, field in _fields(data):
        if number == 1:
            name = _text(field)
        elif number == 2:
            value = struct.unpack("<f", _bytes(field))[0]
        elif number == 3:
            value = _signed(field)
        elif number == 4:
            value = bytes(_bytes(field)).decode("utf-8", "replace")
        elif number == 5:
            value = _tensor(_bytes(field))
        elif number == 7:
            many += np.frombuffer(_bytes(field), "<f4").tolist()
        elif number == 8:
            many += _integers(field)
        elif number == 9:
            many.append(bytes(_bytes(field)).decode("utf-8", "replace"))
    return name, many or value


def _tensor(data: memoryview) -> StoredTensor:
    shape: list[int] = []
    kind, name, content = 0, "", None
    numbers: list[int] = []
    for number, value in _fields(data):
        if number == 1:
            shape += _integers(value)
        elif number == 2:
            kind = value
        elif number == 8:
            name = _text(value)
        elif number == 9:
            content = _bytes(value)
        elif number in _TYPED:
            content = np.frombuffer(_bytes(value), _TYPED[number])
        elif number in _VARINTS:
            numbers += _integers(value)
        elif number in (13, 14) and value:
            raise _Damaged(f"tensor {name!r} is stored in another file, which is not supported")
    if kind not in _TYPES:
        raise _Damaged(f"tensor {name!r} is of the unsupported type {kind}")
    if content is None:
        content = _narrowed(np.array(numbers, np.int64), _TYPES[kind])
    width = 1 if isinstance(content, np.ndarray) else getattr(torch, _TYPES[kind]).itemsize
    size = len(content) // width
    if min(shape, default=0) < 0 or size != prod(shape):
        raise _Damaged(f"tensor {name!r} of shape {tuple(shape)} has {size} values")
    return StoredTensor(name, tuple(shape), _TYPES[kind], content)


def _narrowed(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """int32_data and int64_data as values; 16-bit floats are stored as their bits."""
    if dtype == "float16":
        return numbers.astype(np.uint16).view(np.float16)
    if dtype == "bfloat16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers


# The wire format -------------------------------------------------------------------------------------------


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
            raise _Damaged(f"wire type {wire}")
        if at + size > end:
            raise _Damaged(f"{at + size - end} bytes are missing")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at >= len(data):
            raise _Damaged("it ends inside a number")
        byte = data[at]
        value |= (byte & 127) << (7 * place)
        at += 1
        if byte < 128:
            return value, at
    raise _Damaged("a number is longer than 10 bytes")


def _signed(value: Any) -> int:
    if not isinstance(value, int):
        raise _Damaged("there are bytes where a number is expected")
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
        raise _Damaged("there is a number where bytes are expected")
    return value


def _text(value: Any) -> str:
    return bytes(_bytes(value)).decode()
