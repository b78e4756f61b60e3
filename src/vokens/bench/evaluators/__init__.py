"""Evaluators by name: ASR and speaker verification models, and the metrics that this machine cannot compute.

A name without a colon is a model of docs/jobs/metrics.md that runs offline; `kind:ID` is opened by transformers, ID is
a hub id or a folder. To add a model, add a line of a table.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from vokens.bench.evaluators.whisper import Whisper
from vokens.bench.metrics import cosine, word_error
from vokens.errors import ConfigError, MissingExtra
from vokens.evaluator_files import FILES, check_files, find_evaluator, lacking, open_pretrained
from vokens.models.moonshine import Moonshine
from vokens.nn.campplus_onnx import open_campplus

RATE = 16000
Models = Mapping[str, Callable[..., Any]]
_WINDOW = 30 * RATE  # the window of Whisper


class Recogniser(Protocol):
    """Speech recognition."""

    def transcribe(self, wave: np.ndarray) -> str:
        """The transcript of a 16 kHz wave (T,) in [-1, 1]."""
        ...


class SpeakerModel(Protocol):
    """Voices as vectors."""

    def embed(self, wave: np.ndarray) -> np.ndarray:
        """Speaker embedding (D,) of a 16 kHz wave (T,) in [-1, 1], compared by cosine."""
        ...


def open_recogniser(name: str, folder: Path | None = None, device: str = "cpu") -> Recogniser:
    """moonshine-tiny-en, moonshine-base-en, whisper-base, whisper:ID or wav2vec2:ID (any CTC model, e.g. HuBERT).

    folder: of the offline models. Raises ConfigError for other names, NotInstalled and DownloadError for missing
    files, MissingExtra without the packages.
    """
    offline = {"moonshine-tiny-en": Moonshine, "moonshine-base-en": Moonshine, "whisper-base": Whisper}
    hub = {"whisper": WhisperOfTransformers, "wav2vec2": Wav2Vec2}
    return _open("recogniser", offline, hub, name, folder, device)


def open_speaker_model(name: str, folder: Path | None = None, device: str = "cpu") -> SpeakerModel:
    """campplus-zh-en or wavlm:ID (x-vectors, e.g. microsoft/wavlm-base-plus-sv); raises as `open_recogniser` does."""
    return _open("speaker", {"campplus-zh-en": SpeakerEvaluator}, {"wavlm": WavLM}, name, folder, device)


def _open(role: str, offline: Models, hub: Models, name: str, folder: Path | None, device: str) -> Any:
    """The model of a folder, by its name in `offline`, or of a hub id, by its kind in `hub`."""
    kind, colon, source = name.partition(":")
    if not colon and kind in offline:
        return offline[kind](find_evaluator(kind, folder))
    if source and kind in hub:
        return hub[kind](source, device)
    known = ", ".join([*offline, *(f"{kind}:ID" for kind in hub)])
    raise ConfigError(f"{role} {name!r}: {known} are accepted, ID is a hub id or a folder")


class SpeakerEvaluator:
    """CAM++ from the folder of its published weights (campplus_cn_en_common.pt), embedding dim 192."""

    def __init__(self, folder: str | Path) -> None:
        home = check_files(folder, "campplus-zh-en")
        self._model = open_campplus(home / FILES["campplus-zh-en"][0])

    def embed(self, wave: np.ndarray) -> np.ndarray:
        """Speaker embedding (192,) of a 16 kHz wave (T,) of at least 45 ms."""
        return self._model.embed([torch.from_numpy(np.ascontiguousarray(wave))])[0].numpy()


class Likeness:
    """Word error and speaker similarity of resyntheses, by the models of these names; "" for none.

    folder: of the offline models. Raises as `open_recogniser` does.
    """

    def __init__(self, recogniser: str, speaker: str, folder: Path | None, device: str) -> None:
        self._asr = open_recogniser(recogniser, folder, device) if recogniser else None
        self._speaker = open_speaker_model(speaker, folder, device) if speaker else None
        self._voices: dict[str, np.ndarray] = {}  # of the recordings

    def measure(self, id: str, wave: np.ndarray, output: np.ndarray, text: str | None) -> dict[str, Any]:
        """The measures of an output (T,) of the recording (T,) of this id, both at 16 kHz; words of one with text."""
        line: dict[str, Any] = {}
        if self._asr is not None and text:
            line |= word_error(self._asr.transcribe(output), text)
        if self._speaker is not None:
            if id not in self._voices:
                self._voices[id] = self._speaker.embed(wave)
            line["speaker"] = cosine(self._voices[id], self._speaker.embed(output))
        return line


class OfTransformers:
    """A processor and a model of transformers, by their classes there, from a hub id or a folder."""

    classes: ClassVar[tuple[str, str]]

    def __init__(self, source: str, device: str = "cpu") -> None:
        self._processor, model = open_pretrained(source, *self.classes, purpose="the evaluator model")
        self._model = model.to(device).eval()

    def _features(self, wave: np.ndarray, **options: bool) -> Any:
        """The model's input of a 16 kHz wave (T,)."""
        values = self._processor(wave, sampling_rate=RATE, return_tensors="pt", **options)
        return values.to(self._model.device)


