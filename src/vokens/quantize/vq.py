"""Vector quantization of unit vectors by Euclidean distance, as in S3Tokenizer v1 (arXiv 2407.05407).

Inputs are normalised, codewords are not. The distance is expanded to one matrix product. In training codewords are
the EMA of the unit vectors assigned to them (VQ-VAE, arXiv 1711.00937 appendix A.1).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.nn.product import linear
from vokens.quantize.rvq import EuclideanCodebook, gather_rows


class UnitVectorQuantizer(nn.Module):
    """x (..., width) -> ids (...,) int64 of the codeword nearest to x / |x|."""

    embedding: Tensor

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Parameter(torch.empty(size, width).normal_(0.0, width**-0.5))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (...,), the first of equals, and margins (...,): the difference of the two smallest squared distances."""
        distance = self.distances(x)
        nearest = distance.argmin(-1)
        two = distance.topk(2, largest=False).values
        return nearest, two[..., 1] - two[..., 0]

    def distances(self, x: Tensor) -> Tensor:
        """Squared distances (..., size) of x / |x| to all codewords, in float32 under any autocast."""
        with torch.autocast(x.device.type, enabled=False):
            unit = F.normalize(x.float(), dim=-1)
            codewords = self.embedding.float()
            cross = linear(2 * unit, codewords)
            return unit.square().sum(-1, keepdim=True) - cross + codewords.square().sum(-1)

    def decode(self, ids: Tensor) -> Tensor:
        """Codewords (..., width) of ids (...,)."""
        return F.embedding(ids, self.embedding)


class UnitVectorLearner(nn.Module):
    """EMA training of the codewords of a `UnitVectorQuantizer`, which are `codebook.embed`.

    They start from k-means, and unused ones move onto vectors of the batch.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.scale = width**0.5
        self.codebook = EuclideanCodebook(width, size)

    def forward(
        self, x: Tensor, mask: Tensor, generator: torch.Generator | None = None, rounding: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> codewords (B, T, D), ids (B, T), and the mean of each row's mean squared
        distance to them.

        Codewords are scaled to values of about 1, with a straight-through gradient. In training mode the codebook
        learns. Under torch.distributed every process sees the gathered vectors.

        mask: (B, T) bool padding mask, False where x is padding, which is not learned from.
        generator: for k-means and revival; the same on every process.
        rounding: False passes the unit vectors unquantized and learns nothing, to measure the cost of quantizing.
        """
        with torch.autocast(x.device.type, enabled=False):
            unit = F.normalize(x.float(), dim=-1)
            if self.training and rounding:
                self._learn(gather_rows(unit.detach()[mask]), generator)
            ids = self.codebook.encode(unit.detach())
            codewords = self.codebook.decode(ids)
            distance = (unit - codewords).square().sum(-1)
            through = unit + (codewords - unit).detach() if rounding else unit
            # A mean over rows of per-row means: averaged over processes with equal row counts it is the global mean.
            mean = ((distance * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
            return through * self.scale, ids, mean

    def fit(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Initialise the codewords by k-means on x (N, D), N at least the number of codewords."""
        self.codebook.init_from(F.normalize(x.float(), dim=-1), generator)

    def _learn(self, unit: Tensor, generator: torch.Generator | None) -> None:
        if not self.codebook.inited:
            self.codebook.init_from(unit, generator)
        self.codebook.learn(unit, self.codebook.encode(unit), generator)
