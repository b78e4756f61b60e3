"""Initial noise of an utterance: drawn per item, or the prefix of one shared table.

With prefix noise a frame's noise depends only on its position, so chunks can be computed one by one.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vokens.errors import ConfigError

BLOCK = 15_000  # frames of CosyVoice 2's table, 300 s


Generators = torch.Generator | Sequence[torch.Generator] | None


def broadcast_generators(generator: Generators, count: int) -> list[torch.Generator | None]:
    """A generator for each of `count` items: its own, or one for all, consumed in order.

    Per-item generators make an item's noise independent of the other items; None is torch's global one.
    """
    each: list[torch.Generator | None] = []
    each += generator if isinstance(generator, Sequence) else [generator] * count
    if len(each) != count:
        raise ConfigError(f"{len(each)} generators were given for {count} items: give one, or one for each")
    return each


def fresh_noise(length: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise (T, channels) in float32 on the generator's device: torch.randn(1, channels, T), as the
    published code draws it, with time first."""
    device = None if generator is None else generator.device
    return torch.randn(1, channels, length, generator=generator, device=device)[0].T


@dataclass(frozen=True)
class PrefixNoise:
    """An unbounded table of noise. Its first 15000 frames are CosyVoice 2's, randn(1, 80, 15000) of seed 0.

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
    """Block `number` (channels, BLOCK); earlier ones are drawn too, 10 ms each, and four are cached (4.8 MB each)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False):  # cached tensors are used in training too
        for _ in range(number):
            torch.randn(1, channels, BLOCK, generator=generator)
        return torch.randn(1, channels, BLOCK, generator=generator)[0]
