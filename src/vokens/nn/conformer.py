"""The conformer's attention layer with relative positions (Transformer-XL, arXiv 1901.02860 §3.3), streamable.

Layout (B, T, D). The score of query i and key j is (q_i + u) k_j + (q_i + v) p_{i-j}; the second term goes into the
fused attention as its bias. Projected positions p depend on the distance alone: they are kept and sliced.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.nn.attention import attention, sines
from vokens.nn.product import Linear, linear
from vokens.nn.streaming import Context, StreamState, with_left_context


class LayerNorm(nn.LayerNorm):
    """Layer norm in float32 whatever the type around it: its epsilon may be 1e-12, nothing in half precision."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class CausalConv(nn.Conv1d):
    """(B, T, in) -> (B, T, out): a convolution over the past, as one matrix product over windows of positions."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)

    def forward(self, input: Tensor, state: StreamState | None = None) -> Tensor:
        x = with_left_context(self, input, self.kernel_size[0] - 1, state)
        return windowed(x, self.weight, self.bias)


def windowed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution of x (B, T + k - 1, in) with weight (out, in, k), without padding -> (B, T, out)."""
    windows = x if weight.shape[2] == 1 else x.unfold(1, weight.shape[2], 1).flatten(2)
    return linear(windows, weight.flatten(1), bias)


def relative_shift(x: Tensor, keys: int) -> Tensor:
    """Scores (B, H, Q, keys + Q - 1) by distance keys - 1 ... -(Q - 1) -> a view (B, H, Q, keys) by key.

    The last query sits on the last key; each earlier one reads its row one step further right.
    """
    x = x.contiguous()
    queries, distances = x.shape[2:]
    strides = (x.stride(0), x.stride(1), distances - 1, 1)
    return x.as_strided((*x.shape[:3], keys), strides, x.storage_offset() + queries - 1)


class RelativeAttention(nn.Module):
    """Multi-head self-attention over content and distance; queries, keys and values come from one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.qkv = Linear(width, 3 * width)
        self.positions = Linear(width, width, bias=False)
        self.bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.bias_v = nn.Parameter(torch.zeros(heads, width // heads))
        self.out = Linear(width, width)
        self._table: tuple[object, int, Tensor] | None = None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, H, T, d)
        q, kv = parts[0], parts[1:]
        k, v = context.keys_and_values(self, kv)
        queries, keys = q.shape[2], k.shape[2]
        scale = q.shape[3] ** -0.5
        places = self._distances(keys - 1, queries - 1)
        by_distance = (q + self.bias_v[:, None]) * scale @ places.transpose(1, 2)
        bias = relative_shift(by_distance, keys)
        if context.mask is not None:
            bias = bias.masked_fill(~context.mask, -torch.inf)
        y = attention(q + self.bias_u[:, None], k, v, bias, scale)
        return self.out(y.transpose(1, 2).flatten(2))

    def _distances(self, past: int, future: int) -> Tensor:
        """Projected positions (H, past + future + 1, d) of distances past ... -future; kept for inference."""
        if torch.is_grad_enabled():
            return self._project(past, future)
        weight = self.positions.weight
        version = None if weight.is_inference() else weight._version
        owner = (weight.data_ptr(), version, weight.dtype, weight.device)
        if self._table is None or self._table[0] != owner or self._table[1] < max(past, future):
            reach = 1 << max(past, future, 63).bit_length()
            self._table = (owner, reach, self._project(reach, reach))
        _, reach, table = self._table
        return table[:, reach - past : reach + future + 1]

    def _project(self, past: int, future: int) -> Tensor:
        weight = self.positions.weight
        table = sines(torch.arange(past, -future - 1, -1, device=weight.device), self.width).to(weight.dtype)
        return self.positions(table).unflatten(1, (self.heads, -1)).transpose(0, 1)


class ConformerLayer(nn.Module):
    """Pre-norm attention and feed-forward with SiLU: a conformer block (arXiv 2005.08100) without its convolution."""

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width, eps=1e-12)
        self.attention = RelativeAttention(width, heads)
        self.norm2 = LayerNorm(width, eps=1e-12)
        self.up = Linear(width, feed_forward)
        self.down = Linear(feed_forward, width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        x = x + self.attention(self.norm1(x), context)
        return x + self.down(F.silu(self.up(self.norm2(x))))
