"""EnCodec (Défossez et al. 2022, arXiv 2210.13438), the mono networks: 24 kHz, 75 frames of up to 32 x 1024.

The 48 kHz release is stereo and keeps a loudness beside every second of codes, which Tokens have no place for.
"""

from typing import Any

from torch import Tensor

from vokens.errors import ConfigError
from vokens.models.adapters.hub import HubCodec, sum_of


class EnCodec(HubCodec):
    """`vokens.load("facebook/encodec_24khz")`."""

    system = "encodec"
    classes = ("EncodecModel", "EncodecConfig")

    def sizes(self, config: Any) -> tuple[int, int, tuple[int, ...]]:
        if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
            raise ConfigError(
                "this EnCodec is stereo, or keeps a loudness beside its codes, as the 48 kHz release does: tokens hold "
                "codes alone; facebook/encodec_24khz is accepted"
            )
        return config.sampling_rate, config.hop_length, (config.codebook_size,) * config.num_quantizers

    def encode_row(self, wave: Tensor) -> Tensor:
        network, bandwidth = self.network, self.network.config.target_bandwidths[-1]
        return network.quantizer.encode(network.encoder(wave), bandwidth).transpose(0, 1)

    def decode_row(self, codes: Tensor, first_codebook: int) -> Tensor:
        return self.network.decoder(sum_of(self.network.quantizer.layers, codes, first_codebook))
