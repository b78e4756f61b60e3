"""Training the flow-matching autoencoder: a flow decoder on the latents of a trained DAC-VAE, or both together.

Noise is added to the latents of some crops (DiTo's noise synchronisation, arXiv 2501.18593), which makes the decoder
robust to generated latents. Such a crop trains only timesteps that are noisier than its latents.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.flow.objective import cosine_time, squared_error
from vokens.models.dacvae import DACVAE
from vokens.models.flowae import FlowAE, FlowAEConfig
from vokens.models.flowae.model import FlowDraws
from vokens.models.pretrained import load
from vokens.train import losses as L
from vokens.train.config import CropConfig, RunConfig
from vokens.train.crops import AutoencoderTrainer
from vokens.train.log import Board

VALID_CLIPS = 16
FIT_BATCHES = 16


@dataclass(frozen=True)
class FlowAutoencoderConfig(RunConfig):
    """One run."""

    task: str = "flow_autoencoder"
    system: str = "flowae"
    out: str = "runs/flowae"
    data: CropConfig = field(default_factory=lambda: CropConfig(seconds=1.0, batch_size=8))
    # A trained DAC-VAE (folder, name or file) whose frozen encoder gives the latents; "" trains an encoder too, of the
    # sizes in model.
    autoencoder: str = ""
    augment: float = 0.1  # share of crops with noisy latents
    # Weights by name: flow, and kl (nats per frame) where the encoder is trained.
    losses: dict[str, float] = field(default_factory=lambda: {"flow": 1.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        required = {"flow"} if self.autoencoder else {"flow", "kl"}
        if set(self.losses) != required:
            raise ConfigError(
                f"losses has {sorted(self.losses)}: give flow, and kl exactly where autoencoder is empty, for then the "
                "encoder is trained"
            )
        if not 0 <= self.augment <= 1:
            raise ConfigError(f"augment = {self.augment}: a share from 0 to 1 is accepted")


class FlowAutoencoderTrainer(AutoencoderTrainer[FlowAutoencoderConfig, FlowAE]):
    """Trains a FlowAE on a corpus."""

    Config = FlowAutoencoderConfig
    network = ("system", "model", "autoencoder")

    def build_model(self) -> FlowAE:
        config = self.config
        if config.autoencoder:
            model = self._on_latents_of(load(config.autoencoder))
        else:
            model = FlowAE(build_config(FlowAEConfig, config.model, "model"))
        self.measured_at(model)
        return self.started(model)

    def _on_latents_of(self, trained: Any) -> FlowAE:
        """A fresh flow behind a trained encoder, which is frozen."""
        if not isinstance(trained, DACVAE):
            raise ConfigError(
                f"autoencoder = {self.config.autoencoder!r} is a {trained.system}: a dacvae is accepted"
            )
        sizes = {**asdict(trained.config), "prior_layers": 0, **self.config.model}
        model = FlowAE(build_config(FlowAEConfig, sizes, "model"))
        for name in ("encoder", "posterior"):
            part = model.get_submodule(name)
            part.load_state_dict(trained.get_submodule(name).state_dict())
            part.requires_grad_(False)
        if model.config.mean:
            model.flow.shift.copy_(torch.tensor(model.config.mean))
            model.flow.spread.copy_(torch.tensor(model.config.std))
        return model

    def load_data(self) -> None:
        super().load_data()
        if not self.config.init:
            waves = [self.train.batch(number).wave for number in range(FIT_BATCHES)]
            self.model.flow.spectra.fit(torch.cat(waves))

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = self.number(part)
        wave = self.batch(number).wave.to(self.device)
        draws = FlowDraws(*(draw.to(self.device) for draw in self._draws(number)))
        with self.accelerator.autocast():
            output = self.module(wave, draws)
        values = {"flow": squared_error(output.prediction, output.target, torch.ones_like(wave[:, :1, None]))}
        if "kl" in self.config.losses:
            values["kl"] = L.kl_normal(output.mean.float(), output.log_std.float())
        return L.weighted_sum(values, self.config.losses), values

    def _draws(self, number: int) -> FlowDraws:
        generator = self.generator(number)
        rows, width = self.world * self.config.data.batch_size, self.model.config.latent_dim
        frames = self.train.crop // self.hop
        draws = FlowDraws(
            torch.randn(rows, width, frames, generator=generator),
            torch.randn(rows, self.train.crop, generator=generator),
            torch.rand(rows, generator=generator),
            torch.randn(rows, frames, width, generator=generator),
            torch.rand(rows, generator=generator),
        )
        disturbed = torch.rand(rows, generator=generator) < self.config.augment
        share = draws.share * disturbed
        draws = draws._replace(share=share, time=(1 - share) * cosine_time(draws.time))
        return FlowDraws(*map(self.own, draws))

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Held-out mel distance (log10, three DAC scales) of waves decoded in 1 step and in the config's steps."""
        model, wave = self.trained(), self.valid.spread(VALID_CLIPS).wave.to(self.device)
        mean, _ = model.posterior_of(wave[:, None])
        lengths = torch.full((len(wave),), mean.shape[2], device=self.device)
        measured = {}
        for steps in sorted({1, model.config.steps}):
            prediction = model.decode_batch(mean, lengths, steps)
            measured[f"valid/mel_{steps}"] = float(self.measure(prediction, wave))
            if board is not None:
                board.audio(self.step, f"resynthesis_{steps}", prediction[0])
        return measured
