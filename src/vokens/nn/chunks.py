"""Chunk masks, and what a network carries from one chunk to the next, so that one forward pass does both.

Under a chunk mask (U2, arXiv 2012.05481; CosyVoice 2, arXiv 2412.10117 §2.3) a position sees its whole chunk and
the chunks before. Nothing it sees comes later, so keys, values and borders of convolutions can be kept: the state
of a stream is the tuple of these tensors, in the order in which the forward pass asks for them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from vokens.errors import ConfigError

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Chunks:
    """Chunks of `size` positions; each sees itself and the `left` chunks before it, all of them if -1.

    phase: positions by which the first chunk is shorter, so that a border can be put where a stream wants one.
    """

    size: int
    left: int = -1
    phase: int = 0

    def __post_init__(self) -> None:
        if self.size < 1 or self.left < -1 or not 0 <= self.phase < self.size:
            raise ConfigError(
                f"Chunks(size={self.size}, left={self.left}, phase={self.phase}) was given: "
                "size from 1, left from 0 or -1 for all, phase from 0 to size - 1 are accepted"
            )

    def scaled(self, ratio: int) -> "Chunks":
        """The same chunks at `ratio` times the rate."""
        return Chunks(self.size * ratio, self.left, self.phase * ratio)

    def with_border(self, position: int) -> "Chunks":
        """The same chunks moved so that one ends at this position."""
        return replace(self, phase=-position % self.size)

    def border(self, position: int) -> int:
        """The last border at or before a position."""
        return max(0, (position + self.phase) // self.size * self.size - self.phase)

    def first_visible(self, position: int) -> int:
        """The first key that the chunk of this position sees."""
        if self.left < 0:
            return 0
        return max(0, ((position + self.phase) // self.size - self.left) * self.size - self.phase)

    def visible(self, offset: int, count: int, device: torch.device) -> Tensor | None:
        """(count, keys) bool: what the queries from `offset` on see of the keys from first_visible(offset) to their
        end; None if they see all."""
        first, end = self.first_visible(offset), offset + count
        last = end - 1
        if self.border(last) <= offset and self.first_visible(last) <= first:
            return None
        query = (torch.arange(offset, end, device=device)[:, None] + self.phase) // self.size
        key = (torch.arange(first, end, device=device) + self.phase) // self.size
        seen = key <= query
        return seen if self.left < 0 else seen & (key >= query - self.left)


@dataclass(frozen=True)
class Reach:
    """Attention context of one forward pass: mask, padding and KV window, shared by all its layers.

    visible: bool, broadcast over (B, H, queries, keys); None where all is visible, which needs no mask.
    inside: (B, T, 1) bool, False beyond each row's length; None where there is no padding.
    keep: how many of the last keys the next chunk will see. start: position of the first query.
    """

    visible: Tensor | None = None
    inside: Tensor | None = None
    keep: int = 0
    start: int = 0

    def repeated(self, times: int) -> Self:
        """For a batch that is put together `times` times."""
        if self.inside is None:
            return self
        visible = None if self.visible is None else self.visible.repeat(times, 1, 1, 1)
        return replace(self, visible=visible, inside=self.inside.repeat(times, 1, 1))


def reach(
    count: int,
    device: torch.device,
    *,
    lengths: Tensor | None = None,
    chunks: Chunks | None = None,
    offset: int = 0,
) -> Reach:
    """The reach of `count` positions from `offset` on.

    Args:
        lengths: (B,) positions of each row of a ragged batch, only at offset 0. Keys beyond are hidden.
        chunks: the chunk mask; None for full attention.
    """
    end = offset + count
    visible = None if chunks is None else chunks.visible(offset, count, device)
    keep = 0 if chunks is None else end - chunks.first_visible(end)
    if lengths is None:
        return Reach(visible, None, keep, offset)
    inside = torch.arange(count, device=device) < lengths.to(device)[:, None]
    keys = inside[:, None, None]
    if visible is not None:  # padding must see something, itself, for a softmax over nothing is NaN
        keys = visible & keys | torch.eye(count, dtype=torch.bool, device=device)
    return Reach(keys, inside.unsqueeze(2), keep, offset)


class Carry:
    """Hands each layer what the chunk before left for it and collects what this chunk leaves, as `state`."""

    def __init__(self, state: State = ()) -> None:
        self._before = iter(state)
        self._after: list[Tensor] = []

    @property
    def state(self) -> State:
        return tuple(self._after)

    def extend(self, x: Tensor, dim: int, keep: int, start: Callable[[], Tensor] | None = None) -> Tensor:
        """x with the kept end of its past before it, along dim; `start` makes the past of the first chunk."""
        before = next(self._before, None)
        if before is None and start is not None:
            before = start()
        whole = x if before is None else torch.cat([before, x], dim)
        kept = min(keep, whole.shape[dim])
        self._after.append(whole.narrow(dim, whole.shape[dim] - kept, kept).contiguous())
        return whole


def with_past(x: Tensor, count: int, carry: Carry | None) -> Tensor:
    """x (B, T, C) after its last `count` positions, which are zeros at the start: what a causal kernel reads."""

    def start() -> Tensor:
        return x.new_zeros(x.shape[0], count, x.shape[2])

    if carry is None:
        return torch.cat([start(), x], 1)
    return carry.extend(x, 1, count, start)
