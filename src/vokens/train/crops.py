"""Bases of the tasks that train on crops of speech, and of those among them whose models are autoencoders."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vokens.errors import ConfigError
from vokens.models.dacvae.model import Autoencoder
from vokens.nn.masks import padding_mask
from vokens.train import losses as L
from vokens.train.data import Crops, pcm_rows, read_clips
from vokens.train.loop import Trainer
from vokens.train.rows import Rows
from vokens.train.teacher import RATE, Teacher, load_teacher, teacher_rows

STATISTICS_BATCHES = 32

Config = TypeVar("Config", bound=Any)
Model = TypeVar("Model", bound=nn.Module)
Vae = TypeVar("Vae", bound=Autoencoder)
Named = dict[str, Tensor]


class CropTrainer(Trainer[Config, Model]):
    """Base of the tasks on random crops. build_model sets the attributes, `features` makes what goes with the samples.

    Attributes:
        hop: crops begin at multiples of it. unit: their length is a multiple of it, by default of hop.
        grid: seconds between rows of the features, and the moment of the first.
        distances: losses of (output, target) waves (B, N), by name; those that the config names are computed.
    """

    hop: int
    unit: int = 0
    grid: tuple[float, float] = (0.02, 0.01)
    teacher: Teacher | None = None
    distances: dict[str, Callable[[Tensor, Tensor], Tensor]]

    def open_teacher(self, width: int, setting: str) -> None:
        """Open the config's teacher, if it has one, whose features are of this width, the value of a setting."""
        self.teacher = load_teacher(self.config.teacher, self.device)
        if self.teacher is None:
            return
        self.grid = self.teacher.grid
        if self.teacher.width != width:
            raise ConfigError(
                f"the teacher's features are {self.teacher.width} wide, {setting} is {width}: "
                f"set {setting} = {self.teacher.width}"
            )
        if self.sample_rate != RATE:
            raise ConfigError(f"teachers take {RATE} Hz, the codec works at {self.sample_rate} Hz")

    def features(self, pcm: Rows, training: bool) -> Rows | None:
        """Features of all clips, by default a teacher's in training; None for none."""
        if self.teacher is None or not training:
            return None
        return teacher_rows(self.config.data, self.teacher, pcm)

    def open_data(self, source: str, split: str | None, training: bool) -> Crops:
        data, unit = self.config.data, self.unit or self.hop
        pcm = pcm_rows(data, read_clips(source, split, data.language), self.sample_rate)
        return Crops(
            pcm,
            sample_rate=self.sample_rate,
            crop=max(1, round(data.seconds * self.sample_rate / unit)) * unit,
            hop=self.hop,
            batch_size=data.batch_size,
            seed=self.config.seed,
            teacher=self.features(pcm, training),
            grid=self.grid,
        )

    def kept_codebooks(self, rows: int, total: int, share: float, generator: torch.Generator) -> Tensor:
        """Quantizer dropout: the number of first codebooks kept in each of this process's rows, all of them or, in a
        share of the rows, uniform from 1."""
        drawn = torch.randint(1, total + 1, (self.world * rows,), generator=generator)
        dropped = torch.rand(self.world * rows, generator=generator) < share
        return self.own(torch.where(dropped, drawn, total)).to(self.device)

    def reconstruction(self, output: Tensor, target: Tensor) -> Named:
        """The config's losses among `distances`, of waves (B, N)."""
        weights = self.config.losses
        return {
            name: distance(output, target) for name, distance in self.distances.items() if name in weights
        }

    def gan_step(self, target: Tensor, output: Tensor, part: int, name: str = "") -> tuple[Named, Named]:
        """`GAN.step` of the discriminators of this name; both empty without them."""
        for gan in self.gans:
            if gan.name == name:
                return gan.step(target, output, part)
        return {}, {}

    def weighted(self, values: Named) -> Tensor:
        """The sum of losses by the config's weights."""
        return L.weighted_sum(values, {name: self.config.losses[name] for name in values})


class AutoencoderTrainer(CropTrainer[Config, Vae]):
    """Base of the autoencoder tasks: each implements build_model, which ends with `measured_at`, micro_step and
    validate."""

    exported = "model"

    def measured_at(self, model: Vae) -> None:
        """Set the sample rate, the hop and the mel distance of a model."""
        self.sample_rate, self.hop = model.sample_rate, model.hop_length
        self.measure = L.mel_distance(self.sample_rate).to(self.device)

    def trained(self) -> Vae:
        """The model of the averaged (or present) weights."""
        return super().final_model()

    def final_model(self) -> Vae:
        """The model of `trained`, with the statistics of its latents."""
        model = self.trained()
        mean, std = latent_statistics(model, self.train)
        return self.finished(type(model)(replace(model.config, mean=mean, std=std)), model.state_dict())


@torch.inference_mode()
def latent_statistics(model: Autoencoder, crops: Crops) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each latent dimension (posterior means) over crops of the training data."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for number in range(STATISTICS_BATCHES):
        batch = crops.batch(number)
        frames = (batch.lengths // model.hop_length).to(model.device)  # whole ones
        mean, _ = model.encode_batch(batch.wave.to(model.device), batch.lengths.to(model.device))
        means = mean.mT[padding_mask(frames, mean.shape[2])].double().cpu()  # (frames, D)
        count += len(means)
        total, squares = total + means.sum(0), squares + means.square().sum(0)
    average = total / max(1, count)
    spread = (squares / max(1, count) - average.square()).clamp(min=1e-8).sqrt()
    return tuple(average.tolist()), tuple(spread.tolist())
