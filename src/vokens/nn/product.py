"""Matrix products on CPUs: in float32 oneDNN's where MKL's are slow, torch's own everywhere else; where bfloat16 pays.

torch multiplies through MKL, which serves other makers' processors badly: 97 GFLOP/s of 1000 x 1280 x 5120 on one core
of an AMD EPYC with AVX-512, where oneDNN, which is inside every x86 torch, reaches 219 (245 with weights reordered,
the core's peak); 105 against 125 where only AVX2 is there. On Intel's own MKL is as fast forward (157 against 154) and
faster backward (159 against 101, Xeon with AMX), but for 4 to 15 rows times large weights, as where a language model
decodes a batch: there oneDNN is 1.3 to 1.9 times as fast. So maker and shape decide, and the same machine always
computes the same; VOKENS_PRODUCT=torch or onednn decides otherwise.

A Xeon with AMX multiplies 1040 GFLOP/s in bfloat16, 130 in float32; a processor without instructions for bfloat16 does
1 % of its float32: `fast` says which one this is.
"""

import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.errors import ConfigError

NAMES = ("torch", "onednn")
# Below, the call of the private op costs more than its product saves: 2 µs against 1 µs.
_LEAST_WORK = 1 << 16  # multiplications
_LARGE = 1 << 20  # numbers of a weight for which few rows have a product of their own

# Flags of x86 and Arm that name a type's products.
_FLAGS = {torch.bfloat16: {"amx_bf16", "avx512_bf16", "bf16"}, torch.float16: {"avx512_fp16", "asimdhp"}}

_forced: str | None = None
_log = logging.getLogger(__name__)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times weight (out, in), plus bias (out): `F.linear` by the product of this processor."""
    if not by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` whose product is `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def use_in(module: nn.Module) -> None:
    """Turn every plain `nn.Linear` inside, of a network that another library built, into ours; names stay."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear


def reordered(weight: Tensor, rows: int) -> Tensor | None:
    """A copy of a weight (out, in) in oneDNN's order, for many products with few rows by `few_rows`; None where they
    gain nothing.

    Measured on one core of a Xeon with AMX, 1024 x 4096: 4 to 16 rows 1.2 to 1.7 times as fast as torch's, 32 rows
    1.1, one or two 0.8 to 0.95. Reordering takes 4 ms, what 5 to 20 products save, so nobody has to keep the copy.
    """
    pays = 4 <= rows <= 32 and weight.numel() >= _LARGE
    plain = weight.dtype == torch.float32 and weight.device.type == "cpu" and not torch.is_grad_enabled()
    if not pays or not plain or not _allowed():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    except (AttributeError, RuntimeError):  # another torch
        return None


def few_rows(x: Tensor, weight: Tensor) -> Tensor:
    """x (rows, in) times a `reordered` weight: (rows, out)."""
    return _product(x, weight, None)


def backend() -> str:
    """Product in use for float32 on this CPU: "onednn" or "torch"."""
    return _forced or _chosen()


@contextmanager
def using(name: str) -> Iterator[None]:
    """Within, products are those of `name`; "onednn" only where this torch has it."""
    global _forced
    before, _forced = _forced, _checked(name)
    try:
        yield
    finally:
        _forced = before


def maker() -> str:
    """Maker of the processor as it states it, "AuthenticAMD" or "GenuineIntel"; "" where none is found."""
    if sys.platform == "linux":
        return cpuinfo("vendor_id")
    return "AuthenticAMD" if "AuthenticAMD" in platform.processor() else ""


def features() -> list[str]:
    """Instructions of this CPU that decide the speed of products, as people call them: AVX-512, AMX bfloat16 …"""
    vectors = torch.backends.cpu.get_cpu_capability()
    names = {"AVX512": "AVX-512", "DEFAULT": "no vectors"}
    by = "AMX " if "amx_bf16" in _flags() else ""
    return [names.get(vectors, vectors), f"{by}bfloat16" if fast(torch.bfloat16) else "no bfloat16"]


