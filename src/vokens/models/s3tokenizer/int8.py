"""S3Tokenizer's matrix products in 8-bit integers on the CPU, for which float32 weights are rounded once.

Weights have one scale per output, inputs one scale and offset per token, measured as they come; sums are exact. The
trick: 7 bits of input times 8 bits of weight, because AVX2 adds pairs of products in 16 bits: 2 * 127 * 127 fits,
2 * 255 * 127 does not. Convolutions, attention, norms and the quantizer stay in float32.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vokens.errors import ConfigError

STEPS = 127  # of an input's range, 7 bits; of half a weight's range, 8 bits with the sign
SMALLEST = 1e-12  # step of inputs that are all equal


class Int8Linear(nn.Module):
    """What `linear` computes, x (..., in) -> (..., out) float32, within 1.5 % of its size; it holds no parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self._scale = (weight.abs().amax(1) / STEPS).clamp(min=SMALLEST)
        rounded = (weight / self._scale[:, None]).round()
        self._sums = rounded.sum(1) * self._scale  # what inputs of one give
        self._bias = torch.zeros_like(self._sums) if linear.bias is None else linear.bias.detach().float()
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._weight: Any = torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            raise ConfigError(f"int8 runs on the CPU, and the input is on {x.device}: load in float32 there")
        rows = x.flatten(0, -2).float()
        low = rows.amin(1, keepdim=True)
        step = ((rows.amax(1, keepdim=True) - low) / STEPS).clamp(min=SMALLEST)
        digits = ((rows - low) * (1 / step)).add_(0.5).to(torch.int8).view(torch.uint8)  # 0 .. 127
        y = torch.ops.onednn.qlinear_pointwise(
            digits,
            1.0,
            0,
            self._weight,
            self._scale,
            self._zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        y = torch.addcmul(torch.addr(self._bias, low[:, 0], self._sums), y, step)
        return y.unflatten(0, x.shape[:-1])


def check_device(device: torch.device) -> None:
    """Raises ConfigError where int8 does not run: elsewhere than on the CPU, and in builds of torch without oneDNN."""
    if device.type != "cpu":
        raise ConfigError(
            f"int8 is for the CPU, and the codec is on {device}: bfloat16 and float16 are for GPUs"
        )
    if not torch.backends.mkldnn.is_available():
        raise ConfigError("int8 needs oneDNN, which this build of torch lacks: use float32")


def round_weights(network: nn.Module) -> None:
    """Replace every linear layer of a network by its int8 form; the float32 weights are given up."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
