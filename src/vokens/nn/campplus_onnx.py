"""Opening CAM++: from a file of weights, or an ONNX graph, as CosyVoice 2 ships it, by the order of their use.

An exporter merges a batch norm that follows a convolution into it and renames both, so names say little; the order
of convolutions and norms is the network's own. A merged norm comes back as one that only adds the bias.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from vokens.checkpoint import State, load_strict, read_state_dict
from vokens.errors import CheckpointError
from vokens.nn.campplus import CAMPPlus
from vokens.onnx_file import Node, OnnxGraph, is_onnx, read_onnx

_NORM = ("weight", "bias", "running_mean", "running_var")


def open_campplus(source: str | Path) -> CAMPPlus:
    """CAM++ with the weights of a published file, also CosyVoice's campplus.onnx, or of the only such file in a folder.

    Raises CheckpointError for no file, several, or other weights.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".pt", ".bin", ".safetensors"))
        if len(files) != 1:
            raise CheckpointError(f"{path} holds {len(files)} files of weights: name the one of CAM++")
        path = files[0]
    model = CAMPPlus()
    state = campplus_state(read_onnx(path), model) if is_onnx(path) else read_state_dict(path)
    load_strict(model, state, path)
    return model.eval().requires_grad_(False)


def campplus_state(graph: OnnxGraph, model: CAMPPlus) -> State:
    """The published state dict that a graph holds, in whichever way an exporter named it.

    Raises CheckpointError for more or fewer convolutions and norms than CAM++ has, or in another order.
    """
    names = [name for name in model.state_dict() if name in graph.initializers]
    if len(names) == sum(not name.endswith("num_batches_tracked") for name in model.state_dict()):
        counts = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
        return {name: graph.tensor(name) for name in names} | counts
    state: State = {}
    nodes = [node for node in graph.nodes if node.op in ("Conv", "BatchNormalization")]
    bias: Tensor | None = None  # of a convolution that a norm was merged into
    for name, module in layers(model):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if bias is None and nodes and nodes[0].op == "BatchNormalization":
                state |= _norm(graph, nodes.pop(0), name, module)
            else:
                state |= _merged(name, module, bias)
            bias = None
            continue
        node = _next_convolution(graph, nodes, module.weight, name)
        stored = [graph.tensor(item) for item in node.inputs[1:]]
        state[f"{name}.weight"] = stored[0]
        if module.bias is not None and len(stored) > 1:
            state[f"{name}.bias"] = stored[1]
        else:
            bias = stored[1] if len(stored) > 1 else None
    if nodes or bias is not None:
        raise CheckpointError("the graph has more convolutions or norms than CAM++: another model")
    return state


def layers(model: CAMPPlus) -> Iterator[tuple[str, nn.Conv1d | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d]]:
    """Convolutions and norms in the order of use, which is that of the modules."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
            yield name, module


def _norm(graph: OnnxGraph, node: Node, name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> State:
    values = [graph.tensor(item) for item in node.inputs[1:5]]
    state = {f"{name}.{part}": tensor for part, tensor in zip(_NORM, values, strict=True)}
    if not module.affine:
        if bool((values[0] != 1).any()) or bool((values[1] != 0).any()):
            raise CheckpointError(f"{name} has a gain in the graph and none in CAM++: another model")
        del state[f"{name}.weight"], state[f"{name}.bias"]
    return state | {f"{name}.num_batches_tracked": torch.tensor(0)}


def _merged(name: str, module: nn.BatchNorm1d | nn.BatchNorm2d, bias: Tensor | None) -> State:
    """A norm that adds `bias` and changes nothing else."""
    if bias is None:
        raise CheckpointError(f"the graph has neither {name} nor a bias before it: another model")
    variance = torch.full_like(bias, 1 - module.eps)
    state = {f"{name}.running_var": variance, f"{name}.num_batches_tracked": torch.tensor(0)}
    if not module.affine:
        return state | {f"{name}.running_mean": -bias}
    zeros = torch.zeros_like(bias)
    return state | {f"{name}.weight": zeros + 1, f"{name}.bias": bias, f"{name}.running_mean": zeros}


def _next_convolution(graph: OnnxGraph, nodes: list[Node], weight: Tensor, name: str) -> Node:
    """Taken out of nodes: one of the next three, since a mask and what it gates may be computed in either order."""
    for place, node in enumerate(nodes[:3]):
        if node.op != "Conv":
            break
        if graph.tensor(node.inputs[1]).shape == weight.shape:
            return nodes.pop(place)
    raise CheckpointError(
        f"the graph has no convolution {tuple(weight.shape)} where CAM++ has {name}: it is of another model"
    )
