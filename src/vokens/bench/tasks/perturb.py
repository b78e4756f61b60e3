"""Perturbations of a recording before it is encoded again: noise, level, time, other codecs, rooms, speed.

A change is a function of the wave and a generator, so it is identical for every codec and run. Waves are mono float32
(T,) at 16 kHz; all but `speed` keep length and alignment.
"""

import io
import zlib
from collections.abc import Callable

import numpy as np
import soundfile

from vokens.audio import resample
from vokens.bench.metrics import fit_length

RATE = 16000
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def generator(seed: int, id: str, name: str) -> np.random.Generator:
    """The generator of one change of one recording."""
    return np.random.default_rng([seed, zlib.crc32(id.encode()), zlib.crc32(name.encode())])


def noise(decibels: float, slope: float = 0.0) -> Change:
    """Gaussian noise at a signal-to-noise ratio in dB; slope: of its power spectrum in 1/f (1 is pink)."""

    def change(wave: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        spectrum = np.fft.rfft(draw.standard_normal(len(wave)))
        frequency = np.fft.rfftfreq(len(wave), 1 / RATE)
        spectrum *= np.maximum(frequency, 20.0) ** (-slope / 2)  # flat below 20 Hz
        added = np.fft.irfft(spectrum, len(wave))
        level = np.sqrt(np.square(wave, dtype=np.float64).sum() / np.square(added).sum())
        return (wave + level * 10 ** (-decibels / 20) * added).astype(np.float32)

    return change


def gain(decibels: float) -> Change:
    """Gain in dB, without clipping."""
    return lambda wave, draw: (wave * 10 ** (decibels / 20)).astype(np.float32)


def coded(subtype: str) -> Change:
    """Round trip through an Ogg codec at libsndfile's default bit rate: "OPUS" or "VORBIS"."""

    def change(wave: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        file = io.BytesIO()
        soundfile.write(file, np.clip(wave, -1, 1), RATE, format="OGG", subtype=subtype)
        file.seek(0)
        changed, _ = soundfile.read(file, dtype="float32")
        return fit_length(changed, len(wave))

    return change


def narrow(wave: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Band limit of 4 kHz: resampling to 8 kHz and back."""
    changed = resample(resample(wave, RATE, RATE // 2), RATE // 2, RATE)
    return fit_length(changed, len(wave))


def coarse(wave: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Samples of 8 bits."""
    return (np.round(np.clip(wave, -1, 1) * 127) / 127).astype(np.float32)


def room(wave: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Reverberation with T60 = 0.3 s, as loud as the direct sound, which keeps its time."""
    time = np.arange(int(0.3 * RATE)) / RATE
    tail = draw.standard_normal(len(time)) * 10 ** (-3 * time / 0.3)
    tail[: RATE // 500] = 0  # 2 ms before the first reflection
    tail /= np.sqrt(np.square(tail).sum())
    size = 1 << (len(wave) + len(tail)).bit_length()
    echo = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(tail, size), size)[: len(wave)]
    return (wave + echo).astype(np.float32)


def speed(factor: float) -> Change:
    """Speed change including pitch: T / factor samples."""
    source = round(RATE * factor)
    return lambda wave, draw: resample(wave, source, RATE)


ALIGNED: dict[str, Change] = {
    **{f"white noise/{level} dB": noise(level) for level in (30, 20, 10)},
    **{f"pink noise/{level} dB": noise(level, slope=1.0) for level in (30, 20, 10)},
    **{f"gain/{level:+d} dB": gain(level) for level in (-12, -6, 6)},
    "codec/opus": coded("OPUS"),
    "codec/vorbis": coded("VORBIS"),
    "band/4 kHz": narrow,
    "depth/8 bit": coarse,
    "room/0.3 s": room,
}
WARPED: dict[str, Change] = {f"speed/{factor}": speed(factor) for factor in (0.95, 1.05)}
SHIFTS = {"shift/0.25 frame": 0.25, "shift/0.5 frame": 0.5, "shift/1 frame": 1.0}
