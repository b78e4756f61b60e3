"""KV cache of a decoder language model, and the masks of its attention.

A ragged batch is padded once, in its prefix; what follows is appended to all rows alike. Padding is masked and not
counted by positions, so a row gets what it gets alone, and reading in pieces gives what reading at once gives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from vokens.nn.masks import padding_mask

GROWTH = 256  # free places made at once: a step then copies one position instead of all


class LayerCache:
    """Keys and values (B, H, S, D) of one layer."""

    def __init__(self) -> None:
        self.length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, behind new ones (B, H, n, D)."""
        start, self.length = self.length, self.length + keys.shape[2]
        if self._buffers is None:
            self._buffers = keys, values
            return keys, values
        missing = self.length - self._buffers[0].shape[2]
        if missing > 0:
            old, room = self._buffers, (0, 0, 0, missing + GROWTH)
            self._buffers = F.pad(old[0], room), F.pad(old[1], room)
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, start : self.length] = new
        return self._buffers[0][:, :, : self.length], self._buffers[1][:, :, : self.length]


class KVCache:
    """Keys and values of all layers.

    padding_mask: (B, S) bool of the prefix, False at padding; None for rows of one length.
    """

    def __init__(self, layers: int, padding_mask: Tensor | None = None) -> None:
        self.layers = [LayerCache() for _ in range(layers)]
        self.padding_mask = padding_mask

    @property
    def length(self) -> int:
        """Positions that were read, padding included."""
        return self.layers[0].length

    def mask(self, new: int, device: torch.device) -> Tensor | None:
        """`causal_mask` of n new positions behind those that were read."""
        return causal_mask(new, self.length + new, device, self._padding_mask(new))

    def positions(self, new: int, device: torch.device) -> Tensor:
        """Positions (B or 1, n) of n new ones; padding is not counted."""
        real = self._padding_mask(new)
        if real is None:
            return torch.arange(self.length, self.length + new, device=device)[None]
        return (real.cumsum(1) - 1).clamp(min=0)[:, -new:]

    def _padding_mask(self, new: int) -> Tensor | None:
        if self.padding_mask is None:
            return None
        return F.pad(self.padding_mask, (0, self.length + new - self.padding_mask.shape[1]), value=True)


def causal_mask(
    queries: int, keys: int, device: torch.device, padding_mask: Tensor | None = None, prefix: int = 0
) -> Tensor | None:
    """(B or 1, 1, queries, keys) bool, True where the last `queries` of the positions attend; None where to all.

    padding_mask: (B, keys). Padding on the left attends to itself: a softmax over nothing is NaN, which later layers
        spread.
    prefix: first positions, not all of them padding, to which all attend (prefix LM).
    """
    if queries == 1:
        return None if padding_mask is None else padding_mask[:, None, None]
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    causal[:, :prefix] = True
    if padding_mask is None:
        return causal[None, None]
    mask = causal & padding_mask[:, None, None]
    return mask if prefix else mask | torch.eye(keys, dtype=torch.bool, device=device)[-queries:]


def left_padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Rows (n, W) of any lengths as (B, N, W), with their padding mask (B, N), None where none is padded."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    longest = max(len(row) for row in rows)
    ragged = any(len(row) < longest for row in rows)
    x = pad_sequence(list(rows), batch_first=True, padding_side="left")
    return x, padding_mask(lengths, longest).flip(1) if ragged else None
