"""The ONNX reader: every kind of tensor as written, damage as one kind of error, and S3Tokenizer's released graphs."""

import json
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused

import vokens
from vokens.errors import CheckpointError
from vokens.models.s3tokenizer import S3Tokenizer
from vokens.onnx_file import OnnxGraph, is_onnx, read_onnx

FOLDER = Path(__file__).parents[1] / "golden/s3tokenizer"
EXPECTED = json.loads((FOLDER / "onnx_expected.json").read_text())
FILES = json.loads((FOLDER / "config.json").read_text())["cases"]["onnx"]["files"]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(name: str, dims: tuple[int, ...], kind: int, content: bytes) -> bytes:
    packed = field(1, b"".join(map(varint, dims)))
    return packed + field(2, kind) + field(8, name) + content


def model(*initializers: bytes, nodes: tuple[bytes, ...] = ()) -> bytes:
    graph = b"".join(field(1, node) for node in nodes) + b"".join(field(5, t) for t in initializers)
    return field(1, 8) + field(2, "a test") + field(7, graph) + field(8, field(2, 17))


def read(data: bytes, folder: Path) -> OnnxGraph:
    (folder / "x.bin").write_bytes(data)  # the suffix must not matter
    assert is_onnx(folder / "x.bin")
    return read_onnx(folder / "x.bin")


NUMBERS = [0, 1, -3, 100]
HALVES, BFLOATS = np.array(NUMBERS, np.float16), torch.tensor(NUMBERS, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("kind", "dtype", "content"),
    [
        (1, torch.float32, field(9, struct.pack("<4f", *NUMBERS))),
        (1, torch.float32, field(4, struct.pack("<4f", *NUMBERS))),
        (11, torch.float64, field(10, struct.pack("<4d", *NUMBERS))),
        (7, torch.int64, field(9, struct.pack("<4q", *NUMBERS))),
        (7, torch.int64, field(7, b"".join(map(varint, NUMBERS)))),
        (7, torch.int64, b"".join(field(7, n) for n in NUMBERS)),  # unpacked, as proto2 writers do
        (6, torch.int32, field(5, b"".join(map(varint, NUMBERS)))),
        (3, torch.int8, field(9, struct.pack("<4b", *NUMBERS))),
        (10, torch.float16, field(9, HALVES.tobytes())),
        (10, torch.float16, field(5, b"".join(varint(int(n)) for n in HALVES.view(np.uint16)))),
        (16, torch.bfloat16, field(9, BFLOATS.view(torch.int16).numpy().tobytes())),
    ],
)
def test_every_kind_of_tensor(kind: int, dtype: torch.dtype, content: bytes, tmp_path: Path) -> None:
    graph = read(model(tensor("t", (2, 2), kind, content)), tmp_path)
    actual = graph.tensor("t")
    assert actual.dtype == dtype
    assert actual.tolist() == [[0, 1], [-3, 100]]
    assert (graph.size("t"), graph.size("other")) == (4, 0)


def test_nodes_and_attributes(tmp_path: Path) -> None:
    attributes = [
        field(1, "f") + varint(2 << 3 | 5) + struct.pack("<f", 0.5),
        field(1, "i") + field(3, -2),
        field(1, "s") + field(4, "text"),
        field(1, "ints") + field(8, varint(3) + varint(-4)),
        field(1, "floats") + field(7, struct.pack("<2f", 1, 2)),
    ]
    node = field(1, "x") + field(1, "y") + field(2, "z") + field(3, "/a/Add") + field(4, "Add")
    node += b"".join(field(5, a) for a in attributes)
    value = field(1, "value") + field(5, tensor("", (), 1, field(9, struct.pack("<f", 7))))
    constant = field(2, "c") + field(4, "Constant") + field(5, value)
    graph = read(model(nodes=(node, constant)), tmp_path)
    add = graph.nodes[0]
    assert (add.name, add.op, add.inputs, add.outputs) == ("/a/Add", "Add", ("x", "y"), ("z",))
    assert add.attributes == {"f": 0.5, "i": -2, "s": "text", "ints": [3, -4], "floats": [1.0, 2.0]}
    assert graph.tensor("c") == 7


