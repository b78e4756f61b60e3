"""Qwen2's decoder (arXiv 2407.10671), with the names of transformers, whose weights load without a table."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.errors import ConfigError
from vokens.lm.cache import KVCache, LayerCache
from vokens.nn.attention import Rotation, attention, rotate, rotation_at
from vokens.nn.product import Linear


@dataclass(frozen=True)
class Qwen2Sizes:
    """Sizes of the backbone; the defaults are Qwen2-0.5B's (CosyVoice-BlankEN)."""

    vocab_size: int = 151_936
    width: int = 896
    hidden: int = 4864
    layers: int = 24
    heads: int = 14
    kv_heads: int = 2
    max_positions: int = 32_768
    rope_theta: float = 1e6
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ConfigError(
                f"width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}: each must be a multiple of the next"
            )


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
        self, x: Tensor, positions: Rotation, mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        """x (B, n, W) that follows the cache -> (B, n, W); mask (B or 1, 1, n, T) bool."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, positions), rotate(k, positions)
        if cache is not None:
            k, v = cache.append(k, v)
        keys, values = (part.repeat_interleave(self.group, 1) for part in (k, v))
        return self.o_proj(attention(q, keys, values, mask).transpose(1, 2).flatten(2))


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
        self, x: Tensor, positions: Rotation, mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), positions, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


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

    def forward(self, x: Tensor, positions: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """x (B, n, W) that follows the cache, which then holds it -> states (B, n, W).

        positions: (B, n), numbers of any kind; None for those that follow the cache's.
        """
        before = cache or KVCache(1)
        mask = before.mask(x.shape[1], x.device)
        positions = before.positions(x.shape[1], x.device) if positions is None else positions
        width = self.sizes.width // self.sizes.heads
        rotation = rotation_at(positions[:, None], width, self.sizes.rope_theta)
        for number, layer in enumerate(self.layers):
            x = layer(x, rotation, mask, None if cache is None else cache.layers[number])
        return self.norm(x)
