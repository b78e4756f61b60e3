"""What the page shows of a recording and its tokens: sound, a picture, numbers. No browser is known here.

Tokens are kept, so that moving the slider over codebooks decodes and does not encode again.
"""

import hashlib
import io
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vokens import audio, registry
from vokens.errors import AudioError, MissingExtra, TokensError
from vokens.models.codec import Codec
from vokens.picture import roundtrip_figure, tokens_figure
from vokens.tokens import Tokens

KEPT = 32  # encodings
Sound = tuple[int, np.ndarray]  # rate in Hz, int16 (T,)


@dataclass(frozen=True)
class Heard:
    """What one codec made of a recording."""

    sound: Sound
    picture: bytes  # PNG
    numbers: list[tuple[str, str]]
    tokens: Tokens


class Listener:
    """Codecs by name, and the recordings that they have encoded lately."""

    def __init__(self, codecs: dict[str, Codec], max_seconds: float) -> None:
        self.codecs, self.max_seconds = codecs, max_seconds
        self._kept: OrderedDict[tuple[str, str], tuple[Tokens, float]] = OrderedDict()

    def load(self, path: str | Path | None) -> tuple[np.ndarray, int]:
        """The recording (T,) and its rate. Raises AudioError for none, one that is unreadable, or too long a one."""
        if not path:
            raise AudioError("record or upload something first")
        wave, rate = audio.load(Path(path), duration=self.max_seconds + 1)
        if len(wave) > self.max_seconds * rate:
            raise AudioError(
                f"this recording is longer than {self.max_seconds:g} s, which is what this page takes: cut it, or use "
                "vokens encode on the command line, which takes any length"
            )
        return wave, rate

    def hear(self, name: str, wave: np.ndarray, rate: int, codebooks: int, title: str = "") -> Heard:
        """The recording through a codec, with its first `codebooks` (all, if it has fewer)."""
        codec = self.codecs[name]
        tokens, encoding = self._encode(name, wave, rate)
        kept = tokens.select(0, min(codebooks, codec.num_codebooks))
        start = time.perf_counter()
        (decoded,) = codec.decode(kept)
        decoding = time.perf_counter() - start
        original = audio.resample(wave, rate, codec.sample_rate)
        picture = png(roundtrip_figure(original, decoded, kept, title))
        seconds = len(original) / codec.sample_rate
        numbers = [*facts(kept), *compared(original, decoded, codec.sample_rate)]
        numbers.append(("speed", f"{seconds / max(encoding + decoding, 1e-9):.0f} x real time"))
        return Heard(pcm(decoded, codec.sample_rate), picture, numbers, kept)

    def open(self, path: str | Path | None) -> Heard:
        """A token file through the codec that made it. Raises TokensError."""
        if not path:
            raise TokensError("choose a token file first: .vok, .json, .npz or .pt")
        tokens = Tokens.load(path)
        if tokens.model not in self.codecs:
            raise TokensError(
                f"these tokens are of {tokens.model!r}, and this page has {', '.join(self.codecs)}: start it with "
                f"vokens web --models {registry.source_of(tokens.model) or 'FOLDER, the one of that codec'}"
            )
        if len(tokens) != 1 or float(tokens.duration.sum()) > self.max_seconds:
            raise TokensError(
                f"{len(tokens)} recordings of {float(tokens.duration.sum()):.0f} s in all: this page takes one of at "
                f"most {self.max_seconds:g} s"
            )
        codec = self.codecs[tokens.model]
        (wave,) = codec.decode(tokens)
        picture = png(tokens_figure(wave, tokens))
        return Heard(pcm(wave, codec.sample_rate), picture, facts(tokens), tokens)

    def _encode(self, name: str, wave: np.ndarray, rate: int) -> tuple[Tokens, float]:
        key = name, hashlib.sha256(wave.tobytes() + str(rate).encode()).hexdigest()
        if key not in self._kept:
            start = time.perf_counter()
            tokens = self.codecs[name].encode(wave, rate)
            self._kept[key] = tokens, time.perf_counter() - start
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def facts(tokens: Tokens) -> list[tuple[str, str]]:
    """What a page says of tokens: bit rate as written and as their entropy has it, frames, codebooks."""
    entropy = tokens.entropy()
    return [
        ("bit rate", f"{tokens.bitrate / 1000:.2f} kbit/s"),
        ("by entropy", f"{float(entropy.sum()) * tokens.frame_rate / 1000:.2f} kbit/s"),
        ("frames", f"{int(tokens.lengths[0])} at {tokens.frame_rate:g} Hz"),
        (
            "codebooks",
            f"{tokens.num_codebooks} of {', '.join(map(str, dict.fromkeys(tokens.codebook_sizes)))}",
        ),
        ("bits per token", " ".join(f"{bits + 0.0:.1f}" for bits in entropy.tolist())),
    ]


def compared(original: np.ndarray, decoded: np.ndarray, rate: int) -> list[tuple[str, str]]:
    """Numbers of the resynthesis beside the original; those that need packages which are missing are left out."""
    from vokens.bench import metrics

    a, b = (audio.resample(wave, rate, metrics.SAMPLE_RATE) for wave in (original, decoded))
    found = [("mel distance", f"{metrics.log_mel_distance(a, b):.2f}")]
    with suppress(MissingExtra, AudioError):
        found.append(("STOI", f"{metrics.stoi(a, b):.3f}"))
    return [pair for pair in found if "nan" not in pair[1]]


def pcm(wave: np.ndarray, rate: int) -> Sound:
    """As a browser's player takes it."""
    return rate, (wave.clip(-1, 1) * 32767).round().astype(np.int16)


def png(figure: Any) -> bytes:
    """The bytes of a figure's picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()
