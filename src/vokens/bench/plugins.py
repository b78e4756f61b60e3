"""Models that judge a resynthesis, by name: who writes down what is said, and who says whose voice it is.

A name without a colon is a model of docs/metrics.md that runs offline; `kind:ID` is opened by transformers, ID being a
hub id or a folder. One more model is one function and one line of a table.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vokens.bench.judges import find_judge
from vokens.errors import ConfigError, DownloadError, MissingExtra

RATE = 16000
_WINDOW = 30 * RATE  # what Whisper hears at once


class Recogniser(Protocol):
    """Speech recognition."""

    def transcribe(self, wave: np.ndarray) -> str:
        """What is said in a 16 kHz wave (T,) in [-1, 1]."""
        ...


class SpeakerModel(Protocol):
    """Voices as vectors."""

    def embed(self, wave: np.ndarray) -> np.ndarray:
        """The voice (D,) of a 16 kHz wave (T,) in [-1, 1]; the cosine compares two."""
        ...


def open_recogniser(name: str, folder: Path | None = None, device: str = "cpu") -> Recogniser:
    """moonshine-tiny-en, moonshine-base-en, whisper-base, whisper:ID or wav2vec2:ID (a network with CTC, as HuBERT's).

    folder: of the offline models. Raises ConfigError for other names, NotInstalled and DownloadError for files that
    cannot be had, MissingExtra without the packages.
    """
    return _open("recogniser", RECOGNISERS, name, folder, device)


def open_speaker_model(name: str, folder: Path | None = None, device: str = "cpu") -> SpeakerModel:
    """campplus-zh-en or wavlm:ID (with x-vectors, such as microsoft/wavlm-base-plus-sv); errors as above."""
    return _open("speaker", SPEAKER_MODELS, name, folder, device)


def _open(
    role: str, table: dict[str, Callable[..., Any]], name: str, folder: Path | None, device: str
) -> Any:
    kind, colon, source = name.partition(":")
    known = f"{kind}:ID" if colon else kind
    if known not in table or (colon and not source):
        raise ConfigError(f"{role} {name!r}: {', '.join(table)} are accepted, ID being a hub id or a folder")
    return table[known](source or find_judge(kind, folder), device)


# Offline -------------------------------------------------------------------------------------------------------


def _moonshine(folder: Path, device: str) -> Recogniser:
    from vokens.bench.recognise import Moonshine

    return Moonshine(folder)


def _whisper(folder: Path, device: str) -> Recogniser:
    from vokens.bench.whisper import Whisper

    return Whisper(folder)


def _campplus(folder: Path, device: str) -> SpeakerModel:
    from vokens.bench.speaker import SpeakerJudge

    return SpeakerJudge(folder)


# Through transformers ------------------------------------------------------------------------------------------


class WhisperOfTransformers:
    """Whisper (Radford et al. 2022), greedy, in English; longer recordings in pieces of 30 s."""

    def __init__(self, source: str, device: str = "cpu") -> None:
        self._processor, self._model = _pretrained(
            source, "AutoProcessor", "WhisperForConditionalGeneration", device
        )
        # English-only models refuse to be told so.
        many = getattr(self._model.generation_config, "is_multilingual", False)
        self._task = {"language": "en", "task": "transcribe"} if many else {}

    @torch.inference_mode()
    def transcribe(self, wave: np.ndarray) -> str:
        texts = []
        for start in range(0, len(wave), _WINDOW):
            piece = wave[start : start + _WINDOW]
            heard = self._processor(
                piece, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
            ).to(self._model.device)
            ids = self._model.generate(
                heard.input_features,
                attention_mask=heard.attention_mask,
                do_sample=False,
                num_beams=1,
                **self._task,
            )
            texts.append(self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
        return " ".join(text for text in texts if text)


class Wav2Vec2:
    """A network with CTC (wav2vec 2.0, HuBERT, WavLM), greedy."""

    def __init__(self, source: str, device: str = "cpu") -> None:
        self._processor, self._model = _pretrained(source, "Wav2Vec2Processor", "AutoModelForCTC", device)

    @torch.inference_mode()
    def transcribe(self, wave: np.ndarray) -> str:
        heard = self._processor(wave, sampling_rate=RATE, return_tensors="pt").to(self._model.device)
        best = self._model(heard.input_values).logits.argmax(-1)
        text = self._processor.batch_decode(best)[0]
        # skip_special_tokens would drop the blanks before repeats are joined, and "ll" would be read as "l".
        for mark in self._processor.tokenizer.all_special_tokens:
            text = text.replace(mark, "")
        return text.strip()


class WavLM:
    """WavLM with x-vectors (Chen et al. 2021), the judge of voices of SLMTokBench."""

    def __init__(self, source: str, device: str = "cpu") -> None:
        self._extractor, self._model = _pretrained(source, "AutoFeatureExtractor", "WavLMForXVector", device)

    @torch.inference_mode()
    def embed(self, wave: np.ndarray) -> np.ndarray:
        heard = self._extractor(wave, sampling_rate=RATE, return_tensors="pt").to(self._model.device)
        return self._model(heard.input_values).embeddings[0].float().cpu().numpy()


def _pretrained(source: str, processor: str, model: str, device: str) -> tuple[Any, Any]:
    """The processor and the network of a hub id or a folder, by their classes in transformers."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "hf", f"the model {source}") from error
    try:
        network = getattr(transformers, model).from_pretrained(source).to(device).eval()
        return getattr(transformers, processor).from_pretrained(source), network
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{source} cannot be opened: give the id of a model that the hub has and can be reached, or a folder with "
            f"its files ({' '.join(str(error).split())[:200]})"
        ) from error


RECOGNISERS: dict[str, Callable[..., Recogniser]] = {
    "moonshine-tiny-en": _moonshine,
    "moonshine-base-en": _moonshine,
    "whisper-base": _whisper,
    "whisper:ID": WhisperOfTransformers,
    "wav2vec2:ID": Wav2Vec2,
}
SPEAKER_MODELS: dict[str, Callable[..., SpeakerModel]] = {"campplus-zh-en": _campplus, "wavlm:ID": WavLM}