class WhisperOfTransformers(OfTransformers):
    """Whisper (Radford et al. 2022), greedy, in English; longer recordings in pieces of 30 s."""

    classes = ("AutoProcessor", "WhisperForConditionalGeneration")

    @torch.inference_mode()
    def transcribe(self, wave: np.ndarray) -> str:
        # English-only models refuse a language setting.
        many = getattr(self._model.generation_config, "is_multilingual", False)
        task = {"language": "en", "task": "transcribe"} if many else {}
        texts = []
        for start in range(0, len(wave), _WINDOW):
            piece = wave[start : start + _WINDOW]
            features = self._features(piece, return_attention_mask=True)
            ids = self._model.generate(
                features.input_features,
                attention_mask=features.attention_mask,
                do_sample=False,
                num_beams=1,
                **task,
            )
            texts.append(self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
        return " ".join(text for text in texts if text)


class Wav2Vec2(OfTransformers):
    """CTC model (wav2vec 2.0, HuBERT, WavLM), greedy."""

    classes = ("Wav2Vec2Processor", "AutoModelForCTC")

    @torch.inference_mode()
    def transcribe(self, wave: np.ndarray) -> str:
        features = self._features(wave)
        best = self._model(features.input_values).logits.argmax(-1)
        text = self._processor.batch_decode(best)[0]
        # skip_special_tokens would drop the blanks before repeats are merged, so "ll" would become "l".
        for mark in self._processor.tokenizer.all_special_tokens:
            text = text.replace(mark, "")
        return text.strip()


class WavLM(OfTransformers):
    """WavLM with x-vectors (Chen et al. 2021), the speaker verification model of SLMTokBench."""

    classes = ("AutoFeatureExtractor", "WavLMForXVector")

    @torch.inference_mode()
    def embed(self, wave: np.ndarray) -> np.ndarray:
        features = self._features(wave)
        return self._model(features.input_values).embeddings[0].float().cpu().numpy()


_PACKAGES = {  # of the extra `eval`, by metric
    **dict.fromkeys(("stoi", "estoi"), ("pystoi",)),
    **dict.fromkeys(("pesq-wb", "pesq-nb"), ("pesq",)),
    **dict.fromkeys(("dnsmos", "dnsmos-sig", "dnsmos-bak"), ("onnxruntime",)),
    "wer": ("onnxruntime", "tokenizers"),
}
_MODELS = {  # by metric; for word error an option
    **dict.fromkeys(("dnsmos", "dnsmos-sig", "dnsmos-bak"), "dnsmos"),
    "distill-mos": "distillmos",
    "speaker": "campplus-zh-en",
}


def unmeasurable(metrics: Iterable[str], recogniser: str, folder: str | Path | None = None) -> dict[str, str]:
    """Metrics that this machine cannot compute, with the reason: missing packages or models."""
    packages, models = {}, {}
    for metric in metrics:
        needed = _PACKAGES.get(metric, ())
        if absent := [package for package in needed if find_spec(package) is None]:
            packages[metric] = absent
            continue
        model = recogniser if metric == "wer" else _MODELS.get(metric)
        if model in FILES and lacking([model], folder):
            models[metric] = model
    notes = {}
    if packages:
        every = dict.fromkeys(package for absent in packages.values() for package in absent)
        notes = dict.fromkeys(packages, str(MissingExtra(", ".join(every), "eval", "measuring them")))
    return notes | dict.fromkeys(models, lacking(dict.fromkeys(models.values()), folder))
