"""Flow-VAE's prior (MiniMax-Speech, arXiv 2505.07916; couplings as in VITS, 2106.06103 section 2.2): an invertible
map f of the latents, so that f(z) and not z has to be normal. The decoder still takes z.

Couplings only shift: log |det df/dz| is 0. They start as the identity, so the KL starts as the plain one.
"""

import torch
from torch import Tensor, nn

from vokens.models.dacvae.network import silence_beyond

LAYERS, KERNEL = 4, 5


class Coupling(nn.Module):
    """m of (x, y) -> (x, y + m(x)), a stack of gated convolutions; x and y are halves of (B, D, T)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(channels // 2, width, 1)
        self.gated = nn.ModuleList(
            nn.Conv1d(width, 2 * width, KERNEL, padding=KERNEL // 2) for _ in range(LAYERS)
        )
        self.onward = nn.ModuleList(nn.Conv1d(width, 2 * width, 1) for _ in range(LAYERS))
        self.leave = nn.Conv1d(width, channels // 2, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.get_parameter("leave.bias"))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """m(x) (B, D / 2, T)."""
        x = self.enter(x)
        skipped = torch.zeros_like(x)
        for gated, onward in zip(self.gated, self.onward, strict=True):
            content, gate = gated(silence_beyond(x, lengths)).chunk(2, 1)
            residual, skip = onward(content.tanh() * gate.sigmoid()).chunk(2, 1)
            x, skipped = x + residual, skipped + skip
        return self.leave(skipped)


class FlowPrior(nn.Module):
    """f and its inverse on latents (B, D, T): couplings, each followed by reversing the channels."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(channels, width) for _ in range(layers))

    def forward(self, z: Tensor, lengths: Tensor | None = None) -> Tensor:
        """f(z); lengths (B,): frames of each row."""
        for coupling in self.couplings:
            x, y = z.chunk(2, 1)
            z = torch.cat([x, y + coupling(x, lengths)], 1).flip(1)
        return z

    def inverse(self, flowed: Tensor, lengths: Tensor | None = None) -> Tensor:
        """z with f(z) = flowed."""
        for coupling in reversed(self.couplings):
            x, y = flowed.flip(1).chunk(2, 1)
            flowed = torch.cat([x, y - coupling(x, lengths)], 1)
        return flowed
