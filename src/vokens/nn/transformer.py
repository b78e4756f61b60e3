"""A causal transformer (GPT-2's layers, with rotary positions, arXiv 2104.09864) that goes on from where it stopped.

Layout (B, T, D). Keys and values of what was seen stay in a cache, so a step costs one position; whatever is cut into
pieces gives what the whole gives.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.nn.attention import Rotation, attention, rotate, rotation
from vokens.nn.product import Linear


@dataclass(frozen=True)
class Cache:
    """KV cache of a transformer: keys and values (B, H, T, D / H) of each layer."""

    layers: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def select(self, rows: Tensor) -> "Cache":
        """The cache of some rows."""
        return Cache(tuple((k[rows], v[rows]) for k, v in self.layers))


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
        self, x: Tensor, positions: Rotation, seen: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, T, D) that follows what was seen -> (B, T, D), and all that is seen now."""
        parts = self.project(self.attention_norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k = rotate(q, positions), rotate(k, positions)
        if seen is not None:
            k, v = torch.cat([seen[0], k], 2), torch.cat([seen[1], v], 2)
        attended = attention(q, k, v, _causal(q.shape[2], k.shape[2], q.device))
        x = x + self._dropped(self.out(attended.transpose(1, 2).flatten(2)))
        x = x + self._dropped(self.down(F.gelu(self.up(self.norm(x)))))
        return x, (k, v)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def _causal(new: int, total: int, device: torch.device) -> Tensor | None:
    """(new, total) bool: which positions each of the new, last ones sees; None where that is all of them."""
    if new == 1:
        return None
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)


class CausalTransformer(nn.Module):
    """Layers and a last norm.

    Args:
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

    def forward(self, x: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """x (B, T, D), T >= 1, that follows the cache -> (B, T, D), and the cache for what follows x."""
        cache = cache or Cache()
        first, last = cache.length, cache.length + x.shape[1]
        cosines, sines = rotation(last, self.head_width, x.device)
        positions = cosines[first:], sines[first:]
        seen = []
        for number, block in enumerate(self._blocks()):
            x, kept = block(x, positions, cache.layers[number] if cache.layers else None)
            seen.append(kept)
        return self.norm(x), Cache(tuple(seen))

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))
