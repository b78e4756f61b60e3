"""Recordings and token files through codecs: sound, pictures, numbers; independent of the browser.

Tokens are cached, so that the codebook slider decodes without encoding again.
"""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vokens import audio, registry
from vokens.bench.metrics import closeness
from vokens.errors import AudioError, TokensError
from vokens.models.codec import Codec
from vokens.picture import roundtrip_figure, save_figure, tokens_figure
from vokens.tokens import Tokens

KEPT = 32  # encodings
_DRAWING = threading.Lock()  # matplotlib's settings are global


@dataclass(frozen=True)
class Result:
    """The tokens of one recording and what they decode to; the original is None for a token file."""

    original: np.ndarray | None  # (T,) at the tokens' rate
    decoded: np.ndarray  # (T,)
    tokens: Tokens
    numbers: dict[str, str]
    title: str

    def files(self, stem: str) -> dict[str, Callable[[Path], None]]:
        """Writers by file name: sound, tokens, a wide and a narrow picture."""
        rate = self.tokens.sample_rate
        return {
            f"{stem}.wav": lambda path: audio.save(path, self.decoded, rate),
            f"{stem}.vok": self.tokens.save,
            "wide.png": self.draw,
            "narrow.png": partial(self.draw, narrow=True),
        }

    def draw(self, path: Path, narrow: bool = False) -> None:
        """Write the picture; narrow: one column, for phones."""
        with _DRAWING:
            if self.original is None:
                figure = tokens_figure(self.decoded, self.tokens, self.title, narrow)
            else:
                figure = roundtrip_figure(self.original, self.decoded, self.tokens, self.title, narrow)
            save_figure(figure, path)


class Listener:
    """Codecs by name, with a cache of recent encodings."""

    def __init__(self, codecs: dict[str, Codec], max_seconds: float) -> None:
        self.codecs, self.max_seconds = codecs, max_seconds
        self._kept: OrderedDict[tuple[str, str], tuple[Tokens, float]] = OrderedDict()

    def load(self, path: str | Path | None) -> tuple[np.ndarray, int]:
        """The recording (T,) and its rate. Raises AudioError where it is missing, unreadable or too long."""
        if not path:
            raise AudioError("there is no recording yet: record or upload one, or press a sample")
        wave, rate = audio.load(Path(path), duration=self.max_seconds + 1)
        if len(wave) > self.max_seconds * rate:
            raise AudioError(
                f"this recording is longer than {self.max_seconds:g} s, which is what this page takes: cut it, or use "
                "vokens encode on the command line, which takes any length"
            )
        return wave, rate

    def roundtrip(self, name: str, wave: np.ndarray, rate: int, codebooks: int, title: str = "") -> Result:
        """Encode and decode with the first `codebooks` codebooks (all, if there are fewer)."""
        codec = self.codecs[name]
        tokens, encoding = self._encode(name, wave, rate)
        kept = tokens.select(0, min(codebooks, codec.num_codebooks))
        start = time.perf_counter()
        (decoded,) = codec.decode(kept)
        taken = max(encoding + time.perf_counter() - start, 1e-9)
        original = audio.resample(wave, rate, codec.sample_rate)
        numbers = facts(kept) | closeness(original, decoded, codec.sample_rate)
        numbers["speed"] = f"{len(original) / codec.sample_rate / taken:.0f} x real time"
        return Result(original, decoded, kept, numbers, title)

    def open(self, path: str | Path | None) -> Result:
        """Decode a token file with the codec that made it. Raises TokensError."""
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
        (decoded,) = self.codecs[tokens.model].decode(tokens)
        if not len(decoded):
            raise TokensError("these tokens are of a recording of no samples: choose a file that holds some")
        return Result(None, decoded, tokens, facts(tokens), Path(path).name)

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


def facts(tokens: Tokens) -> dict[str, str]:
    """Figures of tokens: bit rate, entropy rate, frames, codebooks."""
    entropy = tokens.entropy()
    return {
        "bit rate": f"{tokens.bitrate / 1000:.2f} kbit/s",
        "entropy": f"{float(entropy.sum()) * tokens.frame_rate / 1000:.2f} kbit/s",
        "frames": f"{int(tokens.lengths[0])} at {tokens.frame_rate:g} Hz",
        "codebooks": f"{tokens.num_codebooks} of {', '.join(map(str, dict.fromkeys(tokens.codebook_sizes)))} entries",
        "bits per token": " ".join(f"{bits + 0.0:.1f}" for bits in entropy.tolist()),
    }
