"""CAM++ of an ONNX graph, as CosyVoice 2 ships it: its weights, in the order in which they are used.

An exporter merges a batch norm that follows a convolution into it and renames both, so names say little; the order
of convolutions and norms is the network's own. A merged norm comes back as one that only adds the bias.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vokens.checkpoint import State
from vokens.errors import CheckpointError
from vokens.models.s3gen.campplus import CAMPPlus
from vokens.onnx_file import Node, OnnxGraph

_NORM = ("weight", "bias", "running_mean", "running_var")


def campplus_state(graph: OnnxGraph, model: CAMPPlus) -> State:
    """The published state dict that a graph holds; shapes are checked when it is loaded.

    Raises:
        CheckpointError: more or fewer convolutions and norms than CAM++ has, or in another order.
    """
    names = [name for name in model.state_dict() if name in graph.initializers]
    if len(names) == sum(not name.endswith("num_batches_tracked") for name in model.state_dict()):
        counts = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
        return {name: graph.tensor(name) for name in names} | counts
    state: State = {}
    nodes = iter([node for node in graph.nodes if node.op in ("Conv", "BatchNormalization")])
    node, bias = next(nodes, None), None
    for name, module in layers(model):
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if node is not None and node.op == "BatchNormalization" and bias is None:
                state |= _norm(graph, node, name, module)
                node = next(nodes, None)
            else:
                state |= _merged(name, module, bias)
            bias = None
        else:
            if node is None or node.op != "Conv" or bias is not None:
                raise CheckpointError(f"the graph has no convolution where CAM++ has {name}: another model")
            stored = [graph.tensor(item) for item in node.inputs[1:]]
            state[f"{name}.weight"] = _shaped(stored[0], module.weight, name)
            if module.bias is not None:
                state[f"{name}.bias"] = _shaped(stored[1], module.bias, name)
            else:
                bias = stored[1] if len(stored) > 1 else None
            node = next(nodes, None)
    if node is not None or bias is not None:
        raise CheckpointError("the graph has more convolutions or norms than CAM++: another model")
    return state


def layers(model: CAMPPlus) -> Iterator[tuple[str, nn.Conv1d | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d]]:
    """Convolutions and norms in the order of use: that of the modules, but for the head's norms."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.BatchNorm1d | nn.BatchNorm2d):
            yield name, module


def _norm(graph: OnnxGraph, node: Node, name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> State:
    found = [graph.tensor(item) for item in node.inputs[1:5]]
    state = {f"{name}.{part}": tensor for part, tensor in zip(_NORM, found, strict=True)}
    if not module.affine:
        if bool((found[0] != 1).any()) or bool((found[1] != 0).any()):
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


def _shaped(found: Tensor, wanted: Tensor, name: str) -> Tensor:
    if found.shape != wanted.shape:
        raise CheckpointError(f"{name} is {tuple(found.shape)} in the graph, {tuple(wanted.shape)} in CAM++")
    return found
