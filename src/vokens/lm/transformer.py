"""A causal transformer: GPT-2's layers with rotary positions (arXiv 2104.09864). Layout (B, T, D)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.lm.cache import KVCache, LayerCache
from vokens.nn.attention import Rotation, attention, rotate, rotation_at
from vokens.nn.product import Linear


class Block(nn.Module):
    """Attention to the past, then a feed-forward of four times the width, each after a norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.project = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.up = Linear(width, 4 * width)
        self.down = Linear(4 * width, width)

    def forward(
        self, x: Tensor, positions: Rotation, mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        """x (B, T, D) that follows the cache -> (B, T, D); mask (B or 1, 1, T, S) bool."""
        parts = self.project(self.attention_norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k = rotate(q, positions), rotate(k, positions)
        if cache is not None:
            k, v = cache.append(k, v)
        x = x + self._dropped(self.out(attention(q, k, v, mask).transpose(1, 2).flatten(2)))
        return x + self._dropped(self.down(F.gelu(self.up(self.norm(x)))))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class CausalTransformer(nn.Module):
    """Layers and a last norm.

    width: D, a multiple of twice the heads. dropout: of what each half of a layer adds, in training.
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.head_width = width // heads
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for block in self._blocks():  # GPT-2's start: the sum over layers keeps its size
            for linear in (block.out, block.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * layers) ** 0.5)
            for linear in (block.project, block.up):
                nn.init.normal_(linear.weight, std=0.02)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """x (B, T, D), T >= 1, that follows the cache, which then holds it -> (B, T, D)."""
        before = cache or KVCache(1)
        mask = before.mask(x.shape[1], x.device)
        places = torch.arange(before.length, before.length + x.shape[1], device=x.device)
        positions = rotation_at(places, self.head_width)
        for number, block in enumerate(self._blocks()):
            x = block(x, positions, mask, None if cache is None else cache.layers[number])
        return self.norm(x)

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))
