"""Qwen2's decoder (arXiv 2407.10671): the backbone of Learnable-Speech's language model.

Tensors are named as in transformers, whose weights of Qwen2 load without a table.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.models.learnable.config import Qwen2Sizes
from vokens.nn.attention import Rotation, attention, rotate
from vokens.nn.product import Linear
from vokens.nn.transformer import Cache

Seen = tuple[Tensor, Tensor]  # keys and values (B, kv_heads, T, D) of a layer


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class Attention(nn.Module):
    """Causal attention; groups of heads share their keys and values."""

    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        self.head, self.group = sizes.width // sizes.heads, sizes.heads // sizes.kv_heads
        self.q_proj = Linear(sizes.width, sizes.heads * self.head)
        self.k_proj = Linear(sizes.width, sizes.kv_heads * self.head)
        self.v_proj = Linear(sizes.width, sizes.kv_heads * self.head)
        self.o_proj = Linear(sizes.heads * self.head, sizes.width, bias=False)

    def forward(
        self, x: Tensor, positions: Rotation, mask: Tensor | None, seen: Seen | None
    ) -> tuple[Tensor, Seen]:
        """x (B, n, W) behind what was seen -> (B, n, W), and all that is seen now; mask (B or 1, 1, n, T) bool."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, positions), rotate(k, positions)
        if seen is not None:
            k, v = torch.cat([seen[0], k], 2), torch.cat([seen[1], v], 2)
        keys, values = (part.repeat_interleave(self.group, 1) for part in (k, v))
        attended = attention(q, keys, values, mask)
        return self.o_proj(attended.transpose(1, 2).flatten(2)), (k, v)


class FeedForward(nn.Module):
    """A gated feed-forward (SwiGLU)."""

    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        self.gate_proj = Linear(sizes.width, sizes.hidden, bias=False)
        self.up_proj = Linear(sizes.width, sizes.hidden, bias=False)
        self.down_proj = Linear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention, then the feed-forward, each behind a norm."""

    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = FeedForward(sizes)
        self.input_layernorm = RMSNorm(sizes.width, sizes.norm_eps)
        self.post_attention_layernorm = RMSNorm(sizes.width, sizes.norm_eps)

    def forward(
        self, x: Tensor, positions: Rotation, mask: Tensor | None, seen: Seen | None
    ) -> tuple[Tensor, Seen]:
        y, kept = self.self_attn(self.input_layernorm(x), positions, mask, seen)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), kept


class Qwen2(nn.Module):
    """Embeddings to states, going on from a cache. `embed_tokens` is the text's table, which callers look up."""

    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed_tokens = nn.Embedding(sizes.vocab_size, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = RMSNorm(sizes.width, sizes.norm_eps)
        for part in self.modules():  # as Qwen2 starts
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=0.02)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        filling: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, Cache]:
        """x (B, n, W) that follows the cache -> states (B, n, W), and the cache for what follows x.

        positions: (B, n), numbers of any kind; None for those that follow the cache's. filling: (B,) places at the
        left of each row, counted from the cache's start, that are never looked at.
        """
        cache = cache or Cache()
        first, total = cache.length, cache.length + x.shape[1]
        places = torch.arange(total, device=x.device)
        if positions is None:
            positions = places[None, first:]
        turn = self._rotation(positions)
        mask = self._mask(places, first, filling)
        seen = []
        for number, layer in enumerate(self.layers):
            x, kept = layer(x, turn, mask, cache.layers[number] if cache.layers else None)
            seen.append(kept)
        return self.norm(x), Cache(tuple(seen))

    def _rotation(self, positions: Tensor) -> Rotation:
        """Cosines and sines (B or 1, 1, n, head), in float32."""
        head = self.sizes.width // self.sizes.heads
        steps = torch.arange(0, head, 2, device=positions.device).float() / head
        angles = positions[:, None, :, None].float() * (1.0 / self.sizes.rope_theta**steps)
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()

    @staticmethod
    def _mask(places: Tensor, first: int, filling: Tensor | None) -> Tensor | None:
        """(B or 1, 1, n, T) bool, which places each new one sees; None where that is all of them.

        Filling sees itself: a softmax over nothing would be NaN, which later layers would spread.
        """
        new = places[first:, None]
        if filling is None:
            return None if len(new) == 1 else (places <= new)[None, None]
        seen = (places <= new) & (places >= filling[:, None, None])
        return (seen | (places == new))[:, None]
