"""Logs of a run: metrics as json lines, TensorBoard curves, audio and mel pictures, curves elsewhere, progress."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vokens.atomic import atomic_write
from vokens.audio.mel import LogMel, MelConfig
from vokens.errors import needs_extra


class Board:
    """TensorBoard curves, audio and pictures below a folder."""

    def __init__(self, folder: Path, sample_rate: int) -> None:
        with needs_extra("tensorboard", "train", "training"):
            from torch.utils.tensorboard import SummaryWriter
        self.writer: Any = SummaryWriter(str(folder))
        self.sample_rate = sample_rate
        self.mel = LogMel(MelConfig(sample_rate, 1024, 1024, 256, 80, center=True))

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
        """Log a log-mel (bands, frames) in nepers as a picture, low bands at the bottom; black is -80 dB."""
        level = mel.detach().float().cpu().flip(0)
        dark = level.max() - 80 / 8.686  # 8.686 dB per neper
        picture = (255 * ((level - dark) / (level.max() - dark)).clamp(0, 1)).byte().numpy()
        self.writer.add_image(name, picture, step, dataformats="HW")


class Log:
    """Where the values of a run go: metrics.jsonl, TensorBoard, a tracker, and the progress line with its ETA.

    step: where the run begins; lines of metrics.jsonl beyond it are dropped.
    """

    def __init__(self, folder: Path, sample_rate: int, accelerator: Any, step: int, steps: int) -> None:
        self.accelerator = accelerator
        self.board = Board(folder / "tensorboard", sample_rate)
        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        with atomic_write(path) as partial:
            partial.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
        self.metrics = path.open("a")
        self.bar = tqdm(total=steps, initial=step, desc="training", unit="step", smoothing=0.05)

    def values(self, step: int, values: dict[str, float], prefix: str = "") -> None:
        """Write values; the prefix is before their names on the board and the tracker."""
        curves = {f"{prefix}{name}": value for name, value in values.items()}
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        self.metrics.write(json.dumps({"step": step, **rounded}) + "\n")
        self.metrics.flush()
        for name, value in curves.items():
            self.board.writer.add_scalar(name, value, step)
        self.accelerator.log(curves, step)

    def say(self, text: str) -> None:
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        for each in (self.bar, self.board.writer, self.metrics):
            each.close()