@cache
def fast(dtype: torch.dtype) -> bool:
    """True where this CPU multiplies bfloat16 or float16 by instructions of its own, and oneDNN uses them, which
    ONEDNN_MAX_CPU_ISA can forbid; True of other types."""
    if dtype not in _FLAGS:
        return True
    if not _flags() & _FLAGS[dtype] or not torch.backends.mkldnn.is_available():
        return False
    op = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    try:
        return bool(getattr(torch.ops.mkldnn, op)())
    except (AttributeError, RuntimeError):  # another torch has no such name
        return True


def warn_where_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Say in one line that half precision is slower than float32 on this device, where it is."""
    if device.type == "cpu" and not fast(dtype):
        _log.warning(
            "vokens: warning: %s was requested, and this CPU (%s) computes it many times slower than float32: "
            "leave the type out",
            str(dtype).removeprefix("torch."),
            ", ".join(features()),
        )


def _flags() -> set[str]:
    """Flags of the processor as Linux calls them; none elsewhere."""
    return {*cpuinfo("flags").split(), *cpuinfo("Features").split()}


@cache
def cpuinfo(field: str) -> str:
    """The value of this name in /proc/cpuinfo for the first core; "" elsewhere, and where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == field), "")


@cache
def _chosen() -> str:
    if name := os.environ.get("VOKENS_PRODUCT"):
        return _checked(name)
    return "onednn" if maker() == "AuthenticAMD" and _available() else "torch"


def _checked(name: str) -> str:
    if name not in NAMES or (name == "onednn" and not _available()):
        has = " or ".join(NAMES) if _available() else "torch (this build has no oneDNN product)"
        raise ConfigError(
            f"VOKENS_PRODUCT is {name!r}, and can be {has}: unset it to let the processor decide"
        )
    return name


@cache
def _available() -> bool:
    """True where torch has the private product and it agrees with `F.linear`, on a small one."""
    if not torch.backends.mkldnn.is_available() or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    x, weight = torch.arange(24.0).view(4, 6), torch.arange(18.0).view(3, 6) / 8
    try:
        with torch.no_grad():
            return torch.equal(_product(x, weight, torch.ones(3)), F.linear(x, weight, torch.ones(3)))
    except (AttributeError, RuntimeError):  # another torch: no such name, or other arguments
        return False


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # A part of a wider tensor, such as one head's keys, goes to oneDNN's reference loops: 640 ms instead of 0.15 for
    # 500 x 64 x 500 on an AMD EPYC (Zen 5).
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """True where `linear` takes oneDNN's product for these."""
    return (
        not torch.compiler.is_compiling()  # exporters and compilers know F.linear
        and not torch.jit.is_tracing()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and (_few_rows(x, weight) or (backend() == "onednn" and x.numel() * weight.shape[0] >= _LEAST_WORK))
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()  # forward-mode derivatives (MeanFlow)
    )


def _few_rows(x: Tensor, weight: Tensor) -> bool:
    """True for 4 to 15 rows times a large weight in inference, where MKL takes 1.3 to 2.3 times as long.

    Milliseconds of one core of a Xeon with AMX for 8 rows, weights of 64 MB in turns, by MKL, oneDNN, and oneDNN with
    weights reordered: 1024 x 4096 3.5, 2.2, 1.7 to 2.1; 4096 x 1024 3.0, 1.7, 1.8; 896 x 4864 3.7, 2.2, 1.9. So
    decoding keeps no reordered weights, a second copy of the model. One row 0.75, 0.7 to 0.9, 1.1; of 16 rows and of
    320 x 1280 nothing is gained.
    """
    few = 4 * x.shape[-1] <= x.numel() < 16 * x.shape[-1] and weight.numel() >= _LARGE
    return few and not torch.is_grad_enabled() and _allowed()


def _allowed() -> bool:
    """True where torch has oneDNN's product, and nobody asked for torch's."""
    return (_forced or os.environ.get("VOKENS_PRODUCT")) != "torch" and _available()


class _Linear(torch.autograd.Function):
    """The product and its two gradients, each through oneDNN."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        # differentiable again (gradient penalties) where autograd records this pass
        by_x = linear(grad, weight.t()) if needs_x else None
        by_weight = linear(rows.t(), x.flatten(0, -2).t()) if needs_weight else None
        return by_x, by_weight, rows.sum(0) if needs_bias else None