@pytest.mark.parametrize(
    "data",
    [
        b"",
        field(1, 8) + field(2, "no graph"),
        model(tensor("t", (3,), 1, field(9, bytes(8)))),  # a third of it is missing
        model(tensor("t", (1,), 1, field(13, field(1, "location")))),  # in another file
        model(tensor("t", (1,), 8, b"")),  # text
    ],
)
def test_unusable_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(data)
    refused(CheckpointError, r"x\.onnx", read_onnx, tmp_path / "x.onnx")


def test_damage_is_always_a_checkpoint_error(tmp_path: Path) -> None:
    whole = (FOLDER / "onnx_v3_const.onnx").read_bytes()
    path = tmp_path / "x.onnx"
    for cut in range(3, len(whole), len(whole) // 60):
        path.write_bytes(whole[:cut])
        refused(CheckpointError, ".", read_onnx, path)
    draw = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in draw.integers(0, len(whole), 20):
            damaged[at] = draw.integers(256)
        path.write_bytes(damaged)
        with suppress(CheckpointError):  # or bytes of weights were hit, which no reader can know
            vokens.load(path, config={"heads": 2})


def test_other_files_are_not_onnx(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for width in range(1, 40):  # header lengths that begin with every multiple of 8, 8 among them
        save_file({"x" * width: torch.ones(1)}, tmp_path / "a")
        assert not is_onnx(tmp_path / "a")
    torch.save({"x": torch.ones(1)}, tmp_path / "a")
    assert not is_onnx(tmp_path / "a")
    assert not is_onnx(tmp_path / "missing")


@pytest.mark.parametrize("name", FILES)
def test_released_graphs_give_the_published_weights_and_ids(name: str) -> None:
    case = FILES[name]
    codec = vokens.load(FOLDER / name, config={"heads": 2})
    assert isinstance(codec, S3Tokenizer)
    assert codec.frame_rate == (50 if case["model"] == "speech_tokenizer_v1" else 25)  # said by the graph
    assert codec.config.layers == case["layers"]
    assert (codec.config.attn_eps, codec.config.mlp_eps) == (1e-5, 1e-5)
    actual = {
        key: [list(t.shape), "float32", zlib.crc32(t.numpy().tobytes())]
        for key, t in codec.to_published().items()
    }
    assert actual == EXPECTED[name]
    mel = np.random.RandomState(31).standard_normal((1, 4, 37)).astype(np.float32)
    assert codec.quantize(torch.from_numpy(mel))[0][0].tolist() == case["codes"]


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_graphs_are_read_strictly(version: str) -> None:
    graph = read_onnx(FOLDER / f"onnx_{version}.onnx")

    def broken(words: str, change: Callable[[OnnxGraph], OnnxGraph]) -> None:
        refused(CheckpointError, words, lambda: S3Tokenizer.from_onnx(change(graph), {"heads": 2}))

    def without(name: str) -> Callable[[OnnxGraph], OnnxGraph]:
        return lambda g: replace(g, nodes=tuple(node for node in g.nodes if node.name != name))

    def renamed(name: str) -> Callable[[OnnxGraph], OnnxGraph]:
        return lambda g: replace(
            g, nodes=tuple(replace(n, name="/elsewhere") if n.name == name else n for n in g.nodes)
        )

    broken("1 missing", without("/blocks.3/attn/key/MatMul"))
    broken("no place", renamed("/blocks.3/attn/key/MatMul"))
    broken("no place", renamed("/blocks.2/mlp/mlp.2/Add"))
    broken("missing", without("/conv1/Conv"))


def test_epsilons_are_read_from_the_graph() -> None:
    graph = read_onnx(FOLDER / "onnx_v2.onnx")
    small, end = {"epsilon": 1e-6}, "attn_ln/LayerNormalization"
    nodes = tuple(
        replace(n, attributes=n.attributes | small) if n.name.endswith(end) else n for n in graph.nodes
    )
    config = S3Tokenizer.from_onnx(replace(graph, nodes=nodes), {"heads": 2}).config
    assert (config.attn_eps, config.mlp_eps) == (1e-6, 1e-5)
    mixed = tuple(graph.nodes[: len(nodes) // 2]) + nodes[len(nodes) // 2 :]
    refused(CheckpointError, "attn_eps", S3Tokenizer.from_onnx, replace(graph, nodes=mixed), {"heads": 2})
