"""The noise an utterance starts from: drawn for each item alone, or the prefix of one table that all share.

With prefix noise a frame's noise depends on its place alone, so chunks can be computed one by one and a prompt once.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class PrefixNoise:
    """A table of noise without end. Its first 15000 frames are CosyVoice 2's, randn(1, 80, 15000) of seed 0.

    Further blocks of 15000 frames are the next draws of the same generator, made when they are needed.
    """

    channels: int = 80
    seed: int = 0

    def frames(self, start: int, end: int) -> Tensor:
        """Frames start ... end - 1 as (T, channels) float32 on the CPU."""
        pieces = [
            _block(self.channels, self.seed, number)[
                :, max(0, start - number * BLOCK) : max(0, end - number * BLOCK)
            ]
            for number in range(start // BLOCK, -(-end // BLOCK))
        ]
        return torch.cat([torch.empty(self.channels, 0), *pieces], 1).T


@functools.lru_cache(maxsize=4)
def _block(channels: int, seed: int, number: int) -> Tensor:
    """Block `number` (channels, BLOCK); those before it are drawn too, 10 ms each, and four are kept (4.8 MB each)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False):  # kept tensors must also serve training
        for _ in range(number):
            torch.randn(1, channels, BLOCK, generator=generator)
        return torch.randn(1, channels, BLOCK, generator=generator)[0]
