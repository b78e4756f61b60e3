"""DAC-VAE (Learnable-Speech; Descript's codec with a Gaussian latent in place of its quantizer): speech to continuous
latents and back, for generative models.

Long recordings are computed in windows with the convolutions' whole context, which gives the same result.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vokens.models.dacvae.checkpoint as layout
from vokens import audio, checkpoint
from vokens.batching import batches
from vokens.errors import TokensError
from vokens.models.codec import Audio
from vokens.models.dacvae.cepstra import Cepstra
from vokens.models.dacvae.config import RELEASES, DACVAEConfig
from vokens.models.dacvae.latents import Latents
from vokens.models.dacvae.network import Decoder, Encoder, LastConv
from vokens.models.dacvae.prior import FlowPrior
from vokens.models.dacvae.pulses import hertz, pitch_latents, turns_of
from vokens.models.dacvae.spectral import SPECTRA, SpectralDecoder, SpectralEncoder
from vokens.models.pretrained import Pretrained
from vokens.nn.conv import add_weight_norm
from vokens.nn.masks import padding_mask
from vokens.nn.windows import Window, windows
from vokens.one_or_list import type_name

KNOWN_LOG_STD = -4.6  # of measured, not learned, latents: for the pitch a hundredth of an octave
WINDOW_SECONDS = 8.0  # of audio per window: 0.2 GB at the widest layer of the released sizes


class VAEOutput(NamedTuple):
    """Output of the training forward."""

    wave: Tensor  # (B, N) resynthesis of a sampled latent
    mean: Tensor  # (B, D, T) of the posterior
    log_std: Tensor  # (B, D, T)
    flowed: Tensor | None  # (B, D, T) f(z) of the sampled latent, where there is a flow prior


class Place(NamedTuple):
    """Position of a chunk of latents: the frames before it, and the turns (B,) that their pulses have made."""

    frames: int = 0
    turns: Tensor | None = None


BEGIN = Place()


class Autoencoder(Pretrained):
    """Speech to continuous latents; a subclass decodes them."""

    encoder: Encoder | SpectralEncoder | Cepstra

    def __init__(self, config: DACVAEConfig) -> None:
        super().__init__(config)
        self.sample_rate, self.hop_length = config.sample_rate, config.hop_length
        on_samples = config.network == "dac"
        self.posterior: LastConv | None = None
        if getattr(config, "pulses", False):
            count = config.latent_dim - 2 * SPECTRA
            self.encoder = Cepstra(count, config.sample_rate, config.n_fft, SPECTRA)
            return
        self.encoder = Encoder(config) if on_samples else SpectralEncoder(config)
        slope = config.conv_slope if on_samples else 1.0
        self.posterior = LastConv(self.encoder.channels, 2 * config.latent_dim, 1, slope)

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop_length

    @property
    def weights(self) -> Tensor | None:
        """Loss weights (D,) of normalised latent dimensions for generative models, mean 1; None for equal ones.

        Cepstra are weighted by their effect on the log spectrum: little for the last ones, which tokens do not tell.
        """
        if not isinstance(self.encoder, Cepstra):
            return None
        std = torch.tensor(self.config.std or [1.0] * self.config.latent_dim)
        moves = self.encoder.share.cpu() * std[: self.encoder.channels]
        return torch.cat([moves / moves.mean(), moves.new_ones(2 * SPECTRA)])

    @torch.inference_mode()
    def encode(
        self,
        source: Audio | Sequence[Audio],
        sample_rate: int | None = None,
        *,
        generator: torch.Generator | None = None,
        batch_seconds: float = 60.0,
    ) -> Latents:
        """Latents of one recording or a list of them: ceil(N / hop_length) frames each.

        Args:
            source: as in `Codec.encode`: one recording, or a list of them.
            sample_rate: rate of arrays and tensors in Hz; files know theirs.
            generator: to sample from the posterior; None gives its mean.
            batch_seconds: padded audio per forward pass. It bounds memory and changes nothing else.

        Raises AudioError for audio that is empty, not finite or not readable, or an array without its rate.
        """
        waves = [torch.from_numpy(wave) for wave in audio.load_all(source, self.sample_rate, sample_rate)]
        num_samples = torch.tensor([len(wave) for wave in waves])
        lengths = -(-num_samples // self.hop_length)
        values = torch.zeros(len(waves), self.config.latent_dim, int(lengths.max()))
        for rows in batches(num_samples.tolist(), int(batch_seconds * self.sample_rate)):
            batch = nn.utils.rnn.pad_sequence([waves[row] for row in rows], batch_first=True)
            mean, log_std = self.encode_batch(batch.to(self.device), num_samples[rows].to(self.device))
            for row, mu, logs in zip(rows, mean.float().cpu(), log_std.float().cpu(), strict=True):
                frames = int(lengths[row])
                values[row, :, :frames] = mu[:, :frames]
                if generator is not None:
                    noise = torch.randn(mu.shape[0], frames, generator=generator)
                    values[row, :, :frames] += noise * logs[:, :frames].exp()
        rates = self.sample_rate, self.frame_rate
        return Latents(values, lengths, num_samples, self.name, self.fingerprint, *rates)

    def _decoded(
        self, latents: Latents, decode_batch: Callable[[Tensor, Tensor], Tensor], batch_seconds: float
    ) -> list[np.ndarray]:
        if not isinstance(latents, Latents):
            raise TokensError(f"{type_name(latents)} was given to decode: Latents of encode are accepted")
        if latents.values.shape[1] != self.config.latent_dim:
            raise TokensError(
                f"latents of {latents.values.shape[1]} numbers were given, {self.name} has {self.config.latent_dim}"
            )
        if latents.fingerprint and latents.fingerprint != self.fingerprint:
            raise TokensError(
                f"these latents were made by other weights ({latents.model}, {latents.fingerprint}; loaded "
                f"{self.fingerprint}): decode with the weights that encoded"
            )
        frames = latents.lengths.tolist()
        waves: list[np.ndarray] = [np.zeros(0, np.float32)] * len(latents)
        for rows in batches(frames, int(batch_seconds * self.frame_rate)):
            rows = [row for row in rows if frames[row]]  # empty items stay empty
            if not rows:
                continue
            longest = frames[rows[0]]
            z = latents.values[rows, :, :longest].to(self.device, self.dtype)
            wave = decode_batch(z, latents.lengths[rows].to(self.device))
            for row, item in zip(rows, wave.float().cpu().numpy(), strict=True):
                waves[row] = item[: int(latents.num_samples[row])].copy()
        return waves

    def encode_batch(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the standard deviation, (B, D, T) each, of wave (B, N), zero beyond lengths (B,) samples.

        Rows are filled up with zeros to whole frames; output beyond a row's own frames is undefined.
        """
        hop = self.hop_length
        frames = -(-lengths // hop)
        total = int(frames.max())
        wave = F.pad(wave, (0, total * hop - wave.shape[1]))[:, None]
        pitch, parts = self._pitch_of(wave[:, 0], frames), []
        for w in self.windows(total, self.encoder.reach):
            some = w.read(wave, hop)
            lengths_in = w.lengths(frames * hop, some.shape[2], hop)
            posterior = self.posterior_of(some, lengths_in, None if pitch is None else w.read(pitch))
            parts.append([w.cut(part) for part in posterior])
        mean, log_std = (torch.cat(part, 2) for part in zip(*parts, strict=True))
        return mean, log_std

    def posterior_of(
        self, wave: Tensor, lengths: Tensor | None = None, pitch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log of the standard deviation (B, D, T) of wave (B, 1, N), in the published shapes.

        pitch (B, 2 * SPECTRA, T): the last latents of a model with pulses (`pitch_latents`).
        """
        if self.posterior is None:
            mean = self.encoder(wave, lengths)
            log_std = torch.full_like(mean, KNOWN_LOG_STD)
        else:
            mean, log_std = self.posterior(self.encoder(wave, lengths)).chunk(2, dim=1)
        if pitch is not None:
            known = torch.full_like(pitch, KNOWN_LOG_STD).to(mean)
            mean, log_std = torch.cat([mean, pitch.to(mean)], 1), torch.cat([log_std, known], 1)
        return mean, log_std.clamp(-14, 14)

    def _pitch_of(self, wave: Tensor, frames: Tensor) -> Tensor | None:
        """Pitch latents of waves (B, N), each tracked up to its own frames; None for a model without pulses."""
        if not getattr(self.config, "pulses", False):
            return None
        hop, total = self.hop_length, wave.shape[1] // self.hop_length
        rows = [
            F.pad(pitch_latents(row[None, : count * hop], self.sample_rate, hop, SPECTRA), (0, total - count))
            for row, count in zip(wave, frames.tolist(), strict=True)
        ]
        return torch.cat(rows)

    def windows(self, total: int, context: int) -> list[Window]:
        """Windows of frames, each computed in one pass."""
        return windows(total, max(1, round(WINDOW_SECONDS * self.frame_rate)), context)


class DACVAE(Autoencoder):
    """Speech to continuous latents and back. `vokens.load(folder or published checkpoint)`."""

    system = "dacvae"
    Config = DACVAEConfig

    def __init__(self, config: DACVAEConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(config) if config.network == "dac" else SpectralDecoder(config)
        sizes = config.latent_dim, config.prior_width, config.prior_layers
        self.prior = FlowPrior(*sizes) if config.prior_layers else None

    @torch.inference_mode()
    def decode(self, latents: Latents, *, batch_seconds: float = 60.0) -> list[np.ndarray]:
        """Speech of latents: a list of float32 (T,) at `sample_rate`, cut to the original lengths.

        Raises TokensError for latents of another width or of other weights.
        """
        return self._decoded(latents, self.decode_batch, batch_seconds)

    def decode_batch(self, z: Tensor, lengths: Tensor, place: Place = BEGIN) -> Tensor:
        """Wave (B, T * hop_length) of latents (B, D, T); rows of lengths (B,) frames, independent of each other.

        place: position of the latents in their stream; `behind` gives it.
        """
        pulses, parts = self._pulses(z, lengths, place), []
        for w in self.windows(z.shape[2], self.decoder.reach):
            some, more = w.read(z), [] if pulses is None else [pulses(w)]
            wave = self.decoder(some, w.lengths(lengths, some.shape[2]), *more)
            parts.append(w.cut(wave[:, 0], self.hop_length))
        return torch.cat(parts, 1)

    def behind(self, z: Tensor, place: Place = BEGIN) -> Place:
        """Position of latents that follow z (B, D, T)."""
        if not self.config.pulses:
            return Place(place.frames + z.shape[2])
        turns = hertz(z[:, -2 * SPECTRA :]).double().sum(1) * (self.hop_length / SPECTRA / self.sample_rate)
        turns = turns if place.turns is None else turns + place.turns
        return Place(place.frames + z.shape[2], turns.remainder(1))

    def _pulses(self, z: Tensor, lengths: Tensor, place: Place) -> Callable[[Window], Tensor] | None:
        """The decoder's pulses in a window, silent beyond each row's end; None where it takes none."""
        if not self.config.pulses:
            return None
        assert isinstance(self.decoder, SpectralDecoder)
        inside, decoder = padding_mask(lengths, z.shape[2]), self.decoder
        frequency = hertz(z[:, -2 * SPECTRA :]) * inside.repeat_interleave(SPECTRA, 1)
        turns = turns_of(frequency, decoder.pulses.hop, self.sample_rate, place.turns)

        def pulses(w: Window) -> Tensor:
            first = SPECTRA * (place.frames + w.left)
            source = decoder.pulses(w.read(frequency, SPECTRA), w.read(turns, SPECTRA), first)
            return source * w.read(inside).repeat_interleave(self.hop_length, 1)

        return pulses

    def forward(self, wave: Tensor, noise: Tensor, pitch: Tensor | None = None) -> VAEOutput:
        """The training pass: wave (B, N), N a multiple of the hop; noise (B, D, T) standard normal; pitch latents
        (B, 2 * SPECTRA, T) of a model with pulses."""
        mean, log_std = self.posterior_of(wave[:, None], None, pitch)
        z = mean + noise * log_std.exp()
        flowed = None if self.prior is None else self.prior(z)
        if pitch is None:
            return VAEOutput(self.decoder(z)[:, 0], mean, log_std, flowed)
        assert isinstance(self.decoder, SpectralDecoder)
        source = self.decoder.pulses_of(hertz(pitch))
        return VAEOutput(self.decoder(z, None, source)[:, 0], mean, log_std, flowed)

    def add_weight_norm(self) -> Self:
        """Add weight norm for training to all convolutions, as published, but the prior's, which start at zero."""
        for part in (self.encoder, self.posterior, self.decoder):
            if part is not None:
                add_weight_norm(part)
        return self

    @classmethod
    def remove_weight_norm(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return checkpoint.fold_weight_norm(state)

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any = None) -> Self:
        """The model with published weights, of sizes by their shapes or by a DACVAEConfig."""
        config = config if isinstance(config, DACVAEConfig) else layout.configure(state)
        model = cls.with_weights(config, layout.to_ours(state, config))
        for name, release in RELEASES.items():
            if config == release:
                model.name = name
        return model

    def to_published(self) -> dict[str, Tensor]:
        """The weights under the published names."""
        config = self.config
        checkpoint.check_publishable(
            network=(config.network, "dac"),
            conv_slope=(config.conv_slope, 0.1),
            sample_rate=(config.sample_rate, 24000),
            prior_layers=(config.prior_layers, 0),
        )
        return layout.to_published(self.state_dict(), config)
