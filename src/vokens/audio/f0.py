"""Pitch of speech by autocorrelation (Boersma 1993, Proc. Institute of Phonetic Sciences 17, 97-110), as in Praat.

The autocorrelation of a windowed piece over that of the window is 1 at the period of a periodic signal, whatever the
window. Viterbi decoding over the candidates of all frames avoids octave errors and isolated frames.
"""

import math

import numpy as np

from vokens.errors import AudioError

# Boersma's constants: strength of "no pitch", level below which a frame is silent, costs of an octave down, of an
# octave's jump and of a change of voicing between frames 10 ms apart.
_UNVOICED, _SILENCE, _OCTAVE, _JUMP, _CHANGE = 0.45, 0.03, 0.01, 0.35, 0.14
_CANDIDATES = 6  # voiced, per frame
_BLOCK = 4096  # frames transformed at once, 130 MB


def track_pitch(
    wave: np.ndarray, sample_rate: int, hop: int, f_min: float = 60.0, f_max: float = 500.0
) -> np.ndarray:
    """Pitch (N // hop,) float32 in Hz of a wave (N,); 0 where there is none.

    Frame i is centred at sample (i + 1/2) hop, as the frames of a log-mel padded by (n_fft - hop) / 2 are. A frame
    sees three periods of f_min, 50 ms.

    Raises AudioError for a wave of another shape or with NaN; a pitch range below an octave or beyond a quarter of
    the sample rate.
    """
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise AudioError(f"a wave {wave.shape} was given: one channel (N,) of finite samples is accepted")
    if not 0 < 2 * f_min <= f_max <= sample_rate / 4:
        raise AudioError(f"pitch from {f_min} to {f_max} Hz was given: give an octave or more, up to a quarter of "
                         f"the sample rate {sample_rate}")  # fmt: skip
    frames = len(wave) // hop
    if not frames:
        return np.zeros(0, np.float32)
    size = 2 * math.ceil(1.5 * sample_rate / f_min)
    first = hop // 2 - size // 2
    room = max(0, (frames - 1) * hop + first + size - len(wave))
    padded = np.pad(wave.astype(np.float64), (max(0, -first), room))[max(0, first) :]
    pieces = np.lib.stride_tricks.sliding_window_view(padded, size)[: frames * hop : hop]
    peak = np.abs(wave - wave.mean()).max()
    blocks = [
        _candidates(pieces[start : start + _BLOCK], sample_rate, f_min, f_max, peak)
        for start in range(0, frames, _BLOCK)
    ]
    pitch, strength = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return _path(pitch, strength, 0.01 * sample_rate / hop)


def _candidates(
    pieces: np.ndarray, sample_rate: int, f_min: float, f_max: float, peak: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pitches (F, 1 + 6) in Hz and their strengths; the first is 0, no pitch."""
    size = pieces.shape[1]
    pieces = pieces - pieces.mean(1, keepdims=True)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)
    longest = math.ceil(sample_rate / f_min) + 1
    shortest = math.floor(sample_rate / f_max)
    shape = _autocorrelation(window[None], longest)
    whole = _autocorrelation(pieces * window, longest)
    r = whole / np.maximum(whole[:, :1], 1e-20) / (shape / shape[:, :1])
    before, here, after = r[:, shortest - 1 : -2], r[:, shortest:-1], r[:, shortest + 1 :]
    # The peak of a parabola through three points.
    bend = np.minimum(before - 2 * here + after, -1e-12)
    shift = ((before - after) / (2 * bend)).clip(-1, 1)
    height = here - (before - after) ** 2 / (8 * bend)
    lag = np.arange(shortest, shortest + here.shape[1]) + shift
    is_peak = (here > before) & (here >= after)
    # Multiples of the period are equally strong: prefer the shortest.
    strength = np.where(is_peak, np.minimum(height, 1.0) - _OCTAVE * np.log2(f_min * lag / sample_rate), -9.0)
    best = np.argpartition(-strength, _CANDIDATES, axis=1)[:, :_CANDIDATES]
    level = np.abs(pieces).max(1) / max(peak, 1e-9)
    silent = np.maximum(0.0, 2.0 - level / (_SILENCE / (1 + _UNVOICED)))
    none = _UNVOICED + silent
    pitches = np.take_along_axis(sample_rate / lag, best, 1)
    return (
        np.column_stack([np.zeros(len(pieces)), np.clip(pitches, f_min, f_max)]),
        np.column_stack([none, np.take_along_axis(strength, best, 1)]),
    )


def _autocorrelation(rows: np.ndarray, lags: int) -> np.ndarray:
    """(F, N) -> (F, lags + 1)."""
    size = 1 << (rows.shape[1] + lags).bit_length()
    spectrum = np.fft.rfft(rows, size)
    return np.fft.irfft(spectrum.real**2 + spectrum.imag**2, size)[:, : lags + 1]


def _path(pitch: np.ndarray, strength: np.ndarray, rate: float) -> np.ndarray:
    """Pitches (F,) of the best path (Viterbi); transition costs scale with the frame rate over 100 Hz."""
    octave = np.log2(np.maximum(pitch, 1.0))
    voiced = pitch > 0
    total, back = strength[0], np.zeros(pitch.shape, np.int64)
    for t in range(1, len(pitch)):
        both = voiced[t - 1][:, None] & voiced[t]
        jump = np.abs(octave[t - 1][:, None] - octave[t])
        changed = voiced[t - 1][:, None] != voiced[t]
        arrive = total[:, None] - rate * (_JUMP * jump * both + _CHANGE * changed)
        back[t] = arrive.argmax(0)
        total = arrive.max(0) + strength[t]
    place, out = int(total.argmax()), np.zeros(len(pitch), np.float32)
    for t in range(len(pitch) - 1, -1, -1):
        out[t] = pitch[t, place]
        place = back[t, place]
    return out
