"""Mimi (Kyutai 2024, arXiv 2410.00037): 24 kHz, 12.5 frames of one semantic and up to 31 acoustic codebooks.

The semantic codebook and the acoustic ones quantise the same latent side by side, and decoding adds them up.
"""

from typing import Any

import torch
from torch import Tensor

from vokens.models.adapters.hub import HubCodec, sum_of


class Mimi(HubCodec):
    """`vokens.load("kyutai/mimi")`."""

    system = "mimi"
    classes = ("MimiModel", "MimiConfig")

    def sizes(self, config: Any) -> tuple[int, int, tuple[int, ...]]:
        hop = round(config.sampling_rate / config.frame_rate)
        return config.sampling_rate, hop, (config.codebook_size,) * config.num_quantizers

    def encode_row(self, wave: Tensor) -> Tensor:
        return self.network.encode(wave).audio_codes

    def decode_row(self, codes: Tensor, first_codebook: int) -> Tensor:
        books = self.network.quantizer
        semantic = max(0, min(codes.shape[1], books.num_semantic_quantizers - first_codebook))
        acoustic = max(0, first_codebook - books.num_semantic_quantizers)
        latents = [
            _decode(books.semantic_residual_vector_quantizer, codes[:, :semantic], first_codebook),
            _decode(books.acoustic_residual_vector_quantizer, codes[:, semantic:], acoustic),
        ]
        return self.network.decoder(latents[0] + latents[1]).audio_values


def _decode(books: Any, codes: Tensor, first: int) -> Tensor:
    """Latent (B, D, T) of some layers' codes (B, K, T); of none, a zero that adds to anything."""
    if not codes.shape[1]:
        return torch.zeros((), device=codes.device)
    latent = sum_of(books.layers, codes, first)
    return latent if books.output_proj is None else books.output_proj(latent)
