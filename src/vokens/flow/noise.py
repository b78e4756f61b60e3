"""The noise an utterance starts from: drawn for each item alone, or the prefix of one table that all share.

With prefix noise a frame's noise depends on its place alone, so chunks can be computed one by one and a prompt once.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from vokens.errors import ConfigError

BLOCK = 15_000  # frames of CosyVoice 2's table, 300 s


Generators = torch.Generator | Sequence[torch.Generator] | None


def one_each(generator: Generators, count: int) -> list[torch.Generator | None]:
    """A generator for each of `count` items: its own, or one for all, which they use up in their order.

    Generators of their own make an item's noise independent of its company; None stands for torch's own.
    """
    each: list[torch.Generator | None] = []
    each += generator if isinstance(generator, Sequence) else [generator] * count
    if len(each) != count:
        raise ConfigError(f"{len(each)} generators were given for {count} items: one for all or one for each")
    return each


def fresh_noise(length: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise (T, channels) in float32 on the generator's device: torch.randn(1, channels, T), as the
    published code draws it, with time first."""
    device = None if generator is None else generator.device
    return torch.randn(1, channels, length, generator=generator, device=device)[0].T


class PrefixNoise:
    """A table of noise without end. Its first 15000 frames are CosyVoice 2's, randn(1, 80, 15000) of seed 0.

    Further blocks of 15000 frames are the next draws of the same generator; they are made when they are needed.
    """

    def __init__(self, channels: int = 80, seed: int = 0) -> None:
        self.channels = channels
        self._generator = torch.Generator().manual_seed(seed)
        self._blocks: list[Tensor] = []
        self._lock = threading.Lock()

    def frames(self, start: int, end: int) -> Tensor:
        """Frames start ... end - 1 as (T, channels) float32 on the CPU."""
        with self._lock:
            while len(self._blocks) * BLOCK < end:
                self._blocks.append(torch.randn(1, self.channels, BLOCK, generator=self._generator)[0])
        pieces = [
            block[:, max(0, start - number * BLOCK) : max(0, end - number * BLOCK)]
            for number, block in enumerate(self._blocks)
        ]
        return torch.cat(pieces, 1).T
