"""Logs of a run: one progress line with ETA, TensorBoard curves, audio and mel pictures, curves elsewhere."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vokens.audio.mel import LogMel, MelConfig
from vokens.errors import MissingExtra, needs_extra


class Board:
    """TensorBoard curves, audio and pictures below a folder."""

    def __init__(self, folder: Path, sample_rate: int) -> None:
        with needs_extra("tensorboard", "train", "training"):
            from torch.utils.tensorboard import SummaryWriter
        self.writer: Any = SummaryWriter(str(folder))
        self.sample_rate = sample_rate
        self.mel = LogMel(MelConfig(sample_rate, 1024, 1024, 256, 80, center=True))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def audio(self, step: int, name: str, wave: Tensor) -> None:
        """wave (N,): sound and log-mel picture."""
        wave = wave.detach().float().cpu()
        self.writer.add_audio(name, wave.clamp(-1, 1), step, self.sample_rate)
        with torch.inference_mode():
            self.mel_picture(step, f"{name}_mel", self.mel(wave[None])[0])

    def resyntheses(self, step: int, originals: Tensor, outputs: Tensor) -> None:
        """Log the first two originals and resyntheses of waves (B, N)."""
        for i, (original, output) in enumerate(zip(originals[:2], outputs[:2], strict=True)):
            self.audio(step, f"original_{i}", original)
            self.audio(step, f"resynthesis_{i}", output)

    def mel_picture(self, step: int, name: str, mel: Tensor) -> None:
        """mel (bands, frames) of natural logarithms, as a picture."""
        self.writer.add_image(name, self.picture(mel.detach().float().cpu()), step, dataformats="HW")

    def picture(self, mel: Tensor) -> np.ndarray:
        """A log-mel (bands, frames) as uint8, low frequencies at the bottom; black is -80 dB."""
        level = mel.flip(0)
        dark = level.max() - 80 / 8.686  # 8.686 dB per neper
        return (255 * ((level - dark) / (level.max() - dark)).clamp(0, 1)).byte().numpy()

    def close(self) -> None:
        self.writer.close()


class Tracker:
    """Curves on Weights & Biases ("wandb") or Comet ("comet_ml"), through accelerate; "" shows nothing.

    Raises MissingExtra.
    """

    PROJECT = "vokens"

    def __init__(self, kind: str) -> None:
        if kind and importlib.util.find_spec(kind) is None:  # accelerate would silently log nothing
            raise MissingExtra(kind, "track", f"tracker = {kind!r}")
        self.kind = kind

    def start(self, accelerator: Any, name: str, folder: Path, config: dict[str, Any]) -> None:
        """Start a run of this name and config on the main process, its files in `folder`."""
        if self.kind:
            options = {"wandb": {"name": name, "dir": str(folder)}, "comet_ml": {}}
            accelerator.init_trackers(self.PROJECT, config, {self.kind: options[self.kind]})


class Progress:
    """One line: steps, speed, ETA, and the losses of the last log."""

    def __init__(self, total: int, start: int, shown: bool) -> None:
        self.bar = tqdm(
            total=total, initial=start, desc="training", unit="step", disable=not shown, smoothing=0.05
        )

    def step(self) -> None:
        self.bar.update()

    def show(self, values: dict[str, float]) -> None:
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})

    def say(self, text: str) -> None:
        if not self.bar.disable:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
