"""A plain codebook searched by Euclidean distance from unit vectors, as S3Tokenizer v1 does (arXiv 2407.05407).

Inputs are scaled to length one, codewords keep theirs. The distance is expanded to one matrix product. In training
codewords are moving averages (VQ-VAE, arXiv 1711.00937 appendix A.1) of the unit vectors that chose them.
"""

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from vokens.quantize.rvq import EuclideanCodebook


class UnitVectorQuantizer(nn.Module):
    """x (..., width) -> ids (...,) int64 of the codeword nearest to x / |x|."""

    embedding: Tensor

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Parameter(torch.empty(size, width).normal_(0.0, width**-0.5))

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


class UnitVectorLearner(nn.Module):
    """Trains the codewords of a `UnitVectorQuantizer`, which are `codebook.embed`: they follow the encoder by moving
    averages, start from k-means, and those that nothing chooses move onto vectors of the batch.
    """

    def __init__(self, width: int, size: int, decay: float = 0.99) -> None:
        super().__init__()
        self.scale = width**0.5
        self.codebook = EuclideanCodebook(width, size, decay=decay)

    def forward(
        self, x: Tensor, inside: Tensor, generator: torch.Generator | None = None, rounding: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> codewords (B, T, D), ids (B, T), and the mean of each row's mean squared
        distance to them.

        Codewords are scaled so that their numbers are about 1, and gradients pass as if unquantized. In training
        mode the codebook learns. Under torch.distributed every process sees the gathered vectors.

        Args:
            inside: (B, T) bool, False where x is padding, from which nothing is learned.
            generator: of the k-means start and of revival; the same on every process.
            rounding: off, the unit vectors pass as they are and nothing is learned, to measure what they lose.
        """
        with torch.autocast(x.device.type, enabled=False):
            unit = F.normalize(x.float(), dim=-1)
            if self.training and rounding:
                self._learn(gather_rows(unit.detach()[inside]), generator)
            ids = self.codebook.encode(unit.detach())
            codewords = self.codebook.decode(ids)
            distance = (unit - codewords).square().sum(-1)
            through = unit + (codewords - unit).detach() if rounding else unit
            # A mean of rows, each a mean of its vectors: processes with as many rows then average to the whole.
            mean = ((distance * inside).sum(1) / inside.sum(1).clamp(min=1)).mean()
            return through * self.scale, ids, mean

    def fit(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Start the codewords from k-means on vectors x (N, D), at least as many as codewords."""
        self.codebook.init_from(F.normalize(x.float(), dim=-1), generator)

    def _learn(self, unit: Tensor, generator: torch.Generator | None) -> None:
        if not self.codebook.inited:
            self.codebook.init_from(unit, generator)
        self.codebook.learn(unit, self.codebook.encode(unit), generator)


def gather_rows(x: Tensor) -> Tensor:
    """Rows (N, D) of all processes, in rank order; N may differ between them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return x
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(x)], device=x.device))
    longest = max(int(count) for count in counts)
    parts = [x.new_empty(longest, x.shape[1]) for _ in counts]
    distributed.all_gather(parts, F.pad(x, (0, 0, 0, longest - len(x))))
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
