"""A plain codebook searched by Euclidean distance from unit vectors, as S3Tokenizer v1 does (arXiv 2407.05407).

Inputs are scaled to length one, codewords keep theirs. The distance is expanded to one matrix product.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UnitVectorQuantizer(nn.Module):
    """x (..., width) -> ids (...,) int64 of the codeword nearest to x / |x|."""

    embedding: Tensor

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Parameter(torch.randn(size, width) / width**0.5)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (...,), the first of equals, and margins (...,): how much farther (squared) the second nearest is."""
        distance = self.distances(x)
        nearest = distance.argmin(-1)
        two = distance.topk(2, largest=False).values
        return nearest, two[..., 1] - two[..., 0]

    def distances(self, x: Tensor) -> Tensor:
        """Squared distances (..., size) of x / |x| to all codewords, in float32 under any autocast."""
        with torch.autocast(x.device.type, enabled=False):
            unit = F.normalize(x.float(), dim=-1)
            codewords = self.embedding.float()
            cross = F.linear(2 * unit, codewords)
            return unit.square().sum(-1, keepdim=True) - cross + codewords.square().sum(-1)

    def decode(self, ids: Tensor) -> Tensor:
        """Codewords (..., width) of ids (...,)."""
        return F.embedding(ids, self.embedding)
