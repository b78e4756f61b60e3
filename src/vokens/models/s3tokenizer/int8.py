"""S3Tokenizer's matrix products in 8-bit integers on the CPU, for which float32 weights are rounded once.

Inputs are quantized dynamically with one scale per token, weights with one per output channel; zero is exact, sums
are exact. The number of bits depends on the processor:

- AMX multiplies 8-bit integers 10 to 30 times as fast as float32, so inputs and weights get 16 bits, two digits of
  base 256: y = 256² hi W + 256 (lo W + hi V) with W, V the digits of the weights; lo V is left out.
- VNNI, 4 times as fast, affords one product: 8 bits.
- AVX2 adds pairs of products in 16 bits: 2 * 127 * 127 fits, 2 * 254 * 127 does not, so inputs have 7 bits.

Convolutions, attention, norms and the quantizer stay in float32.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vokens.errors import ConfigError

ROWS = 256  # at a time, which stay in the cache between the steps of one product: 5 % faster
SMALLEST = 1e-12  # step of inputs that are all zero
LARGEST = 127 * 256 + 127  # of the numbers of two digits, each in -128 .. 127
STEPS = {
    8: 254,
    7: 127,
}  # of an input's range; one less than 8 bits hold, for zero rounds to the nearest step


class Int8Linear(nn.Module):
    """The result of `linear`, x (..., in) -> (..., out) float32, from `bits` of each input: 16, 8 or 7.

    None takes what this processor computes exactly. It holds no parameters. Relative error: 1.5 % with 7 bits, 0.01 %
    with 16.
    """

    def __init__(self, linear: nn.Linear, bits: int | None = None) -> None:
        super().__init__()
        self.bits = input_bits() if bits is None else bits
        weight = linear.weight.detach().float()
        size = weight.abs().amax(1)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = torch.zeros_like(size) if linear.bias is None else linear.bias.detach().float()
        if self.bits == 16:
            self._scale = (size / LARGEST).clamp(min=SMALLEST)
            digits = _digits((weight / self._scale[:, None]).round_().to(torch.int16))
            high, pairs = ((some - 128).view(torch.int8) for some in digits)
            self._weight, self._pairs = _pack(high), _pack(pairs.unflatten(1, (-1, 2)).flip(2).flatten(1))
        else:
            self._scale = (size / 127).clamp(min=SMALLEST)
            rounded = (weight / self._scale[:, None]).round()
            self._sums = rounded.sum(1) * self._scale  # the product with inputs of one
            self._weight = _pack(rounded.to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            raise ConfigError(f"int8 runs on the CPU, and the input is on {x.device}: load in float32 there")
        rows = x.flatten(0, -2).float()
        y = rows.new_empty(len(rows), len(self._bias))
        compute = self._two_digits if self.bits == 16 else self._one_digit
        for some, out in zip(rows.split(ROWS), y.split(ROWS), strict=True):
            compute(some, out)
        return y.unflatten(0, x.shape[:-1])

    def _one_digit(self, rows: Tensor, out: Tensor) -> None:
        low, high = rows.amin(1, keepdim=True).clamp_(max=0), rows.amax(1, keepdim=True).clamp_(min=0)
        step = ((high - low) / STEPS[self.bits]).clamp_(min=SMALLEST)
        # An integer, so that zeros are exact: most outputs of GELU are near zero and would have a common error.
        zero = (low / step).round_()
        digits = (rows * (1 / step)).sub_(zero - 0.5).to(torch.uint8)
        y = self._product(digits, self._weight, 1.0, 0)
        torch.addcmul(self._bias, y.addr_(zero[:, 0], self._sums), step, out=out)

    def _two_digits(self, rows: Tensor, out: Tensor) -> None:
        size = torch.maximum(rows.amax(1, keepdim=True), rows.amin(1, keepdim=True).neg_())
        step = (size / LARGEST).clamp_(min=SMALLEST)
        high, pairs = _digits((rows * (1 / step)).round_().to(torch.int16))
        y = self._product(high, self._weight, 256.0**2, 128)
        y = self._product(pairs, self._pairs, 256.0, 128, y)
        torch.addcmul(self._bias, y, step, out=out)

    def _product(
        self, digits: Tensor, weight: Any, scale: float, zero: int, to: Tensor | None = None
    ) -> Tensor:
        """Scaled sums (N, out) float32 of digits - zero, (N, in) uint8, added to `to` where given."""
        operands = digits, scale, zero, weight, self._scale, self._zeros
        plain: tuple[Any, ...] = (1.0, 0, torch.float32)
        if to is None:
            return torch.ops.onednn.qlinear_pointwise(*operands, None, *plain, "none", [], "")
        return torch.ops.onednn.qlinear_pointwise.binary(
            *operands, to, None, *plain, 1.0, 0, "sum", 1.0, "none", [], ""
        )


def _digits(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """High digits (N, K) of numbers (N, K) int16 up to LARGEST, and (N, 2K) low and high ones in turns.

    A digit, -128 .. 127, stands as uint8 with 128 added: for signed inputs VNNI has no fast product.
    """
    shifted = numbers.add_(128).bitwise_xor_(-32768)  # adds 128 to the low digit and to the high one
    return (shifted >> 8).to(torch.uint8), shifted.view(torch.uint8)  # the bytes themselves, lower first


def _pack(digits: Tensor) -> Any:
    """Weights (out, in) int8 in the order in which this processor's product reads them."""
    return torch.ops.onednn.qlinear_prepack(digits.contiguous(), None)


@cache
def input_bits() -> int:
    """Bits of an input for this processor: 16 with AMX, 8 with VNNI, 7 without; 0 where torch has no such product.

    Verified by a product of the largest digits, which shows if sums overflow: oneDNN may not use all instructions.
    """
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return next((bits for bits in ((16, 8, 7) if amx else (8, 7)) if _exact(bits)), 0)


def _exact(bits: int) -> bool:
    linear = nn.Linear(64, 32, bias=False).requires_grad_(False)
    linear.weight.fill_(1.0)
    x = torch.ones(2, 64)
    x[:, 0] = 0.0
    try:
        layer = Int8Linear(linear, bits)
        return all(torch.allclose(layer(sign * x), sign * linear(x), 1e-3) for sign in (1, -1))
    except (AttributeError, NotImplementedError, RuntimeError):  # another torch, another processor
        return False


def check_device(device: torch.device) -> None:
    """Raise ConfigError where int8 does not run: elsewhere than on the CPU, and in builds of torch without oneDNN."""
    if device.type != "cpu":
        raise ConfigError(f"int8 is for the CPU, the codec is on {device}: bfloat16 and float16 are for GPUs")
    if not input_bits():
        raise ConfigError("int8 needs oneDNN's integer products, which this torch lacks: use float32")


def round_weights(network: nn.Module) -> None:
    """Replace every linear layer of a network by its int8 form; the float32 weights are discarded."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
