"""Training DAC-VAE: reconstruction from a sampled latent, KL divergence from a normal (or flow) prior, discriminators.

Losses and schedule are Learnable-Speech's (its DAC-VAE configs; 2306.06546 section 3). The latents' mean and
standard deviation, which generative models of them need, are measured at export.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.models.dacvae import DACVAE, DACVAEConfig
from vokens.models.dacvae.model import VAEOutput
from vokens.models.dacvae.pulses import pitch_latents
from vokens.models.dacvae.spectral import SPECTRA
from vokens.nn.discriminators import DACDiscriminator
from vokens.train import losses as L
from vokens.train.config import CropConfig, DiscriminatorConfig, RunConfig, among
from vokens.train.crops import AutoencoderTrainer
from vokens.train.gan import GAN, Discriminators
from vokens.train.log import Board

GAN_LOSSES = ("adversarial", "feature")
LOSSES = ("wave", "mel", "stft", "linear_stft", "spectrum", "kl", *GAN_LOSSES)
VALID_CLIPS = 32


@dataclass(frozen=True)
class VAEDiscriminatorConfig(DiscriminatorConfig):
    """Multi-period and multi-band spectrogram discriminators."""

    windows: tuple[int, ...] = (2048, 1024, 512)  # of the spectra, samples
    seconds: float = 0.0  # of each crop that they see, 0 for all: two thirds of a small run's time are theirs
    clip: float = 10.0  # largest norm of their gradient, 0 for none


@dataclass(frozen=True)
class VAEConfig(RunConfig):
    """One run; the defaults are Learnable-Speech's. model: settings that differ from the release's latent dim 80 at
    50 Hz (without its accidental leaky ReLUs).
    """

    retired: ClassVar[dict[str, Any]] = {"freeze_encoder": False}

    task: str = "dacvae"
    system: str = "dacvae"
    out: str = "runs/dacvae"
    data: CropConfig = field(default_factory=lambda: CropConfig(seconds=0.38, batch_size=16))
    discriminators: VAEDiscriminatorConfig = field(default_factory=VAEDiscriminatorConfig)
    mel_windows: tuple[int, ...] = L.DAC_WINDOWS  # of the mel loss, samples; 5 bands to 32 of them
    # "normal", or "published", which takes log sigma for log sigma^2. With prior_layers of the model it is the
    # divergence from the flow prior.
    kl: str = "normal"
    # Steps in which its weight rises from 0. At full weight from the start the latent dimensions that would carry
    # phase collapse before the decoder can use them.
    kl_warmup: int = 0
    # Weights by name: wave, mel, stft, linear_stft, spectrum, kl (nats per frame), adversarial, feature (2 x sum).
    losses: dict[str, float] = field(
        default_factory=lambda: {"mel": 15.0, "kl": 0.1, "adversarial": 1.0, "feature": 1.0}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        among("kl", self.kl, ("normal", "published"))
        among("losses", self.losses, LOSSES)
        if "kl" not in self.losses or not {"mel", "stft", "linear_stft"} & set(self.losses):
            raise ConfigError(
                "losses.kl and losses.mel, stft or linear_stft are needed: without a spectral loss nothing is learned, "
                "without kl the latents grow without bound (give 0 to train a plain autoencoder)"
            )


class VAETrainer(AutoencoderTrainer[VAEConfig, DACVAE]):
    """Trains DAC-VAE on a corpus."""

    Config = VAEConfig

    def build_model(self) -> DACVAE:
        config = self.config
        model = self.started(DACVAE(build_config(DACVAEConfig, config.model, "model")))
        self.measured_at(model)
        mel = L.dac_mel(self.sample_rate, config.mel_windows)
        self.distances = {"wave": L.wave_l1, "mel": mel.to(self.device), **L.SPECTRAL}
        return model.add_weight_norm()

    def discriminators(self) -> Iterator[GAN]:
        if set(GAN_LOSSES) & set(self.config.losses):
            settings, decay = self.config.discriminators, self.config.optim.weight_decay
            network = DACDiscriminator(settings.divisor, settings.channels, windows=settings.windows)
            network = Discriminators({"dac": network})
            yield GAN(self, network, settings, weight_decay=decay, clip=settings.clip)

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = self.number(part)
        wave = self.batch(number).wave.to(self.device)
        noise = self._noise(number, wave.shape[1] // self.hop).to(self.device)
        with self.accelerator.autocast():
            output = self.module(wave, noise, self._pitch(wave))
        prediction = output.wave.float()
        crop = self._crop(number)
        losses, report = self.gan_step(wave[:, None, crop], prediction[:, None, crop], part)
        values = self.reconstruction(prediction, wave) | {"kl": self._divergence(output)} | losses
        weights = {name: self.config.losses[name] for name in values}
        weights["kl"] *= min(1.0, (self.step + 1) / max(1, self.config.kl_warmup))
        return L.weighted_sum(values, weights), report | values

    def _noise(self, number: int, frames: int) -> Tensor:
        """(B, D, frames) normal."""
        shape = self.world * self.config.data.batch_size, self.model.config.latent_dim, frames
        return self.own(torch.randn(shape, generator=self.generator(number)))

    def _pitch(self, wave: Tensor) -> Tensor | None:
        """Pitch latents of waves (B, N), of a model with pulses."""
        if not self.model.config.pulses:
            return None
        return pitch_latents(wave, self.sample_rate, self.hop, SPECTRA)

    def _crop(self, number: int) -> slice:
        """Samples of each crop that the discriminators see in this micro-batch."""
        size = round(self.config.discriminators.seconds * self.sample_rate) or self.train.crop
        place = torch.rand((), generator=self.generator(number))
        start = int(place * max(0, self.train.crop - size))
        return slice(start, start + size)

    def _divergence(self, output: VAEOutput) -> Tensor:
        mean, log_std = output.mean.float(), output.log_std.float()
        if output.flowed is not None:
            return L.kl_flow(output.flowed.float(), log_std)
        return (L.kl_normal if self.config.kl == "normal" else L.kl_published)(mean, log_std)

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Held-out mel distance (log10, three DAC scales) of decoded posterior means, KL in nats per frame, and number
        of active latent dimensions (KL above 0.1 nats)."""
        model, wave = self.trained(), self.valid.spread(VALID_CLIPS).wave.to(self.device)
        mean, log_std = model.posterior_of(wave[:, None], None, self._pitch(wave))
        prediction = model.decode_batch(mean, torch.full((len(mean),), mean.shape[2], device=mean.device))
        each = (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).mean((0, 2)) / 2
        if board is not None:
            board.resyntheses(self.step, wave, prediction)
        return {
            "valid/mel": float(self.measure(prediction, wave)),
            "valid/kl": float(each.sum()),
            "valid/active": float((each > 0.1).sum()),
        }
