"""Ordered product quantization (SoCodec, arXiv 2409.00933 §3.2): slices of one vector, each with its own codebooks.

A stream is `digits` neighbouring slices; its code is their entries as digits of one number, the lowest first.
Training drops late streams, which orders them: decoding zeroes the slices of the streams that are not given.
"""

from typing import cast

import torch
from torch import Tensor, nn

from vokens.quantize.rvq import EuclideanCodebook


class ProductQuantizer(nn.Module):
    """Latents (B, T, width) to codes (B, K, T), each below codebook_size ** digits, and back.

    Args:
        width: of latents. num_streams: K. digits: codebooks of a stream. codebook_size, dim: of one codebook.
    """

    def __init__(
        self, width: int, num_streams: int, *, codebook_size: int = 128, dim: int = 128, digits: int = 2
    ) -> None:
        super().__init__()
        self.digits, self.size, self.num_streams = digits, codebook_size, num_streams
        inner = num_streams * digits * dim
        self.project_in = nn.Linear(width, inner)
        self.project_out = nn.Linear(inner, width)
        self.codebooks = nn.ModuleList(
            EuclideanCodebook(dim, codebook_size) for _ in range(num_streams * digits)
        )

    def encode(self, latent: Tensor, num_streams: int | None = None) -> Tensor:
        """Codes (B, K, T) int64 of latent (B, T, width), of the first num_streams streams."""
        inner = self.project_in(latent).float()  # distances in bf16 choose other entries
        streams = self.num_streams if num_streams is None else num_streams
        parts = inner.chunk(len(self.codebooks), -1)[: streams * self.digits]
        entries = [book.encode(part) for book, part in zip(self._books(), parts, strict=False)]
        places = self.size ** torch.arange(self.digits, device=latent.device)
        digits = torch.stack(entries, 1).unflatten(1, (streams, self.digits))  # (B, K, digits, T)
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

    def _books(self) -> list[EuclideanCodebook]:
        return cast("list[EuclideanCodebook]", list(self.codebooks))
