"""Ordered product quantization (SoCodec, arXiv 2409.00933 §3.2): slices of one vector, each with its own codebooks.

A stream is `digits` neighbouring slices; its code is their entries as digits of one number, the lowest first.
Training drops late streams, which orders them; decoding zeroes the slices of missing streams.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vokens.nn.product import Linear
from vokens.quantize.rvq import EuclideanCodebook, gather_rows


@dataclass(frozen=True)
class ProductQuantized:
    """Output of the product quantizer in training."""

    latent: Tensor  # (B, T, width) of the streams kept, straight-through
    codes: Tensor  # (B, K, T) int64
    commit: Tensor  # () mean over codebooks of the mean squared distance of slices to their entries


class ProductQuantizer(nn.Module):
    """Latents (B, T, width) to codes (B, K, T), each below codebook_size ** digits, and back.

    width: latent dim. num_streams: K. digits: codebooks per stream. codebook_size, dim: of one codebook.
    dead_share: as in EuclideanCodebook; the release was trained with 0, i.e. without revival.
    """

    def __init__(
        self,
        width: int,
        num_streams: int,
        *,
        codebook_size: int = 128,
        dim: int = 128,
        digits: int = 2,
        dead_share: float = 0.1,
    ) -> None:
        super().__init__()
        self.digits, self.size, self.num_streams = digits, codebook_size, num_streams
        inner = num_streams * digits * dim
        self.project_in = Linear(width, inner)
        self.project_out = Linear(inner, width)
        self.codebooks = nn.ModuleList(
            EuclideanCodebook(dim, codebook_size, dead_share=dead_share) for _ in range(num_streams * digits)
        )

    def encode(self, latent: Tensor, num_streams: int | None = None) -> Tensor:
        """Codes (B, K, T) int64 of latent (B, T, width), of the first num_streams streams."""
        inner = self.project_in(latent).float()
        streams = self.num_streams if num_streams is None else num_streams
        parts = self._slices(inner)[: streams * self.digits]
        return self._codes([book.encode(part) for book, part in zip(self._books(), parts, strict=False)])

    def _codes(self, entries: list[Tensor]) -> Tensor:
        """Codes (B, K, T) of each codebook's entries (B, T)."""
        digits = torch.stack(entries, 1).unflatten(1, (-1, self.digits))  # (B, K, digits, T)
        places = self.size ** torch.arange(self.digits, device=digits.device)
        return (digits * places[:, None]).sum(2)

    def decode(self, codes: Tensor, first_stream: int = 0) -> Tensor:
        """Latent (B, T, width) of codes (B, k, T), those of streams first_stream .. first_stream + k - 1.

        Slices of the other streams are zero.
        """
        streams = codes.shape[1]
        if not 0 <= first_stream <= self.num_streams - streams:
            raise IndexError(
                f"{streams} streams from number {first_stream} on were given, but there are {self.num_streams}"
            )
        weight = self.project_out.weight
        parts = []
        for number, book in enumerate(self._books()):
            stream, digit = number // self.digits - first_stream, number % self.digits
            entries = book.embed.to(weight.dtype)
            if 0 <= stream < streams:
                parts.append(entries[codes[:, stream] // self.size**digit % self.size])
            else:
                parts.append(entries.new_zeros(len(codes), codes.shape[2], entries.shape[1]))
        return self.project_out(torch.cat(parts, -1))

    @torch.autocast("cuda", enabled=False)
    @torch.autocast("cpu", enabled=False)
    def forward(
        self,
        latent: Tensor,
        *,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
        quantize: bool = True,
    ) -> ProductQuantized:
        """Quantize latent (B, T, width) with a straight-through gradient; in training mode codebooks learn.

        keep: (B,) number of leading streams that each item's output uses (quantizer dropout); all codebooks learn.
        generator: for revival; the same on every process.
        quantize: False passes the slices unquantized and learns nothing (warm start).
        """
        inner = self.project_in(latent.float())
        slices, entries, commit = [], [], [inner.new_zeros(())]
        for number, (book, part) in enumerate(zip(self._books(), self._slices(inner), strict=True)):
            if quantize:
                chosen = book.encode(part.detach())
                entry = book.decode(chosen)
                entries.append(chosen)
                commit.append(F.mse_loss(part, entry))
                if self.training:
                    rows = gather_rows(part.detach().flatten(0, 1))
                    book.learn(rows, book.encode(rows), generator)
                part = part + (entry - part).detach()
            slices.append(part if keep is None else part * (keep > number // self.digits).view(-1, 1, 1))
        codes = self._codes(entries) if quantize else latent.new_zeros(0, dtype=torch.int64)
        mean = torch.stack(commit).sum() / len(self.codebooks)
        return ProductQuantized(self.project_out(torch.cat(slices, -1)), codes, mean)

    @torch.no_grad()
    def fit(self, latents: Tensor, generator: torch.Generator | None = None) -> None:
        """Initialise every codebook by k-means on latents (N, width) of a trained encoder."""
        inner = self.project_in(latents).float()
        for book, part in zip(self._books(), self._slices(inner), strict=True):
            book.init_from(part.contiguous(), generator)

    def _slices(self, inner: Tensor) -> tuple[Tensor, ...]:
        return inner.chunk(len(self.codebooks), -1)

    def _books(self) -> list[EuclideanCodebook]:
        return cast("list[EuclideanCodebook]", list(self.codebooks))
