"""Sizes of DAC-VAE and its two published shapes."""

from dataclasses import dataclass
from math import prod
from typing import Any

from vokens.errors import ConfigError


@dataclass(frozen=True)
class DACVAEConfig:
    """Sizes of DAC-VAE; the defaults are Learnable-Speech's 80 numbers at 50 Hz (configx2.yml).

    Attributes:
        encoder_dim: channels of the first layer, doubled by each stage. encoder_rates: their strides.
        decoder_dim: channels of the first layer, halved by each stage. decoder_rates: their strides.
        latent_dim: D. sample_rate: Hz.
        conv_slope: of the leaky ReLU behind every plain convolution, the mu and the last one included. The
            published code has 0.1, by an accident of names that its weights depend on; 1 is none.
        mean, std: of each latent number over speech, where training has stored them: what a generative model
            of latents is trained on is (z - mean) / std. Empty: not known.
    """

    sample_rate: int = 24000
    encoder_dim: int = 64
    encoder_rates: tuple[int, ...] = (2, 3, 4, 4, 5)
    latent_dim: int = 80
    decoder_dim: int = 1536
    decoder_rates: tuple[int, ...] = (5, 4, 4, 3, 2)
    conv_slope: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if prod(self.encoder_rates) != prod(self.decoder_rates):
            raise ConfigError(
                f"encoder_rates {self.encoder_rates} take {prod(self.encoder_rates)} samples to a frame, decoder_rates "
                f"{self.decoder_rates} make {prod(self.decoder_rates)} of it: both must be the same"
            )
        if self.decoder_dim % 2 ** len(self.decoder_rates):
            raise ConfigError(
                f"decoder_dim={self.decoder_dim} must be a multiple of {2 ** len(self.decoder_rates)}, "
                f"for {len(self.decoder_rates)} stages halve it"
            )
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, self.latent_dim):
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} numbers for {self.latent_dim} latents"
                )

    @property
    def hop_length(self) -> int:
        return prod(self.encoder_rates)


_PUBLISHED: dict[str, Any] = {"conv_slope": 0.1}
RELEASES = {
    "dacvae_64d_75hz": DACVAEConfig(
        encoder_rates=(2, 4, 5, 8), decoder_rates=(8, 5, 4, 2), latent_dim=64, **_PUBLISHED
    ),
    "dacvae_80d_50hz": DACVAEConfig(**_PUBLISHED),
}
