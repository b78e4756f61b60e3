"""Training a codec: reconstruction, residual codebooks, semantic distillation, discriminators.

One generator pass per step: the discriminators are updated on its detached output, then give it its losses
(SpeechTokenizer's loop, arXiv 2308.16692 §3.3).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vokens import checkpoint
from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.models.codec import Codec, CodecOutput
from vokens.models.pretrained import system
from vokens.nn.discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSTFTDiscriminator,
)
from vokens.train import losses as L
from vokens.train.balancer import Balancer
from vokens.train.config import AdversarialConfig, CropConfig, RunConfig, TeacherConfig, among, without_zeros
from vokens.train.crops import CropTrainer
from vokens.train.data import Batch, features_at
from vokens.train.gan import GAN, Discriminators, gan_loss
from vokens.train.grown import load_grown
from vokens.train.log import Board
from vokens.train.rows import Rows
from vokens.train.teacher import RATE, Teacher

ON_WAVE = ("wave", "mel", "stft", "spectrum", "adversarial", "feature")  # functions of the output wave
LOSSES = (*ON_WAVE, "commit", "distill")
FIT_BATCHES = 32  # for k-means: 32 batches of 16 s are 25,600 latents, 25 for each of 1024 entries


@dataclass(frozen=True)
class CodecConfig(RunConfig):
    """One run.

    Attributes:
        mel: "published" (SpeechTokenizer's four scales, weighted 45, 1, 1, 1) or "dac" (seven scales).
        losses: weight of each loss by name: wave, mel, stft, spectrum, commit, distill, adversarial, feature;
            0 leaves one out.
        balance: weigh losses on the wave by their share of its gradient (EnCodec §3.4), not by their value.
        codebook_dropout: share of items trained with a random number of codebooks.
        decoder_only: train the decoder alone, a new one where init's has other sizes: the tokens stay those of init.
        fit_codebooks: until this step the latent passes unquantized; then codebooks start from k-means on the latents
            of 32 batches. 0 starts them from the first batch.
    """

    any_system: ClassVar[bool] = True

    system: str = "speechtokenizer"
    data: CropConfig = field(default_factory=CropConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    mel: str = "published"
    losses: dict[str, float] = field(default_factory=lambda: {"wave": 500.0, "mel": 1.0, "commit": 10.0})
    balance: bool = False
    codebook_dropout: float = 0.0
    fit_codebooks: int = 0
    decoder_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        among("mel", self.mel, ("published", "dac"))
        among("losses", self.losses, LOSSES)
        object.__setattr__(self, "losses", without_zeros(self.losses))


class CodecTrainer(CropTrainer[CodecConfig, Codec]):
    """Trains a codec that decodes, with or without a teacher and discriminators."""

    Config = CodecConfig

    def build_model(self) -> Codec:
        config = self.config
        self.model = self._codec()
        self.hop, self.sample_rate = self.model.hop_length, self.model.sample_rate
        self.open_teacher(self.model.config.semantic_dim, "model.semantic_dim")
        if self.teacher is None:
            self.model.semantic.requires_grad_(False)  # DDP waits for every gradient
        self._check_losses()
        mel = L.MelLoss() if config.mel == "published" else L.dac_mel(self.sample_rate)
        self.distances = {"wave": L.wave_l1, "mel": mel.to(self.device), **L.SPECTRAL}
        on_wave = {name: weight for name, weight in config.losses.items() if name in ON_WAVE}
        self.balancer = Balancer(on_wave).to(self.device) if config.balance else None
        return self.model

    def _codec(self) -> Codec:
        config = self.config
        cls = system(config.system)
        if not cls.decodes:
            raise ConfigError(
                f"system {config.system!r} only encodes and cannot be trained as a codec: choose one that decodes, "
                'or train it by recognition with task = "recogniser"'
            )
        model = cls(build_config(cls.Config, config.model, "model"))
        if config.init:
            path = Path(config.init)
            path = path / "model.safetensors" if path.is_dir() else path
            state = {k: v.float() for k, v in checkpoint.read_state_dict(path).items()}
            state = cls.remove_weight_norm(state)
            load_grown(model, with_decoder(model, state) if config.decoder_only else state, config.init)
        model = model.add_weight_norm()
        if config.decoder_only:
            model.requires_grad_(False).decoder.requires_grad_(True)
        return model

    def _check_losses(self) -> None:
        names, adversarial = set(self.config.losses), {"adversarial", "feature"}
        frozen = sorted(names & {"commit", "distill"}) or ["fit_codebooks"] * bool(self.config.fit_codebooks)
        if self.config.decoder_only and (frozen or not self.config.init):
            wrong = (
                f"{frozen[0]} was given, and nothing but the decoder learns: set it to 0"
                if frozen
                else ("init is empty: name the codec whose tokens stay, --set init=FOLDER")
            )
            raise ConfigError(f"decoder_only: {wrong}")
        if "distill" in names and self.teacher is None:
            raise ConfigError(
                "losses.distill has no teacher: --set losses.distill=0 trains without one; or name one, "
                "--set teacher.kind=moonshine --set teacher.source=FOLDER"
            )
        if "distill" not in names and self.teacher is not None:
            raise ConfigError(
                "the teacher has no losses.distill: --set losses.distill=1, or --set teacher.kind= for none"
            )
        if names & adversarial != (adversarial if self.config.adversarial.kinds else set()):
            raise ConfigError(
                "give losses.adversarial and losses.feature exactly when adversarial.kinds is not empty: "
                "--set losses.adversarial=0 --set losses.feature=0 --set adversarial.kinds=[] trains without"
            )

    def features(self, pcm: Rows, training: bool) -> Rows | None:
        return super().features(pcm, training and self.config.teacher.cached)

    def discriminators(self) -> Iterator[GAN]:
        settings = self.config.adversarial
        builders = {
            "mpd": lambda: MultiPeriodDiscriminator(settings.divisor),
            "msd": lambda: MultiScaleDiscriminator(settings.divisor),
            "mstft": lambda: MultiScaleSTFTDiscriminator(settings.filters, settings.windows),
        }
        if settings.kinds:
            network = Discriminators({kind: builders[kind]() for kind in settings.kinds})
            yield GAN(self, network, settings, gan_loss(settings.loss, settings.feature))

    def parts(self) -> Iterator[tuple[str, Any]]:
        yield from super().parts()
        if self.balancer is not None:
            yield "balancer", self.balancer

    def begin_step(self) -> None:
        if self.config.decoder_only:
            self.model.quantizer.eval()  # in training mode its codebooks would learn
        if self.config.fit_codebooks and self.step == self.config.fit_codebooks:
            frames = FIT_BATCHES * self.config.data.batch_size * (self.train.crop // self.hop)
            self.fit_quantizer(self.model.quantizer.fit, self._latents, frames)

    def _latents(self, batch: Batch) -> Tensor:
        return self.model.latent(batch.wave.to(self.device)).flatten(0, 1).float()

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch, generator, keep = self._batch(part)
        quantize = self.step >= self.config.fit_codebooks
        with self.accelerator.autocast():
            output = self.module(batch.wave, keep=keep, generator=generator, quantize=quantize)
        values = self.reconstruction(output.wave.float(), batch.wave) | self._latent_losses(batch, output)
        losses, report = self.gan_step(batch.wave[:, None], output.wave[:, None], part)
        return self._total(values | losses, output.wave), report | values | losses

    def _batch(self, part: int) -> tuple[Batch, torch.Generator, Tensor | None]:
        """Micro-batch `part` of this step, its generator (the same on every process), and codebooks to keep (B,)."""
        number = self.number(part)
        batch, generator, share = self.batch(number), self.generator(number), self.config.codebook_dropout
        keep = None
        if share:
            keep = self.kept_codebooks(len(batch.wave), self.model.num_codebooks, share, generator)
        features = batch.teacher
        if features is None and self.teacher is not None:
            features = self._features(batch, self.teacher)
        return replace(batch, teacher=features).to(self.device), generator, keep

    def _features(self, batch: Batch, teacher: Teacher) -> Tensor:
        """Teacher features of crops, on the fly: (B, T, S) at the codec's frames."""
        middles = (np.arange(batch.wave.shape[1] // self.hop) + 0.5) * self.hop / RATE
        rows = [features_at(teacher.features(wave), middles, teacher.grid) for wave in batch.wave.numpy()]
        return torch.from_numpy(np.stack(rows))

    def _latent_losses(self, batch: Batch, output: CodecOutput) -> dict[str, Tensor]:
        values = {}
        if "commit" in self.config.losses:
            values["commit"] = output.commit
        if "distill" in self.config.losses and batch.teacher is not None:
            distill = L.DISTILLATION[self.config.teacher.loss]
            values["distill"] = distill(output.semantic.float(), batch.teacher, -(-batch.lengths // self.hop))
        return values

    def _total(self, values: dict[str, Tensor], wave: Tensor) -> Tensor:
        if self.balancer is None:
            return self.weighted(values)
        on_wave = {name: value for name, value in values.items() if name in ON_WAVE}
        rest = {name: value for name, value in values.items() if name not in ON_WAVE}
        balanced = self.balancer(on_wave, wave)
        return balanced + self.weighted(rest) if rest else balanced

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Held-out mel distance for 1, 2, 4, … codebooks, and codebook use, of the averaged weights."""
        if self.step < self.config.fit_codebooks:
            return {}
        model = self.final_model()
        batch = self.valid.spread(32)
        wave = batch.wave.to(self.device)
        codes, frames = model.encode_batch(wave, batch.lengths.to(self.device), model.num_codebooks)
        mel = L.mel_distance(model.sample_rate).to(self.device)
        measured, output = {}, wave
        for k in sorted({1, 2, 4, 8, model.num_codebooks} & set(range(1, model.num_codebooks + 1))):
            output = model.decode_batch(codes[:, :k], frames, 0)[:, : wave.shape[1]].float()
            measured[f"valid/mel_{k}"] = float(mel(output, wave))
        for k in range(model.num_codebooks):
            measured[f"valid/use_{k + 1}"] = len(codes[:, k].unique()) / model.codebook_sizes[k]
        if board is not None:
            board.resyntheses(self.step, wave, output)
        return measured


def with_decoder(model: Codec, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a checkpoint, with the model's own decoder where theirs is of other sizes."""
    own = {f"decoder.{name}": weight for name, weight in model.decoder.state_dict().items()}
    others = {name: weight for name, weight in state.items() if not name.startswith("decoder.")}
    theirs = {name: weight.shape for name, weight in state.items() if name not in others}
    same = theirs == {name: weight.shape for name, weight in own.items()}
    return state if same else others | own
