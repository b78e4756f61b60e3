"""Finite scalar quantization (FSQ, arXiv 2309.15505): a low-dim projection, each dim rounded to a few levels.

CosyVoice 2 (arXiv 2412.10117 §2.1) projects to 8 dims of 3 levels each, 3^8 = 6561 ids. The decision margin of
every id is returned, so that ids which rounding errors could flip can be computed again.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Below 1, so that tanh never rounds to a level out of range; float32, as in the released graphs.
BOUND = 0.9990000128746033
SPREAD = 1.276  # std of a normal distribution with a third of its mass within atanh(0.5 / 0.999) = 0.550


class FiniteScalarQuantizer(nn.Module):
    """x (..., width) -> ids (...,) int64 in 0 .. levels^dims - 1; dimension 0 is the lowest digit.

    width: input dim. dims: projected dim. levels: values of each dim, an odd count.
    """

    def __init__(self, width: int, dims: int = 8, levels: int = 3) -> None:
        super().__init__()
        if levels % 2 == 0 or levels < 3:
            raise ValueError(f"levels={levels} was given: give an odd count of at least 3")
        self.levels, self.dims = levels, dims
        self.size = levels**dims
        self.project = nn.Linear(width, dims)

    def forward(self, x: Tensor, rounding: bool = True) -> tuple[Tensor, Tensor]:
        """Rounded values (..., dims) in [-1, 1] with a straight-through gradient, and ids, for training.

        rounding: False passes the values unrounded, to measure the cost of rounding.
        """
        bounded = self._bounded(x)
        numbers = bounded + (bounded.round() - bounded).detach() if rounding else bounded
        return numbers / self._half, self._ids(bounded)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Initialise the projection from x (N, width): its first principal components, each scaled so that normal
        values fall on levels -1, 0 and 1 equally often (|h| < 0.55 in one case of three).
        """
        mean = x.double().mean(0)
        covariance = torch.cov((x.double() - mean).T)
        variance, axes = torch.linalg.eigh(covariance)
        largest = axes[:, -self.dims :] * (SPREAD / variance[-self.dims :].clamp(min=1e-12).sqrt())
        self.project.weight.copy_(largest.T)
        self.project.bias.copy_(-largest.T @ mean)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (...,) and margins (...,): the smallest distance of any dim to another level."""
        bounded = self._bounded(x)
        margin = 0.5 - (bounded - bounded.round()).abs()
        return self._ids(bounded), margin.amin(-1)

    def digits(self, ids: Tensor) -> Tensor:
        """Rounded values (..., dims) in [-1, 1] of ids (...,)."""
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
