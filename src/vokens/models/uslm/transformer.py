"""The transformer of both networks of USLM: pre-norm, ReLU, sine positions, norms that a stage scales (VALL-E §4.2).

A sequence is text, then speech, each padded on its right with positions from 0 (speech at a pace of its own
where it has one). With a KV cache a code is a step of one row per item; text never attends to speech, so the result
is the whole pass's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.lm.cache import KVCache, LayerCache
from vokens.models.uslm.config import USLMConfig
from vokens.nn.attention import attention, sines
from vokens.nn.product import Linear


class Positions(nn.Module):
    """Adds sine positions, scaled by one number, which training moves where `learned`."""

    def __init__(self, width: int, dropout: float, learned: bool) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.ones(1), requires_grad=learned)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """x (B, T, D) at positions `places` (B, T), by default 0, 1, 2 …"""
        if places is None:
            places = torch.arange(x.shape[1], device=x.device)[None]
        return self.dropout(x + self.scale * sines(places, self.width).to(x.dtype))


class Attention(nn.Module):
    """Multi-head attention with one projection for queries, keys and values."""

    def __init__(self, config: USLMConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.project = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        parts = self.project(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if cache is not None:
            k, v = cache.append(k, v)
        y = attention(q, k, v, mask, dropout=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))


class Norm(nn.Module):
    """Layer norm; with a stage, a weight and a bias of its embedding after it (the weight has no 1 added)."""

    def __init__(self, width: int, staged: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project = Linear(width, 2 * width) if staged else None
        if self.project is not None:  # a fresh network's stages are equal
            nn.init.zeros_(self.project.weight)
            nn.init.zeros_(self.project.bias[width:])
            nn.init.ones_(self.project.bias[:width])

    def forward(self, x: Tensor, stage: Tensor | None) -> Tensor:
        """x (B, T, D), stage (D,) or None."""
        x = self.norm(x)
        if self.project is None or stage is None:
            return x
        weight, bias = self.project(stage).chunk(2, -1)
        return weight * x + bias


class Layer(nn.Module):
    """Attention and a perceptron, each after a norm and beside a residual path."""

    def __init__(self, config: USLMConfig, staged: bool) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.up = Linear(config.width, config.feedforward)
        self.down = Linear(config.feedforward, config.width)
        self.norm1 = Norm(config.width, staged)
        self.norm2 = Norm(config.width, staged)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, stage: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x, stage), mask, cache))
        hidden = self.dropout(F.relu(self.up(self.norm2(x, stage))))
        return x + self.dropout(self.down(hidden))


class Transformer(nn.Module):
    """Layers and a last norm. staged: every norm takes a stage's embedding."""

    def __init__(self, config: USLMConfig, staged: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, staged) for _ in range(config.layers))
        self.norm = Norm(config.width, staged)

    def forward(
        self, x: Tensor, mask: Tensor | None, stage: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """x (B, T, D) that follows the cache, which then holds it -> (B, T, D).

        mask: (B, 1, 1 or T, S) bool, True where a row attends to a column; None where to all.
        stage: (D,) of a staged network.
        """
        for number, layer in enumerate(self.layers):
            x = layer(x, mask, stage, None if cache is None else cache.layers[number])
        return self.norm(x, stage)
