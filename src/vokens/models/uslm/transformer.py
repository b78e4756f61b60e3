"""The transformer of both networks of USLM: pre-norm, ReLU, sine positions, norms that a stage scales (VALL-E §4.2).

A sequence is text, then speech, each padded on its right and counted from position 0 (speech at a pace of its own
where it has one). With a memory of keys and
values a code is a step of one row per item; text never looks at speech, so the result is the whole pass's.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.nn.attention import attention
from vokens.nn.product import Linear


def sines(positions: Tensor, width: int) -> Tensor:
    """(B, T, width) of positions (B, T): sines in the even channels, cosines in the odd, base 10000."""
    steps = torch.arange(0, width, 2, device=positions.device)
    rates = torch.exp(steps * -(math.log(10000.0) / width))
    angles = positions[..., None].float() * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


class Positions(nn.Module):
    """Adds sine positions, scaled by one number, which training moves where `learned`."""

    def __init__(self, width: int, dropout: float, learned: bool) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.ones(1), requires_grad=learned)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        """x (B, T, D) at places (B, T), by default 0, 1, 2 …"""
        if places is None:
            places = torch.arange(x.shape[1], device=x.device)[None]
        return self.dropout(x + self.scale * sines(places, self.width).to(x.dtype))


def attention_mask(
    text_lengths: Tensor, speech_lengths: Tensor, sizes: tuple[int, int], causal: bool
) -> Tensor:
    """(B, 1, L + N, L + N) bool, True where a row (query) sees a column, for L, N = sizes padded text and speech.

    causal: text sees text alone, speech sees all text and its past. Otherwise each sees all.
    """
    text, speech = sizes
    device = text_lengths.device
    mask = torch.cat(
        [
            torch.arange(text, device=device) < text_lengths[:, None],
            torch.arange(speech, device=device) < speech_lengths[:, None],
        ],
        1,
    )[:, None, None]
    if not causal:
        return mask.expand(-1, 1, text + speech, -1)
    past = torch.ones(text + speech, text + speech, dtype=torch.bool, device=device).tril()
    past[:, :text] = True
    return mask & past


class Memory:
    """Keys and values (B, H, S, D) that a layer has seen; rows write at places of their own."""

    GROWTH = 256  # free places made at once

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def add(self, keys: Tensor, values: Tensor, places: Tensor | None, seen: int) -> tuple[Tensor, Tensor]:
        """All up to `seen`, after a first pass's keys (B, H, S, D), or one step's (B, H, 1, D) at places (B,)."""
        if self.keys is None or self.values is None or places is None:
            self.keys, self.values = keys, values
            return keys, values
        if self.keys.shape[2] < seen:
            self.keys = F.pad(self.keys, (0, 0, 0, self.GROWTH))
            self.values = F.pad(self.values, (0, 0, 0, self.GROWTH))
        rows = torch.arange(len(places), device=places.device)
        self.keys[rows, :, places], self.values[rows, :, places] = keys[:, :, 0], values[:, :, 0]
        return self.keys[:, :, :seen], self.values[:, :, :seen]


class Attention(nn.Module):
    """Multi-head attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.project = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, memory: Memory | None, places: Tensor | None) -> Tensor:
        parts = self.project(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        if memory is not None:
            k, v = memory.add(k, v, places, mask.shape[-1])
        y = attention(q, k, v, mask, dropout=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))


class Norm(nn.Module):
    """Layer norm; with a stage, a weight and a bias of its embedding after it (the weight has no 1 added)."""

    def __init__(self, width: int, staged: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project = Linear(width, 2 * width) if staged else None
        if self.project is not None:  # a fresh network's stages are alike
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

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, staged: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.up = Linear(width, feedforward)
        self.down = Linear(feedforward, width)
        self.norm1 = Norm(width, staged)
        self.norm2 = Norm(width, staged)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor, stage: Tensor | None, memory: Memory | None, places: Tensor | None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x, stage), mask, memory, places))
        hidden = self.dropout(F.relu(self.up(self.norm2(x, stage))))
        return x + self.dropout(self.down(hidden))


class Transformer(nn.Module):
    """Layers and a last norm. staged: every norm takes a stage's embedding."""

    def __init__(
        self, width: int, heads: int, layers: int, feedforward: int, dropout: float, staged: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [Layer(width, heads, feedforward, dropout, staged) for _ in range(layers)]
        )
        self.norm = Norm(width, staged)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        stage: Tensor | None = None,
        memory: list[Memory] | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D).

        Args:
            mask: (B, 1, T, S) bool, True where a row sees a column.
            stage: (D,) of a staged network. memory: one per layer, filled by a first pass and continued by steps
                of T = 1, whose rows stand at places (B,) among the S.
        """
        for number, layer in enumerate(self.layers):
            x = layer(x, mask, stage, None if memory is None else memory[number], places)
        return self.norm(x, stage)
