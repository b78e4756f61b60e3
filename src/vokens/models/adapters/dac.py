"""DAC, the Descript audio codec (Kumar et al. 2023, arXiv 2306.06546): 16, 24 and 44.1 kHz, residual codes of 1024.

Waves are filled up to whole frames, as its own preprocessing does.
"""

from typing import Any

import torch
from torch import Tensor

from vokens.models.adapters.hub import HubCodec, to_whole_frames


class DAC(HubCodec):
    """`vokens.load("descript/dac_16khz")`."""

    system = "dac"
    classes = ("DacModel", "DacConfig")

    def sizes(self, config: Any) -> tuple[int, int, tuple[int, ...]]:
        return config.sampling_rate, config.hop_length, (config.codebook_size,) * config.n_codebooks

    def encode_row(self, wave: Tensor) -> Tensor:
        return self.network.encode(to_whole_frames(wave, self.hop_length)).audio_codes

    def decode_row(self, codes: Tensor, first_codebook: int) -> Tensor:
        layers = self.network.quantizer.quantizers[first_codebook : first_codebook + codes.shape[1]]
        parts = (layer.codebook(codes[:, k]).transpose(1, 2) for k, layer in enumerate(layers))
        latents = [layer.out_proj(part) for layer, part in zip(layers, parts, strict=True)]
        return self.network.decoder(torch.stack(latents).sum(0))
