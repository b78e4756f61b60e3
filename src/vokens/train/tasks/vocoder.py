"""Training HiFT, mel -> wave, as CosyVoice does: least-squares and relativistic discriminators, mel and pitch.

One generator pass per step: the discriminators are updated on its detached wave, then give it its losses. The pitch
predictor is trained by a pitch tracker's F0 alone, for the sine source passes no gradient.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vokens.audio import LogMel
from vokens.audio.f0 import track_pitch
from vokens.audio.mel import MEL_24K_80
from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.models.s3gen.config import S3GEN_24K, HiFTNetConfig
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3gen.source import Draws, GivenDraws
from vokens.nn.discriminators import MultiPeriodDiscriminator, MultiResolutionDiscriminator
from vokens.nn.masks import padding_mask
from vokens.train import losses as L
from vokens.train.config import CropConfig, DiscriminatorConfig, RunConfig, among
from vokens.train.crops import CropTrainer
from vokens.train.data import wave_of
from vokens.train.gan import GAN, Discriminators, GANLoss, gan_loss
from vokens.train.log import Board
from vokens.train.rows import Rows, cached_rows

MEL_LOSS = replace(MEL_24K_80, f_max=None)  # the input's mel ends at 8 kHz, what is learned from does not
GAN_LOSSES = ("adversarial", "feature", "relativistic")
LOSSES = ("mel", "stft", "f0", *GAN_LOSSES)
VALID_CLIPS = 16
SILENT = float(np.log(MEL_24K_80.floor))


@dataclass(frozen=True)
class VocoderConfig(RunConfig):
    """One run; the defaults are CosyVoice's, of 51 frames at 24 kHz. model: settings that differ from S3Gen's
    vocoder of 24 kHz (`S3GEN_24K`).
    """

    task: str = "vocoder"
    system: str = "hiftnet"
    out: str = "runs/hift"
    data: CropConfig = field(default_factory=lambda: CropConfig(seconds=1.02, batch_size=16))
    discriminators: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    # Pitch of the sine source in training: "predicted", as published, or "tracked". A fresh predictor is 20 Hz off
    # for a thousand steps and more; tracked sines are right from the start.
    sines: str = "predicted"
    # Weights by name: mel, stft, f0 (Hz), adversarial, feature (2 x sum), relativistic.
    losses: dict[str, float] = field(
        default_factory=lambda: {"mel": 45.0, "f0": 1.0} | dict.fromkeys(GAN_LOSSES, 1.0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        among("sines", self.sines, ("predicted", "tracked"))
        among("losses", self.losses, LOSSES)
        if "f0" not in self.losses or not {"mel", "stft"} & set(self.losses):
            raise ConfigError(
                "losses.f0 and losses.mel or losses.stft are needed: nothing else starts the vocoder"
            )


@dataclass(frozen=True)
class VocoderBatch:
    """Crops of B recordings, N = hop * T samples."""

    wave: Tensor  # (B, N) float32, zero beyond a recording's end
    mel: Tensor  # (B, 80, T) log-mel of the whole recording, cut
    pitch: Tensor  # (B, T) Hz, 0 where there is none


class VocoderLearner(nn.Module):
    """A HiFTNetModel with weight norm, and its differentiable forward pass."""

    def __init__(self, vocoder: HiFTNetModel) -> None:
        super().__init__()
        self.vocoder = vocoder.add_weight_norm()

    def forward(self, mel: Tensor, draws: Draws, tracked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Wave (B, N) and predicted pitch (B, T) of a mel (B, 80, T); a tracked pitch (B, T) drives the sines."""
        pitch = self.vocoder.f0_predictor(mel)
        source = self.vocoder.m_source(pitch if tracked is None else tracked, draws)
        return self.vocoder.decode(mel, source), pitch


