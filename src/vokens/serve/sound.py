"""Waves as the bytes of a sound file, whole or streamed."""

import io
import struct

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
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)  # others are resampled
_NOTHING = np.zeros(1, np.float32)  # empty files of these codings do not open in most programs
_BLOCK = 1 << 14  # samples per call


class Writer:
    """Encoder of pieces of a wave (n,) float32 in [-1, 1] to consecutive bytes of a file.

    num_samples: of a whole file, whose bytes come at the end, and whose header says its length; without it, as players
    expect of a stream, that of a wav says "unknown size".
    """

    def __init__(self, format: str, sample_rate: int, num_samples: int | None = None) -> None:
        self._head = wav_header(sample_rate, num_samples) if format == "wav" else b""
        self._out, self._taken, self._begun = io.BytesIO(), 0, False
        self._streams = num_samples is None
        self._file: soundfile.SoundFile | None = None
        self._resampler: soxr.ResampleStream | None = None
        if format not in ("wav", "pcm"):
            container, coding = ENCODINGS[f".{format}"]
            rate = 48000 if format == "opus" and sample_rate not in _OPUS_RATES else sample_rate
            if rate != sample_rate:
                self._resampler = stream_resampler(sample_rate, rate)
            self._file = soundfile.SoundFile(self._out, "w", rate, 1, coding, None, container)

    def write(self, wave: np.ndarray) -> bytes:
        """The bytes that this piece adds, possibly none."""
        if self._file is None:
            head, self._head = self._head, b""
            return head + (wave.clip(-1, 1) * 32767).round().astype("<i2").tobytes()
        self._begun = self._begun or len(wave) > 0
        self._put(wave, last=False)
        return self._take() if self._streams else b""

    def end(self) -> bytes:
        """The bytes that close the file."""
        if self._file is None:
            return self._head
        if not self._begun:
            self._put(_NOTHING, last=False)
        self._put(np.zeros(0, np.float32), last=True)
        self._file.close()
        return self._take()

    def _take(self) -> bytes:
        """The bytes since the last call; a header that is rewritten at the end is not sent twice."""
        data = bytes(self._out.getbuffer()[self._taken :])
        self._taken += len(data)
        return data

    def _put(self, wave: np.ndarray, last: bool) -> None:
        assert self._file is not None  # checked by the callers
        if self._resampler is not None:
            wave = self._resampler.resample_chunk(wave, last)
        for start in range(0, len(wave), _BLOCK):
            self._file.write(wave[start : start + _BLOCK].clip(-1, 1))


def encode(wave: np.ndarray, sample_rate: int, format: str) -> bytes:
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
