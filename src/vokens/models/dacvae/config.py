"""Sizes of DAC-VAE and its two published shapes."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal

from vokens.checkpoint import later
from vokens.config import check_choices
from vokens.errors import ConfigError


@dataclass(frozen=True)
class DACVAEConfig:
    """Sizes of DAC-VAE; the defaults are Learnable-Speech's latent dim 80 at 50 Hz (configx2.yml)."""

    retired: ClassVar[dict[str, Any]] = {"phase": True}

    sample_rate: int = 24000  # Hz
    # "dac", Descript's convolutions on samples, as published; or "stft", ConvNeXt on short-time spectra, a
    # thirtieth of the work, for what is trained on a CPU.
    network: Literal["dac", "stft"] = "dac"
    latent_dim: int = 80  # D
    encoder_dim: int = 64  # of "dac", channels of the first layer, doubled by each stage
    encoder_rates: tuple[int, ...] = (2, 3, 4, 4, 5)  # strides of its stages
    decoder_dim: int = 1536  # of "dac", channels of the first layer, halved by each stage
    decoder_rates: tuple[int, ...] = (5, 4, 4, 3, 2)  # strides of its stages
    # Of the leaky ReLU behind every plain convolution of "dac", the mu and the last one included. The published
    # code has 0.1, by an accident of names that its weights depend on; 1 is none.
    conv_slope: float = 1.0
    n_fft: int = 960  # of "stft", window of the spectra in samples; they are n_fft / 4 apart, two to a frame
    # Of "stft", whether latents are computed and not learned: the frame's mel cepstra and, in the last four, the
    # pitch, which a generative model can predict from text. The decoder filters pulses at that pitch and noise, and
    # is initialised as the cepstra's vocoder.
    pulses: bool = later(False)
    width: int = 256  # of "stft", channels of the backbones
    expansion: int = 3  # channels of their hidden layers, as a multiple
    kernel_size: int = 7  # of "stft", taps of the depthwise convolutions, in frames
    encoder_layers: int = 4  # of "stft"
    decoder_layers: int = 8  # of "stft"
    # Couplings of a learned flow in front of the normal prior (the paper's Flow-VAE has 4); 0: none.
    prior_layers: int = 0
    prior_width: int = 192  # channels inside a coupling
    # Of each latent dimension over speech, as std, where training has stored them: generative models are trained on
    # (z - mean) / std. Empty: not known.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_choices(self)
        if self.pulses and (self.network != "stft" or self.prior_layers or not 4 < self.latent_dim <= 84):
            raise ConfigError(
                f"pulses = true with network = {self.network!r}, latent_dim = {self.latent_dim}, prior_layers = "
                f'{self.prior_layers}: "stft", 5 to 84 and 0 are accepted'
            )
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
        if self.n_fft % 4:
            raise ConfigError(f"n_fft={self.n_fft} is no multiple of 4: spectra are a quarter of it apart")
        if self.prior_layers and self.latent_dim % 2:
            raise ConfigError(f"latent_dim={self.latent_dim} must be even: a coupling moves one half of it")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, self.latent_dim):
                raise ConfigError(f"{name}: {len(getattr(self, name))} numbers for {self.latent_dim} latents")

    @property
    def hop_length(self) -> int:
        return prod(self.encoder_rates) if self.network == "dac" else self.n_fft // 2


_RELEASED = DACVAEConfig(conv_slope=0.1)
RELEASES = {
    "dacvae_64d_75hz": replace(
        _RELEASED, encoder_rates=(2, 4, 5, 8), decoder_rates=(8, 5, 4, 2), latent_dim=64
    ),
    "dacvae_80d_50hz": _RELEASED,
}
