"""Base of the autoencoder tasks: crops of a corpus, and statistics of the latents in the exported model."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from vokens.models.dacvae.model import Autoencoder
from vokens.nn.masks import padding_mask
from vokens.train import losses as L
from vokens.train.data import Crops, pcm_rows, read_clips
from vokens.train.loop import Trainer

STATISTICS_BATCHES = 32

Config = TypeVar("Config", bound=Any)
Model = TypeVar("Model", bound=Autoencoder)


class AutoencoderTrainer(Trainer[Config, Model]):
    """Base of the tasks: each implements build_model, which ends with `measured_at`, micro_step and validate."""

    exported = "model"

    def measured_at(self, model: Model) -> None:
        """Set the sample rate, the hop and the mel distance (log10, three DAC scales) of a model."""
        self.sample_rate, self.hop = model.sample_rate, model.hop_length
        self.measure = L.MelLoss(L.dac_scales(self.sample_rate)[3:6], [1 / 3] * 3).to(self.device)

    def load_data(self) -> None:
        data = self.config.data
        self.train = self._crops(data.train, data.train_split)
        self.valid = self._crops(data.valid, data.valid_split) if data.valid else None

    def _crops(self, source: str, split: str | None) -> Crops:
        data = self.config.data
        clips = read_clips(source, split, data.language)
        return Crops(
            pcm_rows(Path(data.cache), clips, self.sample_rate, data.workers),
            sample_rate=self.sample_rate,
            crop=max(1, round(data.seconds * self.sample_rate / self.hop)) * self.hop,
            hop=self.hop,
            batch_size=data.batch_size,
            seed=self.config.seed,
        )

    def trained(self) -> Model:
        """The model of the averaged (or present) weights."""
        return self.finished(type(self.model)(self.model.config), self.final_state())

    def final_model(self) -> Model:
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
