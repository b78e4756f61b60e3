"""The flow-matching autoencoder (Learnable-Speech's "flowae"): DAC-VAE's encoder, and a decoder that is a flow from
noise to the wave's spectra, conditioned on the latents.

The noise of a frame depends on its position only, so that windows and batches change nothing. Each step of the solver
looks further: windows have as much context as all steps together see.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vokens.errors import ConfigError
from vokens.flow.noise import PrefixNoise
from vokens.flow.objective import expand, straight_path
from vokens.flow.solver import integrate, time_grid
from vokens.models.dacvae.latents import Latents
from vokens.models.dacvae.model import Autoencoder
from vokens.models.flowae.config import FlowAEConfig
from vokens.models.flowae.network import FlowDecoder, velocity
from vokens.nn.masks import frame_mask


class FlowDraws(NamedTuple):
    """The randomness of a training pass over B crops of T frames."""

    posterior: Tensor  # (B, D, T) standard normal, for the latents
    start: Tensor  # (B, N) standard normal, the wave that the flow starts from
    time: Tensor  # (B,) in [0, 1), of the path
    disturbing: Tensor  # (B, T, D) standard normal, added to the latents
    share: Tensor  # (B,) in [0, 1], share of `disturbing` in them; 0 for none


class FlowOutput(NamedTuple):
    """Output of the training forward."""

    prediction: Tensor  # (B, T, C) velocity
    target: Tensor  # (B, T, C) that of the data
    mean: Tensor  # (B, D, T) of the posterior
    log_std: Tensor  # (B, D, T)


class FlowAE(Autoencoder):
    """Speech to DAC-VAE's latents, and back by a flow. `vokens.load(folder)`."""

    system = "flowae"
    Config = FlowAEConfig
    config: FlowAEConfig

    def __init__(self, config: FlowAEConfig) -> None:
        super().__init__(config)
        self.flow = FlowDecoder(config)

    @torch.inference_mode()
    def decode(
        self, latents: Latents, *, steps: int | None = None, seed: int = 0, batch_seconds: float = 60.0
    ) -> list[np.ndarray]:
        """Speech of latents: a list of float32 (T,) at `sample_rate`, cut to the original lengths.

        steps: of the solver; None: the config's. One gives the mean of the spectra that the latents allow.
        seed: of the noise. The same seed gives the same wave in any batch.

        Raises TokensError for latents of another width or of other weights; ConfigError for no steps.
        """
        return self._decoded(latents, partial(self.decode_batch, steps=steps, seed=seed), batch_seconds)

    def decode_batch(self, z: Tensor, lengths: Tensor, steps: int | None = None, seed: int = 0) -> Tensor:
        """Wave (B, T * hop_length) of latents (B, D, T); rows of lengths (B,) frames, independent of each other."""
        steps = self.config.steps if steps is None else steps
        if steps < 1:
            raise ConfigError(f"{steps} steps were given: at least 1 is accepted")
        noise, parts = PrefixNoise(self.hop_length, seed), []
        for w in self.windows(z.shape[2], steps * self.flow.reach + 3):  # spectra see 1 frame
            some = w.read(z)
            white = noise.frames(w.left, w.left + some.shape[2]).to(self.device)
            wave = self._span(some, white, w.lengths(lengths, some.shape[2]), steps)
            parts.append(w.cut(wave, self.hop_length))
        return torch.cat(parts, 1)

    def _span(self, z: Tensor, white: Tensor, lengths: Tensor | None, steps: int) -> Tensor:
        """Wave (B, T * hop) of latents (B, D, T), with white noise (T, hop)."""
        condition = self.flow.normalised(z).to(z.dtype)
        white = white.expand(len(z), -1, -1)
        mask = frame_mask(lengths, condition)
        white = white if mask is None else white * mask
        grid = time_grid(steps, "cosine").to(self.device)

        def towards_data(x: Tensor, number: int) -> Tensor:
            t = grid[number].expand(len(x))
            clean = self.flow(x, t, condition, mask)
            return (clean - x) / (1 - expand(t, x))  # t is below 1: the last step ends at `clean`

        spectra = integrate(towards_data, self.flow.spectra.of_noise(white.flatten(1)), grid)
        return self.flow.spectra.to_speech(spectra if mask is None else spectra * mask)

    def forward(self, wave: Tensor, draws: FlowDraws) -> FlowOutput:
        """The training pass: wave (B, N), N a multiple of the hop."""
        mean, log_std = self.posterior_of(wave[:, None])
        z = self.flow.normalised(mean + draws.posterior * log_std.exp())
        share = expand(draws.share, z)
        z = (1 - share) * z + share * draws.disturbing
        spectra = self.flow.spectra
        target = spectra.of_speech(wave)
        x, _ = straight_path(target, spectra.of_noise(draws.start), draws.time, sigma_min=0.0)
        prediction = velocity(self.flow(x, draws.time, z).float(), x, draws.time)
        return FlowOutput(prediction, velocity(target, x, draws.time), mean, log_std)
