"""S3Tokenizer's published weights: ONNX graphs (all releases) and the state dicts that s3tokenizer 0.3.0 makes of them.

Tensors of a graph are anonymous, its nodes are not: a table of node names tells which weight a node holds, as an
initialiser or a constant. Stride and epsilons come from the graph, sizes from the weights' shapes.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vokens.checkpoint import NameTable, State
from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3tokenizer.config import RELEASES, S3TokenizerConfig
from vokens.onnx_file import Node, OnnxGraph

TABLE = NameTable(
    [
        ("encoder.positional_embedding", "encoder.positions"),
        ("encoder.conv{i}.*", "encoder.conv{i}.*"),
        ("encoder.blocks.{i}.attn_ln.*", "encoder.blocks.{i}.attn_ln.*"),
        *(
            (f"encoder.blocks.{{i}}.attn.{part}.*", f"encoder.blocks.{{i}}.attn.{part}.*")
            for part in ("query", "key", "value", "out")
        ),
        ("encoder.blocks.{i}.attn.fsmn_block.*", "encoder.blocks.{i}.attn.memory.*"),
        ("encoder.blocks.{i}.mlp_ln.*", "encoder.blocks.{i}.mlp_ln.*"),
        ("encoder.blocks.{i}.mlp.{j}.*", "encoder.blocks.{i}.mlp.{j}.*"),
        ("quantizer._codebook.embed", "codebook.embedding"),
        ("quantizer._codebook.project_down.*", "codebook.project.*"),
    ],
    dropped={
        "_mel_filters": "chatterbox saves the filters of its log-mel, which are computed here",
        "window": "chatterbox saves its Hann window",
    },
)

# Node name -> the published weights it holds, in the order of its inputs.
_LINEAR = r"(attn/(?:query|key|value|out)|mlp/mlp\.[02])"
_NODES = [
    (r"/conv([12])/Conv", ("encoder.conv{0}.weight", "encoder.conv{0}.bias")),
    (
        r"/blocks\.(\d+)/(attn|mlp)_ln/LayerNormalization",
        ("encoder.blocks.{0}.{1}_ln.weight", "encoder.blocks.{0}.{1}_ln.bias"),
    ),
    (r"/blocks\.(\d+)/(attn|mlp)_ln/Mul", ("encoder.blocks.{0}.{1}_ln.weight",)),
    (r"/blocks\.(\d+)/(attn|mlp)_ln/Add(?:_1)?", ("encoder.blocks.{0}.{1}_ln.bias",)),
    (rf"/blocks\.(\d+)/{_LINEAR}/MatMul", ("encoder.blocks.{0}.{1}.weight",)),
    (rf"/blocks\.(\d+)/{_LINEAR}/Add", ("encoder.blocks.{0}.{1}.bias",)),
    (r"/blocks\.(\d+)/attn/fsmn_block/Conv", ("encoder.blocks.{0}.attn.fsmn_block.weight",)),
    (r"/quantizer/project_in/MatMul", ("quantizer._codebook.project_down.weight",)),
    (r"/quantizer/project_in/Add", ("quantizer._codebook.project_down.bias",)),
    (r"/quantizer/.*_codebook/(?:MatMul|Pow_1)", ("quantizer._codebook.embed",)),
]
_EPSILON = re.compile(r"/blocks\.\d+/(attn|mlp)_ln/(?:Add|LayerNormalization)")
# Operators with weights as operands; other nodes may read tables, such as those of rotary positions.
_WEIGHTED = ("Conv", "MatMul", "Gemm", "Add", "Mul", "LayerNormalization")


def from_whisper(published: Mapping[str, Tensor]) -> State:
    """Whisper's encoder, under OpenAI's names, as weights of an S3Encoder with a last norm."""
    encoder = {
        name.replace("ln_post", "norm").replace("positional_embedding", "positions"): value.float()
        for name, value in published.items()
        if name.startswith("encoder.")
    }
    if "encoder.norm.weight" not in encoder:
        raise CheckpointError("these weights hold no Whisper encoder: a file with OpenAI's names is accepted")
    return encoder


def recognises_graph(graph: OnnxGraph) -> bool:
    """Whether the node names are those of an S3Tokenizer."""
    names = {node.name for node in graph.nodes}
    return {"/conv1/Conv", "/blocks.0/attn/query/MatMul"} <= names


def from_graph(graph: OnnxGraph) -> tuple[State, dict[str, Any]]:
    """The published state dict that a graph holds, and the settings that it states.

    Raises CheckpointError for a node with more or fewer weights than expected, or weights that no known node holds.
    """
    sources: dict[str, str] = {}  # published name -> tensor of the graph
    transposed: set[str] = set()
    facts: dict[str, Any] = {}
    for node in graph.nodes:
        held = [name for name in node.inputs if graph.size(name) > 1]
        for name in _weights_of(node, held):
            tensor = held.pop(0)
            if sources.setdefault(name, tensor) != tensor:
                raise CheckpointError(f"two nodes of the graph hold {name}: it is not a released S3Tokenizer")
            if node.op in ("MatMul", "Pow"):
                transposed.add(name)
        for fact, value in _facts_of(node, graph).items():
            if facts.setdefault(fact, value) != value:
                raise CheckpointError(f"{fact} is {facts[fact]} and {value} in one graph: one is expected")
    for name in graph.initializers:  # read by a Slice
        if name.endswith("positional_embedding"):
            sources["encoder.positional_embedding"] = name
    _check_all_used(graph, set(sources.values()))
    state = {name: graph.tensor(tensor) for name, tensor in sources.items()}
    return {name: t.T.contiguous() if name in transposed else t for name, t in state.items()}, facts


def _weights_of(node: Node, held: list[str]) -> list[str]:
    """Published names of the weights that a node holds."""
    for pattern, names in _NODES:
        if match := re.fullmatch(pattern, node.name):
            if node.op == "Add" and not held:
                return []  # the epsilon of a norm
            if len(held) != len(names):
                raise CheckpointError(f"{node.name} holds {len(held)} weights, {len(names)} expected: {held}")
            parts = [part.replace("mlp/mlp", "mlp").replace("/", ".") for part in match.groups()]
            return [name.format(*parts) for name in names]
    return []


def _facts_of(node: Node, graph: OnnxGraph) -> dict[str, Any]:
    """Settings that a node states."""
    if node.name == "/conv1/Conv":
        return {"first_stride": node.attributes.get("strides", [1])[0]}
    if match := _EPSILON.fullmatch(node.name):
        scalars = [graph.tensor(name).item() for name in node.inputs if graph.size(name) == 1]
        if node.op == "LayerNormalization":
            scalars = [node.attributes.get("epsilon", 1e-5)]
        return {f"{match[1]}_eps": float(f"{epsilon:.6g}") for epsilon in scalars[:1]}  # float32's 1e-5
    return {}


def _check_all_used(graph: OnnxGraph, known: set[str]) -> None:
    """Raise CheckpointError for weights of a graph that no table entry takes: dropping them would change tokens."""
    unused = {
        name
        for node in graph.nodes
        if node.op in _WEIGHTED
        for name in node.inputs
        if name in graph.initializers and graph.size(name) > 1 and name not in known
    }
    if unused:
        raise CheckpointError(
            f"{len(unused)} weights of the graph have no place in an S3Tokenizer: "
            f"{', '.join(sorted(unused)[:4])}; it is of another model or version"
        )


def configure(
    state: Mapping[str, Tensor], config: Any, facts: Mapping[str, Any] | None = None
) -> S3TokenizerConfig:
    """Config of published weights: sizes from shapes, the rest from the graph's facts or from `config`.

    config: None, the name of a release, an S3TokenizerConfig, or a dict of settings.
    """
    if isinstance(config, S3TokenizerConfig):
        return config
    settings = _sizes(state) | dict(facts or {})
    if isinstance(config, str):
        return _of_release(config, settings)
    known = {field.name for field in dataclasses.fields(S3TokenizerConfig)}
    if config is not None and (not isinstance(config, Mapping) or not set(config) <= known):
        raise ConfigError(
            f"config={config!r} was given: a release ({', '.join(RELEASES)}) or a dict of settings among "
            f"{sorted(known)} is accepted"
        )
    settings |= dict(config or {})
    if "heads" not in settings:
        settings["heads"] = _heads_of_release(settings["width"], settings["layers"])
    if "first_stride" not in settings:
        if settings["positions"] == "sinusoid":
            raise CheckpointError(
                "these weights fit both 50 and 25 tokens per second, and only the name of the release tells which: "
                'give config="speech_tokenizer_v1" (50) or config="speech_tokenizer_v1_25hz" (25)'
            )
        settings["first_stride"] = 2
    return S3TokenizerConfig(**settings)


def _heads_of_release(width: int, layers: int) -> int:
    for release in RELEASES.values():
        if (release.width, release.layers) == (width, layers):
            return release.heads
    raise CheckpointError(
        f"an encoder {width} wide with {layers} layers is of no release, and weights do not tell its heads: give "
        "config={'heads': n}, or open the folder that training wrote"
    )


_FREE: dict[str, Any] = {"attn_eps": 1e-5, "mlp_eps": 1e-5, "long_audio": "complete"}


def same_network(one: S3TokenizerConfig, other: S3TokenizerConfig) -> bool:
    """Whether two configs are equal but for settings that are free in a release."""
    return dataclasses.replace(one, **_FREE) == dataclasses.replace(other, **_FREE)


def _of_release(name: str, settings: dict[str, Any]) -> S3TokenizerConfig:
    if name not in RELEASES:
        raise ConfigError(f"config={name!r} was given: the releases are {', '.join(RELEASES)}")
    release = RELEASES[name]
    differing = [
        f"{key} {value} instead of {getattr(release, key)}"
        for key, value in settings.items()
        if value != getattr(release, key) and key not in _FREE
    ]
    if differing:
        raise CheckpointError(f"these weights are not of {name}: {', '.join(differing)}")
    return dataclasses.replace(release, **settings)


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes from the shapes of published weights."""
    try:
        width, n_mels, _ = state["encoder.conv1.weight"].shape
        sinusoid = "encoder.positional_embedding" in state
        memory = state.get("encoder.blocks.0.attn.fsmn_block.weight")
        vq = "quantizer._codebook.embed" in state
        size = (
            state["quantizer._codebook.embed"].shape[0]
            if vq
            else 3 ** state["quantizer._codebook.project_down.weight"].shape[0]
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"these weights are incomplete: {error} is missing or misshapen") from error
    blocks = [int(name.split(".")[2]) for name in state if name.startswith("encoder.blocks.")]
    return {
        "n_mels": n_mels,
        "width": width,
        "layers": max(blocks) + 1,
        "positions": "sinusoid" if sinusoid else "rotary",
        "max_positions": state["encoder.positional_embedding"].shape[0] if sinusoid else 1500,
        "memory_taps": 0 if memory is None else memory.shape[-1],
        "quantizer": "vq" if vq else "fsq",
        "codebook_size": size,
    }
