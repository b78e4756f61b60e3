"""Training a codec: reconstruction, residual codebooks, semantic distillation, discriminators.

One generator pass per step: the discriminators are updated on its detached output, then give it its losses
(SpeechTokenizer's loop, arXiv 2308.16692 §3.3).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vokens.errors import ConfigError
from vokens.models.codec import Codec, CodecOutput
from vokens.train import losses as L
from vokens.train.balancer import Balancer
from vokens.train.build import build_codec, build_discriminators, mel_recipe
from vokens.train.config import AdversarialConfig, CropConfig, RunConfig, TeacherConfig, among, without_zeros
from vokens.train.crops import CropTrainer
from vokens.train.data import Batch, Clip
from vokens.train.gan import GAN, GANLoss, generator_losses
from vokens.train.log import Board
from vokens.train.rows import Rows
from vokens.train.teacher import RATE, Teacher, load_teacher, teacher_rows

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
        fit_codebooks: until this step the latent passes unquantized; then codebooks start from k-means on the latents
            of 32 batches. 0 starts them from the first batch.
    """

    system: str = "speechtokenizer"
    data: CropConfig = field(default_factory=CropConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    mel: str = "published"
    losses: dict[str, float] = field(default_factory=lambda: {"wave": 500.0, "mel": 1.0, "commit": 10.0})
    balance: bool = False
    codebook_dropout: float = 0.0
    fit_codebooks: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        among("mel", self.mel, ("published", "dac"))
        among("teacher.loss", self.teacher.loss, ("d_axis", "t_axis"))
        among("adversarial.loss", self.adversarial.loss, ("least_squares", "hinge"))
        among("adversarial.feature", self.adversarial.feature, ("published", "normalised"))
        for kind in self.adversarial.kinds:
            among("adversarial.kinds", kind, ("mpd", "msd", "mstft"))
        for name in self.losses:
            among("losses", name, LOSSES)
        object.__setattr__(self, "losses", without_zeros(self.losses))


class CodecTrainer(CropTrainer[CodecConfig, Codec]):
    """Trains a codec that decodes, with or without a teacher and discriminators."""

    Config = CodecConfig

    # Building ----------------------------------------------------------------------------------------------

    def build_model(self) -> Codec:
        config = self.config
        self.model = build_codec(config)
        self.hop, self.sample_rate = self.model.hop_length, self.model.sample_rate
        self.teacher = self._load_teacher()
        if self.teacher is None:
            self.model.semantic.requires_grad_(False)  # DDP waits for every gradient
        else:
            self.grid = self.teacher.grid
        self.discriminators = build_discriminators(config.adversarial)
        self.mel = L.MelLoss(*mel_recipe(config.mel, self.model.sample_rate)).to(self.device)
        self.stft = L.STFTLoss().to(self.device)
        self.spectrum = L.SpectrumLoss()
        self._check_losses()
        on_wave = {name: weight for name, weight in config.losses.items() if name in ON_WAVE}
        self.balancer = Balancer(on_wave).to(self.device) if config.balance else None
        return self.model

    def _load_teacher(self) -> Teacher | None:
        kind = self.config.teacher.kind
        if not kind:
            return None
        teacher = load_teacher(kind, self.config.teacher.source, self.config.teacher.layer, str(self.device))
        if self.model.config.semantic_dim != teacher.width:
            raise ConfigError(
                f"the teacher's features are {teacher.width} wide, model.semantic_dim is "
                f"{self.model.config.semantic_dim}: set model.semantic_dim = {teacher.width}"
            )
        if self.model.sample_rate != RATE:
            raise ConfigError(f"teachers take {RATE} Hz, the codec works at {self.model.sample_rate} Hz")
        return teacher

    def _check_losses(self) -> None:
        names, adversarial = set(self.config.losses), {"adversarial", "feature"}
        if "distill" in names and self.teacher is None:
            raise ConfigError(
                "losses.distill has no teacher: --set losses.distill=0 trains without one; or name one, "
                "--set teacher.kind=moonshine --set teacher.source=FOLDER"
            )
        if "distill" not in names and self.teacher is not None:
            raise ConfigError(
                "the teacher has no losses.distill: --set losses.distill=1, or --set teacher.kind= for none"
            )
        if bool(self.config.adversarial.kinds) != adversarial.issubset(names) or (
            names & adversarial and not self.discriminators
        ):
            raise ConfigError(
                "give losses.adversarial and losses.feature exactly when adversarial.kinds is not empty: "
                "--set losses.adversarial=0 --set losses.feature=0 --set adversarial.kinds=[] trains without"
            )

    def features(self, cache: Path, clips: list[Clip], pcm: Rows, training: bool) -> Rows | None:
        if self.teacher is None or not self.config.teacher.cached:
            return None
        return teacher_rows(self.teacher, cache, clips, pcm, self.config.data.workers)

    def prepare(self) -> None:
        super().prepare()
        if self.discriminators is not None:
            settings = self.config.adversarial
            matching = {"published": L.feature_matching, "normalised": L.normalised_feature_matching}
            loss = L.ADVERSARIAL[settings.loss]
            losses = GANLoss(loss.discriminator, generator_losses(loss.generator, matching[settings.feature]))
            rate = settings.learning_rate
            self.gans.append(GAN(self, self.discriminators, losses, start=settings.start, learning_rate=rate))

    def parts(self) -> Iterator[tuple[str, Any]]:
        yield from super().parts()
        if self.balancer is not None:
            yield "balancer", self.balancer

    # One step ----------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        if self.config.fit_codebooks and self.step == self.config.fit_codebooks:
            self._fit_codebooks()

    def micro_step(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch, generator, keep = self._batch(part)
        with self.accelerator.autocast():
            output = self._forward(batch, keep, generator)
        values, report = self._losses(batch, output), {}
        for gan in self.gans:
            losses, report = gan.step(batch.wave[:, None], output.wave[:, None], part)
            values |= losses
        return self._total(values, output.wave), report | values

    def _batch(self, part: int) -> tuple[Batch, torch.Generator, Tensor | None]:
        """Micro-batch `part` of this step, its generator (the same on every process), and codebooks to keep (B,)."""
        number = self.number(part)
        batch, generator = self.train.batch(number, self.rank, self.world), self.generator(number)
        keep = None
        if self.config.codebook_dropout:
            total, rows = self.model.num_codebooks, self.world * len(batch.wave)
            drawn = torch.randint(1, total + 1, (rows,), generator=generator)
            dropped = torch.rand(rows, generator=generator) < self.config.codebook_dropout
            keep = self.own(torch.where(dropped, drawn, total)).to(self.device)
        teacher = batch.teacher
        if teacher is None and self.teacher is not None:
            teacher = self._features(batch)
        moved = Batch(
            batch.wave.to(self.device), batch.lengths, None if teacher is None else teacher.to(self.device)
        )
        return moved, generator, keep

    def _features(self, batch: Batch) -> Tensor:
        """Teacher features of crops, on the fly: (B, T, S) at the codec's frames."""
        assert self.teacher is not None
        spacing, first = self.teacher.grid
        middles = (np.arange(batch.wave.shape[1] // self.hop) + 0.5) * self.hop / RATE
        rows = []
        for wave in batch.wave.numpy():
            features = self.teacher.features(wave)
            place = (middles - first) / spacing
            rows.append(
                np.stack([np.interp(place, np.arange(len(features)), column) for column in features.T], 1)
            )
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    def _forward(self, batch: Batch, keep: Tensor | None, generator: torch.Generator) -> CodecOutput:
        quantize = self.step >= self.config.fit_codebooks
        return self.module(batch.wave, keep=keep, generator=generator, quantize=quantize)

    def _losses(self, batch: Batch, output: CodecOutput) -> dict[str, Tensor]:
        weights, wave = self.config.losses, output.wave.float()
        values: dict[str, Tensor] = {}
        if "wave" in weights:
            values["wave"] = L.wave_l1(wave, batch.wave)
        if "mel" in weights:
            values["mel"] = self.mel(wave, batch.wave)
        if "stft" in weights:
            values["stft"] = self.stft(wave, batch.wave)
        if "spectrum" in weights:
            values["spectrum"] = self.spectrum(wave, batch.wave)
        if "commit" in weights:
            values["commit"] = output.commit
        if "distill" in weights and batch.teacher is not None:
            distill = {"d_axis": L.d_axis, "t_axis": L.t_axis}[self.config.teacher.loss]
            frames = (-(-batch.lengths // self.hop)).to(self.device)
            values["distill"] = distill(output.semantic.float(), batch.teacher, frames)
        return values

    def _total(self, values: dict[str, Tensor], wave: Tensor) -> Tensor:
        if self.balancer is None:
            return self.weighted(values)
        on_wave = {name: value for name, value in values.items() if name in ON_WAVE}
        rest = {name: value for name, value in values.items() if name not in ON_WAVE}
        balanced = self.balancer(on_wave, wave)
        return balanced + self.weighted(rest) if rest else balanced

    @torch.no_grad()
    def _fit_codebooks(self) -> None:
        self.model.eval()
        waves = (
            self.train.batch(self.number(i), rank, self.world).wave
            for i in range(-(-FIT_BATCHES // self.world))
            for rank in range(self.world)
        )
        latents = [self.model.latent(wave.to(self.device)).flatten(0, 1).float() for wave in waves]
        generator = torch.Generator().manual_seed(self.config.seed)
        self.model.quantizer.fit(torch.cat(latents), generator)

    # Validation and export ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def validate(self, board: Board | None = None) -> dict[str, float]:
        """Held-out mel distance for 1, 2, 4, … codebooks, and codebook use, of the averaged weights."""
        if self.valid is None or self.step < self.config.fit_codebooks:
            return {}
        model = self.final_model()
        batch = self.valid.spread(32)
        wave = batch.wave.to(self.device)
        codes, frames = model.encode_batch(wave, batch.lengths.to(self.device), model.num_codebooks)
        mel = L.MelLoss(L.dac_scales(model.sample_rate)[3:6], [1 / 3] * 3).to(self.device)
        measured, output = {}, wave
        for k in sorted({1, 2, 4, 8, model.num_codebooks} & set(range(1, model.num_codebooks + 1))):
            output = model.decode_batch(codes[:, :k], frames, 0)[:, : wave.shape[1]].float()
            measured[f"valid/mel_{k}"] = float(mel(output, wave))
        for k in range(model.num_codebooks):
            measured[f"valid/use_{k + 1}"] = len(codes[:, k].unique()) / model.codebook_sizes[k]
        if board is not None:
            board.resyntheses(self.step, wave, output)
        return measured

    def final_model(self) -> Codec:
        """The inference codec of the averaged (or present) weights."""
        return self.finished(type(self.model)(self.model.config), self.final_state())
