"""8-bit weights: int8 with a float32 scale per row, in an ordinary safetensors file.

A weight `w` (N, ...) becomes `w` as int8 and `w:scale` (N,), w = int8 * scale, bit-identical on every machine.
Vectors (biases, norms, running statistics) stay float32: they are small and sensitive.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from vokens.errors import CheckpointError

_SCALE = ":scale"  # not a valid parameter name in torch, so it cannot collide
_LARGEST = 127


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name with every float matrix (N, ...) as int8 and its scales; others unchanged."""
    packed: dict[str, Tensor] = {}
    for name, weight in state.items():
        if not weight.is_floating_point() or weight.dim() < 2 or not weight.numel():
            packed[name] = weight
            continue
        rows = weight.detach().float().flatten(1)
        if not rows.isfinite().all():
            raise CheckpointError(
                f"{name} holds NaN or infinity, which int8 cannot represent: train again, or keep float32"
            )
        scale = _rounded(rows.abs().amax(1) / _LARGEST)
        steps = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        packed[name] = steps.clamp(-_LARGEST, _LARGEST).to(torch.int8).view(weight.shape)
        packed[name + _SCALE] = scale
    return packed


def _rounded(scale: Tensor) -> Tensor:
    """Scales rounded to 16 bits, so that 127 * scale is exact in float32 and packing is idempotent."""
    fraction, exponent = torch.frexp(scale)
    return torch.ldexp((fraction * 2**16).round() / 2**16, exponent)


def unpack(state: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """The float32 tensors of a packed state; a state without scales unchanged.

    Raises CheckpointError for scales that do not fit their weights. `where` names the file.
    """
    scales = {name.removesuffix(_SCALE): state[name] for name in state if name.endswith(_SCALE)}
    if not scales:
        return dict(state)
    for name, scale in scales.items():
        weight = state.get(name)
        fits = weight is not None and weight.dtype == torch.int8 and scale.shape == weight.shape[:1]
        if not fits or not scale.is_floating_point() or not scale.isfinite().all():
            raise CheckpointError(
                f"{where}: {name}{_SCALE} has no 8-bit {name} with as many rows, or is damaged: "
                "download or save the file again"
            )
    bare = [name for name, weight in state.items() if weight.dtype == torch.int8 and name not in scales]
    if bare:
        raise CheckpointError(f"{where}: {bare[0]} has 8 bits and no scales: download or save the file again")
    return {
        name: weight.float() * scales[name].float().view(-1, *[1] * (weight.dim() - 1))
        if name in scales
        else weight
        for name, weight in state.items()
        if not name.endswith(_SCALE)
    }
