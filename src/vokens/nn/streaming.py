"""Chunked attention masks and the streaming state, so that one forward pass serves whole signals and streams.

Under a chunk mask (U2, arXiv 2012.05481; CosyVoice 2, arXiv 2412.10117 §2.3) a position sees its whole chunk and
the chunks before. Nothing it sees comes later, so a stream keeps keys, values and left contexts of convolutions.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from vokens.errors import ConfigError
from vokens.nn.masks import padding_mask


@dataclass(frozen=True)
class Chunks:
    """Chunks of `size` positions; each sees itself and the `left` chunks before it, all of them if -1."""

    size: int
    left: int = -1
    phase: int = 0  # by which the first chunk is shorter: a border can be put where a stream wants one

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

    def first_key(self, position: int) -> int:
        """The first key that the chunk of this position sees."""
        if self.left < 0:
            return 0
        return max(0, ((position + self.phase) // self.size - self.left) * self.size - self.phase)

    def mask(self, offset: int, count: int, device: torch.device) -> Tensor | None:
        """Attention mask (count, keys) of the queries from `offset` on, over the keys from first_key(offset) to their
        end; None if they see all."""
        first, end = self.first_key(offset), offset + count
        last = end - 1
        if self.border(last) <= offset and self.first_key(last) <= first:
            return None
        query = (torch.arange(offset, end, device=device)[:, None] + self.phase) // self.size
        key = (torch.arange(first, end, device=device) + self.phase) // self.size
        mask = key <= query
        return mask if self.left < 0 else mask & (key >= query - self.left)


class StreamState(dict[Hashable, Tensor]):
    """Streaming state: what each layer keeps for the next chunk, by layer (a module, or a module and a name).

    A forward pass replaces tensors and writes into none, so that a copy, StreamState(state), is a value of its own.
    """

    def __init__(self, state: Mapping[Hashable, Tensor] | None = None) -> None:
        super().__init__(state or {})
        self.begins = not state

    def before(self, layer: Hashable) -> Tensor | None:
        """Kept positions of a layer from the last chunk; None at the start of a stream.

        Raises ConfigError for the state of another model.
        """
        if self.begins or layer in self:
            return self.get(layer)
        raise ConfigError("the streaming state of another model was given: start a stream with this model")

    def extend(self, layer: Hashable, x: Tensor, dim: int, keep: int) -> Tensor:
        """x after what the layer kept, along dim; of both it keeps the last `keep` positions."""
        before = self.before(layer)
        whole = x if before is None else torch.cat([before, x], dim)
        keep = min(keep, whole.shape[dim])
        kept = whole.narrow(dim, whole.shape[dim] - keep, keep)
        # A view holds the whole: where that is a quarter more at most, it saves a copy, 6 % of a chunk of CosyVoice 3.
        mostly = before is not None and 5 * keep >= 4 * whole.shape[dim]
        self[layer] = kept if mostly else kept.clone(memory_format=torch.contiguous_format)
        return whole


@dataclass(frozen=True)
class Context:
    """Attention mask, padding mask, KV window and streaming state of one forward pass, shared by all its layers."""

    mask: Tensor | None = None  # of attention, bool, over (B, H, queries, keys); None where all is visible
    padding_mask: Tensor | None = None  # (B, T, 1) bool, False beyond each row's length; None without padding
    keep: int = 0  # how many of the last keys the next chunk sees
    offset: int = 0  # position of the first query
    state: StreamState | None = None  # of a stream; None for a whole signal

    @classmethod
    def of(
        cls,
        x: Tensor,
        *,
        lengths: Tensor | None = None,
        chunks: Chunks | None = None,
        offset: int = 0,
        state: StreamState | None = None,
    ) -> Self:
        """The context of x (B, T, C), whose first position is `offset`.

        lengths: (B,) positions of each row of a ragged batch, only at offset 0. Keys beyond are hidden.
        chunks: the chunk mask; None for full attention.
        """
        count, end = x.shape[1], offset + x.shape[1]
        mask = None if chunks is None else chunks.mask(offset, count, x.device)
        keep = 0 if chunks is None else end - chunks.first_key(end)
        if lengths is None:
            return cls(mask, None, keep, offset, state)
        inside = padding_mask(lengths.to(x.device), count)
        keys = inside[:, None, None]
        if mask is not None:  # padding must see something, itself, for a softmax over nothing is NaN
            keys = mask & keys | torch.eye(count, dtype=torch.bool, device=x.device)
        return cls(keys, inside.unsqueeze(2), keep, offset, state)

    def keys_and_values(self, layer: Hashable, kv: Tensor) -> Tensor:
        """Keys and values (2, B, H, T, d) of a layer after those that it kept of the stream."""
        return kv if self.state is None else self.state.extend(layer, kv, 3, self.keep)

    def clear(self, x: Tensor) -> Tensor:
        """x (B, T, C) with zeros beyond each row's length."""
        return x if self.padding_mask is None else x * self.padding_mask

    def repeated(self, times: int) -> Self:
        """For a batch that is put together `times` times."""
        if self.padding_mask is None:
            return self
        mask = None if self.mask is None else self.mask.repeat(times, 1, 1, 1)
        return replace(self, mask=mask, padding_mask=self.padding_mask.repeat(times, 1, 1))


def with_left_context(
    layer: Hashable, x: Tensor, count: int, state: StreamState | None, dim: int = 1
) -> Tensor:
    """x after its last `count` positions along dim, which are zeros at the start: the input of a causal kernel."""
    if not count:
        return x
    if state is None or state.before(layer) is None:
        shape = list(x.shape)
        shape[dim] = count
        x = torch.cat([x.new_zeros(shape), x], dim)
    return x if state is None else state.extend(layer, x, dim, count)
