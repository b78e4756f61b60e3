"""Self-attention over time, with rotary positions (arXiv 2104.09864) and an FSMN memory where a model has them.

Layout (B, T, D). The scores of a whole recording are never written out.
"""

import math
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.nn.fsmn import FSMN
from vokens.nn.product import Linear, by_onednn, linear

Rotation = tuple[Tensor, Tensor]  # cosines and sines (..., T, head width)


# Queries at a time where heads are computed one by one: their scores against 1000 keys, 1 MB, stay in the L2 cache.
_QUERIES = 256
_LEAST_SCORES = 1 << 14  # per head; below, torch's one call is faster than one a head


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention of q (B, H, T, D) over k, v (B, H, S, D): (B, H, T, D).

    mask: broadcastable to (B, H, T, S); bool, True where a query attends, or float, added to the scores. scale:
    1 / sqrt(D) if None. torch's fused attention, but for long float32 rows in inference where products go through
    oneDNN (`vokens.nn.product`): torch's inner products are MKL's, 42 to 84 of an AMD core's 245 GFLOP/s.
    """
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not learns and not dropout and queries * keys >= _LEAST_SCORES and by_onednn(q[0, 0], k[0, 0]):
        if mask is not None:
            mask = mask.expand(len(q), heads, queries, keys)
        # A row of padding has no softmax.
        if mask is None or mask.dtype != torch.bool or bool(mask.any(-1).all()):
            return _by_heads(q, k, v, mask, q.shape[3] ** -0.5 if scale is None else scale)
    if learns and q.device.type == "cpu" and (q.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")):
        return _in_float32(q, k, v, mask, scale, dropout)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)


def _in_float32(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, dropout: float
) -> Tensor:
    """`attention` that learns in bfloat16 on the CPU: torch's backward pass takes 3.5 times as long in it as in float32
    (19.8 and 5.7 ms of 6 x 4 heads of 174 x 48, 46.8 and 13.9 of 16 x 4, one core of a Xeon with AMX)."""
    half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    with torch.autocast("cpu", enabled=False):
        q, k, v = q.float(), k.float(), v.float()
        mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale).to(half)


def _by_heads(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    out = q.new_empty(*q.shape[:3], v.shape[3])
    for row, head in product(range(len(q)), range(q.shape[1])):
        keys, values = k[row, head], v[row, head].t()
        for start in range(0, q.shape[2], _QUERIES):
            block = slice(start, start + _QUERIES)
            scores = linear(q[row, head, block] * scale, keys)
            if mask is not None:
                seen = mask[row, head, block]
                boolean = seen.dtype == torch.bool
                scores = scores.masked_fill_(~seen, -torch.inf) if boolean else scores.add_(seen)
            out[row, head, block] = linear(scores.softmax(-1), values)
    return out


def sinusoids(length: int, width: int) -> Tensor:
    """Position table (length, width), sines left and cosines right, wavelengths 2π to 20000π (Whisper)."""
    rates = torch.exp(-torch.arange(width // 2) * (torch.log(torch.tensor(10000.0)) / (width // 2 - 1)))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def sines(positions: Tensor, width: int) -> Tensor:
    """(..., width) of positions (...): sines in the even channels, cosines in the odd, base 10000."""
    rates = torch.exp(torch.arange(0, width, 2, device=positions.device) * -(math.log(10000.0) / width))
    angles = positions[..., None].float() * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def rotary_rates(width: int, device: torch.device | str = "cpu", base: float = 10000.0) -> Tensor:
    """Radians per position (width / 2,) of a head of this width."""
    return 1.0 / base ** (torch.arange(0, width, 2, device=device).float() / width)


def rotation(length: int, width: int, device: torch.device) -> Rotation:
    """Cosines and sines (length, width) of the positions 0, 1, 2 …"""
    return rotation_at(torch.arange(length, device=device), width)


def rotation_at(positions: Tensor, width: int, base: float = 10000.0) -> Rotation:
    """Cosines and sines (..., width) of rotary positions (...); the two halves of a head rotate together."""
    angles = positions[..., None].float() * rotary_rates(width, positions.device, base)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """x (B, H, T, D) turned by its position, in its own precision."""
    left, right = x.chunk(2, -1)
    cosines, sines = (part.to(x.dtype) for part in by)
    return x * cosines + torch.cat([-right, left], -1) * sines


class SelfAttention(nn.Module):
    """Multi-head self-attention whose keys have no bias (Whisper), plus a memory of the values if memory_taps > 0."""

    def __init__(self, width: int, heads: int, memory_taps: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width)
        self.out = Linear(width, width)
        self.memory = FSMN(width, memory_taps) if memory_taps else None

    def forward(self, x: Tensor, mask: Tensor | None = None, positions: Rotation | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D); mask (B, T) bool is True inside each row's length."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        if positions is not None:
            q, k = rotate(q, positions), rotate(k, positions)
        keys = None if mask is None else mask[:, None, None]
        attended = attention(q, k, v, keys)
        y = self.out(attended.transpose(1, 2).flatten(2))
        if self.memory is None:
            return y
        inside = None if mask is None else mask.unsqueeze(-1).to(value.dtype)
        return y + self.memory(value, inside)
