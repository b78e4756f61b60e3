"""Waves as the bytes of a sound file, whole or streamed."""

import io
import struct
from typing import Any

import numpy as np
import soundfile
import soxr

from vokens.audio.resample import stream_resampler
from vokens.audio_suffixes import ENCODINGS

MEDIA = {
    "wav": "audio/wav",
    "pcm": "audio/pcm",
    "opus": "audio/ogg",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
}
_CODINGS = {format: ENCODINGS[f".{format}"] for format in ("opus", "flac", "mp3")}
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_NOTHING = np.zeros(1, np.float32)  # empty files of these codings do not open in most programs
_BLOCK = 1 << 14  # samples per call


def rate_of(format: str, sample_rate: int) -> int:
    """The sample rate in a format: unchanged, except for Opus, which has five."""
    return 48000 if format == "opus" and sample_rate not in _OPUS_RATES else sample_rate


class Writer:
    """Encoder of pieces of a wave (n,) float32 in [-1, 1] to consecutive bytes of a file.

    num_samples: of a whole file, whose bytes come at the end, and whose header says its length; without it, as players
    expect of a stream, that of a wav says "unknown size".
    """

    def __init__(self, format: str, sample_rate: int, num_samples: int | None = None) -> None:
        self.format, self.rate, self.target = format, sample_rate, rate_of(format, sample_rate)
        self._head = wav_header(sample_rate, num_samples) if format == "wav" else b""
        self._out, self._begun = _Tape() if num_samples is None else io.BytesIO(), False
        self._file: soundfile.SoundFile | None = None
        self._resampler: soxr.ResampleStream | None = None
        if format in _CODINGS:
            container, coding = _CODINGS[format]
            if self.target != sample_rate:
                self._resampler = stream_resampler(sample_rate, self.target)
            self._file = soundfile.SoundFile(self._out, "w", self.target, 1, coding, None, container)

    def write(self, wave: np.ndarray) -> bytes:
        """The bytes that this piece adds, possibly none."""
        if self._file is None:
            head, self._head = self._head, b""
            return head + (wave.clip(-1, 1) * 32767).round().astype("<i2").tobytes()
        self._begun = self._begun or len(wave) > 0
        self._put(wave, last=False)
        return self._out.take() if isinstance(self._out, _Tape) else b""

    def end(self) -> bytes:
        """The bytes that close the file."""
        if self._file is None:
            return self._head
        if not self._begun:
            self._put(_NOTHING, last=False)
        self._put(np.zeros(0, np.float32), last=True)
        self._file.close()
        return self._out.take() if isinstance(self._out, _Tape) else self._out.getvalue()

    def _put(self, wave: np.ndarray, last: bool) -> None:
        assert self._file is not None  # checked by the callers
        if self._resampler is not None:
            wave = self._resampler.resample_chunk(wave, last)
        for start in range(0, len(wave), _BLOCK):
            self._file.write(wave[start : start + _BLOCK].clip(-1, 1))


def encode(wave: np.ndarray, sample_rate: int, format: str) -> bytes:
    """A whole wave as the bytes of a file."""
    writer = Writer(format, sample_rate, len(wave))
    return writer.write(wave) + writer.end()


def wav_header(sample_rate: int, num_samples: int | None) -> bytes:
    """44 bytes before 16 bit mono samples; with None the sizes say "until the end" (2^32 - 1)."""
    data = 0xFFFFFFFF if num_samples is None else 2 * num_samples
    riff = 0xFFFFFFFF if num_samples is None else data + 36
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16, b"data", data),
    )


class _Tape(io.BytesIO):
    """An append-only file for sequential encoders; taken bytes are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._pending, self._size, self._place = bytearray(), 0, 0

    def write(self, content: Any) -> int:
        data = bytes(content)
        if self._place == self._size:  # a header rewritten at the end is not sent twice
            self._pending += data
            self._size += len(data)
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def take(self) -> bytes:
        data = bytes(self._pending)
        self._pending.clear()
        return data
