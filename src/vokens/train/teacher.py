"""Semantic teachers: features that the first codebook is trained to carry (SpeechTokenizer, arXiv 2308.16692 §3.2).

Any HuBERT-like model through transformers, or the Moonshine recogniser's encoder through onnxruntime. Features of a
corpus are computed once per clip and kept in fp16 (HuBERT-base: 77 kB per second), or computed on the fly per crop.
"""

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vokens.checkpoint import fingerprint
from vokens.errors import ConfigError
from vokens.evaluator_files import find_model, open_pretrained
from vokens.models.moonshine import HOP, SHORTEST, Moonshine
from vokens.nn.product import use_in
from vokens.train.config import DataConfig, TeacherConfig
from vokens.train.data import wave_of
from vokens.train.rows import Rows, cached_rows

RATE = 16000  # Hz, of every teacher


class Teacher(Protocol):
    """A teacher: features (T', width) of a wave (N,) at 16 kHz."""

    name: str  # names the cache: which model, which weights, which layer
    width: int
    grid: tuple[float, float]  # seconds between frames, and the middle of the first

    def features(self, wave: np.ndarray) -> np.ndarray: ...


class MoonshineTeacher:
    """The encoder of Moonshine (MIT), trained by recognition: tiny gives 288 features, base 416, at 41.67 Hz."""

    grid = (HOP / RATE, SHORTEST / 2 / RATE)

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        folder = find_model(folder)
        self.model = Moonshine(folder, threads)
        graph = folder / "encoder_model.onnx"
        self.name = f"{folder.name}-{hashlib.sha256(graph.read_bytes()).hexdigest()[:8]}"
        self.width = self.features(np.zeros(RATE, np.float32)).shape[1]

    def features(self, wave: np.ndarray) -> np.ndarray:
        return self.model.encode(wave) if len(wave) >= SHORTEST else np.zeros((0, self.width), np.float32)


class HubertTeacher:
    """A HuBERT-like model of transformers (HuBERT, WavLM, wav2vec 2.0), from a folder or hub id.

    layer: "avg" for the mean of all hidden states, as SpeechTokenizer was trained, or the number of one.
    """

    grid = (320 / RATE, 200 / RATE)

    def __init__(self, source: str, layer: str | int = "avg", device: str = "cpu") -> None:
        classes = ("AutoFeatureExtractor", "AutoModel")
        self.extract, model = open_pretrained(source, *classes, purpose="the teacher (teacher.source)")
        self.model = model.eval().to(device)
        use_in(self.model)
        self.layer, self.device = layer, device
        weights = fingerprint(self.model.state_dict(), self.extract.to_dict())
        self.name = f"{Path(source).name}-{layer}-{weights[:8]}"
        self.width = int(self.model.config.hidden_size)
        depth = int(self.model.config.num_hidden_layers)
        if layer != "avg" and not (isinstance(layer, int) and 0 <= layer <= depth):
            raise ConfigError(f'teacher layer {layer!r}: give "avg" or a number from 0 to {depth}')

    @torch.inference_mode()
    def features(self, wave: np.ndarray) -> np.ndarray:
        if len(wave) < 400:  # the receptive field of one frame
            return np.zeros((0, self.width), np.float32)
        values = self.extract(wave, sampling_rate=RATE, return_tensors="pt").input_values.to(self.device)
        states = self.model(values, output_hidden_states=True).hidden_states
        chosen: Tensor = torch.stack(states).mean(0) if self.layer == "avg" else states[self.layer]
        return chosen[0].float().cpu().numpy()


def load_teacher(config: TeacherConfig, device: torch.device) -> Teacher | None:
    """Open the teacher of a run; None where it trains without one."""
    if config.kind == "moonshine":
        return MoonshineTeacher(config.source)
    return HubertTeacher(config.source, config.layer, str(device)) if config.kind else None


def teacher_rows(data: DataConfig, teacher: Teacher, pcm: Rows) -> Rows:
    """Features of all clips, fp16, computed once from their samples at 16 kHz."""

    def compute(samples: np.ndarray) -> np.ndarray:
        return teacher.features(wave_of(samples)).astype(np.float16)

    return cached_rows(data, f"teacher-{teacher.name}", pcm, compute, f"features of {teacher.name}")


def standard(rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (S,) of a teacher's features, over 50,000 rows spread over the corpus.

    Moonshine's mean has two thirds of its features' norm, and one feature varies eight times as much as the rest:
    without normalisation a student gains most by learning constants.
    """
    some = torch.from_numpy(rows.data[:: max(1, len(rows.data) // 50_000)].astype(np.float32))
    return some.mean(0), some.std(0).clamp(min=1e-6)
