"""Self-attention over time, with rotary positions (arXiv 2104.09864) and an FSMN memory where a model has them.

Layout (B, T, D). Scores are never written out: torch's fused attention takes the lengths as a mask of keys.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.nn.fsmn import Memory

Rotation = tuple[Tensor, Tensor]  # cosines and sines (T, head width)


def sinusoids(length: int, width: int) -> Tensor:
    """Position table (length, width), sines left and cosines right, wavelengths 2π to 20000π (Whisper)."""
    rates = torch.exp(-torch.arange(width // 2) * (torch.log(torch.tensor(10000.0)) / (width // 2 - 1)))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def rotation(length: int, width: int, device: torch.device) -> Rotation:
    """Cosines and sines (length, width) of rotary positions; the two halves of a head rotate together."""
    rates = 1.0 / 10000.0 ** (torch.arange(0, width, 2, device=device).float() / width)
    angles = torch.arange(length, device=device).float()[:, None] * rates
    angles = torch.cat([angles, angles], 1)
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
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.memory = Memory(width, memory_taps) if memory_taps else None

    def forward(self, x: Tensor, mask: Tensor | None = None, positions: Rotation | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D); mask (B, T) bool is True inside each row's length."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        if positions is not None:
            q, k = rotate(q, positions), rotate(k, positions)
        keys = None if mask is None else mask[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        y = self.out(attended.transpose(1, 2).flatten(2))
        if self.memory is None:
            return y
        inside = None if mask is None else mask.unsqueeze(-1).to(value.dtype)
        return y + self.memory(value, inside)
