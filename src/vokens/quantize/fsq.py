"""Finite scalar quantization (arXiv 2309.15505): a few numbers, each rounded to one of a few levels.

CosyVoice 2 (arXiv 2412.10117 §2.1) projects to 8 numbers of 3 levels each, 3^8 = 6561 ids. The trick: the decision
margin of every id is known, so that ids which rounding errors could flip can be found and computed again.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Below 1, so that tanh never rounds to a level outside; float32, as the released graphs hold it.
BOUND = 0.9990000128746033
SPREAD = 1.276  # standard deviation of normal numbers of which a third lies within atanh(0.5 / 0.999) = 0.550


class FiniteScalarQuantizer(nn.Module):
    """x (..., width) -> ids (...,) int64 in 0 .. levels^dims - 1; dimension 0 is the lowest digit.

    Args:
        width: of the input. dims: numbers that it is projected to. levels: values of each, an odd count.
    """

    def __init__(self, width: int, dims: int = 8, levels: int = 3) -> None:
        super().__init__()
        if levels % 2 == 0 or levels < 3:
            raise ValueError(f"levels={levels} was given: an odd count from 3 on is accepted")
        self.levels, self.dims = levels, dims
        self.size = levels**dims
        self.project = nn.Linear(width, dims)

    def forward(self, x: Tensor, rounding: bool = True) -> tuple[Tensor, Tensor]:
        """Training: rounded numbers (..., dims) in [-1, 1], through which gradients pass as if unrounded, and ids.

        rounding: off, the numbers pass unrounded, to measure what rounding costs.
        """
        bounded = self._bounded(x)
        numbers = bounded + (bounded.round() - bounded).detach() if rounding else bounded
        return numbers / self._half, self._ids(bounded)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Start the projection from vectors x (N, width): their dims largest principal components, each with the
        spread at which normal numbers fall on levels -1, 0 and 1 alike (|h| < 0.55 in one case of three).
        """
        mean = x.double().mean(0)
        covariance = torch.cov((x.double() - mean).T)
        variance, axes = torch.linalg.eigh(covariance)
        largest = axes[:, -self.dims :] * (SPREAD / variance[-self.dims :].clamp(min=1e-12).sqrt())
        self.project.weight.copy_(largest.T)
        self.project.bias.copy_(-largest.T @ mean)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (...,) and margins (...,): how far the nearest of the dims numbers is from another level."""
        bounded = self._bounded(x)
        margin = 0.5 - (bounded - bounded.round()).abs()
        return self._ids(bounded), margin.amin(-1)

    def digits(self, ids: Tensor) -> Tensor:
        """The rounded numbers (..., dims) in [-1, 1] of ids (...,)."""
        weights = self.levels ** torch.arange(self.dims, device=ids.device)
        return (ids.unsqueeze(-1) // weights % self.levels - self._half) / self._half

    @property
    def _half(self) -> int:
        return self.levels // 2

    def _bounded(self, x: Tensor) -> Tensor:
        """(..., dims) in (-levels/2, levels/2), in float32 under any autocast: in half precision 7 % of ids flip."""
        with torch.autocast(x.device.type, enabled=False):
            projected = F.linear(x.float(), self.project.weight.float(), self.project.bias.float())
            return self._half * BOUND * projected.tanh()

    def _ids(self, bounded: Tensor) -> Tensor:
        digits = bounded.detach().round().long() + self._half
        return (digits * self.levels ** torch.arange(self.dims, device=digits.device)).sum(-1)