class VocoderTrainer(CropTrainer[VocoderConfig, VocoderLearner]):
    """Trains HiFT on a corpus."""

    Config = VocoderConfig
    exported = inside = "vocoder"
    sample_rate, hop = MEL_24K_80.sample_rate, MEL_24K_80.hop_length
    grid = (hop / sample_rate, hop / 2 / sample_rate)

    def build_model(self) -> VocoderLearner:
        config = self.config
        sizes = build_config(HiFTNetConfig, {**asdict(S3GEN_24K), **config.model}, "model")
        facts = (sizes.sampling_rate, sizes.hop_length, sizes.in_channels)
        if facts != (MEL_24K_80.sample_rate, MEL_24K_80.hop_length, MEL_24K_80.n_mels):
            raise ConfigError(f"model of {facts} (rate, hop, bands): (24000, 480, 80) is trained here")
        vocoder = self.started(HiFTNetModel(sizes))
        mel = LogMel(MEL_LOSS).to(self.device)
        self.distances = {"mel": partial(L.spectral_l1, mel), **L.SPECTRAL}
        return VocoderLearner(vocoder)

    def load_data(self) -> None:
        super().load_data()
        if not self.config.init:
            self._start_with_levels_of_speech()

    def features(self, pcm: Rows, training: bool) -> Rows:
        """Log-mels and pitch (T, 80 + 1) of all clips, in half precision: 2e-3 nepers, 0.05 % of the pitch."""
        mel = LogMel(MEL_24K_80)

        def rows(samples: np.ndarray) -> np.ndarray:
            wave = wave_of(samples)
            if len(wave) <= MEL_24K_80.padding:
                return np.zeros((0, MEL_24K_80.n_mels + 1), np.float16)
            frames = mel(torch.from_numpy(wave)[None])[0].T.numpy()
            return np.column_stack([frames, track_pitch(wave, self.sample_rate, self.hop)]).astype(np.float16)

        return cached_rows(self.config.data, "mel24k80-f0", pcm, rows, "computing mels and pitch")

    @torch.no_grad()
    def _start_with_levels_of_speech(self) -> None:
        """Initialise a fresh network's magnitudes at the mean of speech, not 1 (a full-scale buzz), and its source at a
        standard deviation of 1: at 0.2 beside a mel of 2.7, 1750 steps learned to whisper."""
        vocoder, batch = self.model.vocoder, self._batch(self.train.batch(0))
        wave = batch.wave.to(vocoder.device)
        source = vocoder.m_source(batch.pitch.to(wave), self._draws(0, wave))
        spectrum = vocoder.stft.of_wave(source)
        for down in vocoder.source_downs:
            down.get_parameter("weight").div_(down(spectrum).std().clamp(min=1e-3))
        real, imag = vocoder.stft.of_wave(wave[:, None]).chunk(2, 1)
        level = (real.square() + imag.square() + 1e-8).log().mean((0, 2)) / 2
        vocoder.conv_post.get_parameter("bias")[: len(level)] = level

    def discriminators(self) -> Iterator[GAN]:
        if set(GAN_LOSSES) & set(self.config.losses):
            settings = self.config.discriminators
            mpd = MultiPeriodDiscriminator(settings.divisor)
            mrd = MultiResolutionDiscriminator(settings.channels)
            network = Discriminators({"mpd": mpd, "mrd": mrd})
            yield GAN(self, network, settings, vocoder_loss(self.config.losses))

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        number = self.number(part)
        batch = self._batch(self.batch(number))
        draws = self._draws(number, batch.wave)
        tracked = batch.pitch if self.config.sines == "tracked" else None
        with self.accelerator.autocast():
            wave, pitch = self.module(batch.mel, draws, tracked)
        wave = wave.float()
        values = {"f0": F.l1_loss(pitch.float(), batch.pitch), **self.reconstruction(wave, batch.wave)}
        losses, report = self.gan_step(batch.wave[:, None], wave[:, None], part)
        return self.weighted(values | losses), report | values | losses

    def _batch(self, crops: Any) -> VocoderBatch:
        """Crops on the device, padded with silence."""
        inside = padding_mask(crops.lengths // MEL_24K_80.hop_length, crops.teacher.shape[1])[..., None]
        rows = torch.where(inside, crops.teacher, torch.tensor([SILENT] * MEL_24K_80.n_mels + [0.0]))
        rows = rows.to(self.device)
        return VocoderBatch(crops.wave.to(self.device), rows[..., :-1].transpose(1, 2), rows[..., -1])

    def _draws(self, number: int, wave: Tensor) -> Draws:
        """Noise of the source for the rows (B, N) of a micro-batch."""
        config, (rows, samples) = self.model.vocoder.config, wave.shape
        generators = self.row_generators(number, rows)
        return GivenDraws.published(generators, [samples] * rows, config.nb_harmonics + 1, config.source)

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Held-out mel distance (nepers), and of the pitch: mean error where both are voiced (Hz) and share of frames
        with the right voicing."""
        batch, vocoder = self._batch(self.valid.spread(VALID_CLIPS)), self.final_model()
        pitch = vocoder.f0_predictor(batch.mel)
        wave, _ = vocoder.inference(batch.mel, seed=0)
        voiced, target_voiced = pitch > vocoder.config.nsf_voiced_threshold, batch.pitch > 0
        both = (voiced & target_voiced).float()
        measured = {
            "valid/mel": float(self.distances["mel"](wave, batch.wave)),
            "valid/f0": float(((pitch - batch.pitch).abs() * both).sum() / both.sum().clamp(min=1)),
            "valid/voicing": float((voiced == target_voiced).float().mean()),
        }
        if board is not None:
            board.resyntheses(self.step, batch.wave, wave)
        return measured


def vocoder_loss(weights: dict[str, float]) -> GANLoss:
    """Least squares and feature matching, and the relativistic loss on both sides where it has a weight."""
    weight, usual = weights.get("relativistic", 0.0), gan_loss()
    return GANLoss(
        lambda target, output: usual.discriminator(target, output) + weight * L.relativistic(target, output),
        usual.generator | {"relativistic": lambda target, output: L.relativistic(output[0], target[0])},
    )
