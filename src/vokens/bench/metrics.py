"""Metrics of the reconstruction benchmark, one function each, defined in docs/jobs/metrics.md.

Waves are mono float arrays (T,) at 16 kHz, reference first, of equal length. Undefined values
(silence, too short) are NaN: means leave them out and report their count.
"""

import math
import warnings
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import torch

from vokens.audio import resample
from vokens.audio.f0 import track_pitch
from vokens.audio.mel import LogMel, MelConfig
from vokens.errors import AudioError, MissingExtra, needs_extra
from vokens.text.transcripts import normalised_words, word_edits

SAMPLE_RATE = 16000
MEL = MelConfig(SAMPLE_RATE, n_fft=1024, win_length=1024, hop_length=256, n_mels=80, center=True)
STFT_SIZES = (512, 1024, 2048)
CEPSTRA = 24
SILENT = 2.0**-15  # full scale is 1: one step of 16 bits
_STOI_SHORTEST = 0.4  # seconds: STOI compares segments of 384 ms


def stoi(reference: np.ndarray, degraded: np.ndarray, extended: bool = False) -> float:
    """Short-time objective intelligibility, at most 1 (Taal et al. 2011); extended: Jensen and Taal 2016."""
    with needs_extra("pystoi", "eval", "STOI"):
        import pystoi
    reference, degraded = _pair(reference, degraded)
    if len(reference) < _STOI_SHORTEST * SAMPLE_RATE:
        return math.nan
    # pystoi adds noise of 2e-16 from numpy's global generator, which decides where the degraded wave is all
    # zeros: seeded, the value is the same in every run and every process.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            return float(pystoi.stoi(reference, degraded, SAMPLE_RATE, extended=extended))
    except RuntimeWarning:  # fewer than 384 ms remain without the silent frames
        return math.nan
    finally:
        np.random.set_state(state)  # noqa: NPY002


def pesq_wb(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Wide-band PESQ, MOS-LQO of ITU-T P.862.2, from 1.04 to 4.64; aligns the waves in time itself."""
    return _pesq(reference, degraded, "wb")


def pesq_nb(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Narrow-band PESQ, MOS-LQO of ITU-T P.862.1, from 1.02 to 4.55; aligns the waves in time itself."""
    return _pesq(reference, degraded, "nb")


def _pesq(reference: np.ndarray, degraded: np.ndarray, mode: str) -> float:
    with needs_extra("pesq", "eval", "PESQ"):
        import pesq
    reference, degraded = _pair(reference, degraded)
    if not degraded.any():  # the package divides by the level of the degraded wave
        return math.nan
    value = pesq.pesq(SAMPLE_RATE, reference, degraded, mode, on_error=pesq.PesqError.RETURN_VALUES)
    # -1: no utterance distances, or under a quarter of a second
    return math.nan if value < 0 else float(value)


def si_sdr(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, of mean-free waves (Le Roux et al. 2019)."""
    reference, degraded = _pair(reference, degraded)
    reference, degraded = reference - reference.mean(), degraded - degraded.mean()
    energy = reference @ reference
    if energy == 0 or not degraded.any():
        return math.nan
    target = (degraded @ reference / energy) * reference
    noise = degraded - target
    if not noise.any():
        return math.inf
    with np.errstate(divide="ignore"):  # -inf: no component along the reference
        return float(10 * np.log10((target @ target) / (noise @ noise)))


def log_mel_distance(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Mean absolute difference of natural-log mel magnitudes (recipe: `MEL`), in nepers; 1 is 8.69 dB."""
    mels = _log_mels(reference, degraded)
    return math.nan if mels is None else float((mels[0] - mels[1]).abs().mean())


def closeness(reference: np.ndarray, degraded: np.ndarray, sample_rate: int) -> dict[str, str]:
    """Mel distance and STOI of two waves (T,) at any rate, as text for tables.

    A silent reference has neither, STOI needs pystoi and 0.4 s: undefined values are left out.
    """
    if np.abs(reference).max(initial=0) < SILENT:
        return {"closeness": "not defined: the recording is silent"}
    a, b = (resample(wave, sample_rate, SAMPLE_RATE) for wave in (reference, degraded))
    values = {"mel distance": f"{log_mel_distance(a, b):.2f}"}
    with suppress(MissingExtra):
        values["STOI"] = f"{stoi(a, b):.3f}"
    return {name: value for name, value in values.items() if value != "nan"}


def mel_cepstral_distortion(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Mel-cepstral distortion in dB (Kubichek 1993), mean over frames, frame by frame without time warping.

    Per frame 10 / ln 10 * sqrt(2 * sum of (c_m - c'_m)^2), m = 1..24, where c_m = 2/80 * sum over bands j of
    ln mel_j * cos(pi m (j + 1/2) / 80), mels as in `log_mel_distance`: the cosine series of the log spectrum,
    whose distance is the root mean square, in dB, of the difference of the two smoothed spectra without their level.
    """
    mels = _log_mels(reference, degraded)
    if mels is None:
        return math.nan
    distance = _cosines() @ (mels[0] - mels[1]).double()  # (24, F)
    return float(10 / math.log(10) * (2 * distance.square().sum(0)).sqrt().mean())


def stft_distance(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Multi-resolution STFT distance (Yamamoto et al. 2020, 1910.11480 eq. 6 to 8), a mean over resolutions.

    Per resolution: the Frobenius norm of the difference of magnitudes over that of the reference's, plus the mean
    absolute difference of ln magnitudes. Hann windows of 512, 1024 and 2048 samples, hop a quarter, centred with
    reflection, magnitudes at least 1e-5.
    """
    waves = torch.from_numpy(np.stack(_pair(reference, degraded)).astype(np.float32))
    if waves.shape[1] <= max(STFT_SIZES) // 2 or not waves[0].any():
        return math.nan
    distances = []
    for size in STFT_SIZES:
        window = torch.hann_window(size)
        x, y = torch.stft(waves, size, size // 4, window=window, return_complex=True).abs()
        x, y = x.clamp(min=MEL.floor), y.clamp(min=MEL.floor)
        distances.append((x - y).norm() / x.norm() + (x.log() - y.log()).abs().mean())
    return float(torch.stack(distances).mean())


def pitch_error(reference: np.ndarray, degraded: np.ndarray) -> tuple[float, float]:
    """Root mean square difference of pitch in cents where both are voiced, and the share (%) of frames that are
    voiced in only one of them. Tracks: `vokens.audio.f0`, 60 to 500 Hz, 100 a second."""
    x, y = (track_pitch(wave, SAMPLE_RATE, SAMPLE_RATE // 100) for wave in _pair(reference, degraded))
    both = (x > 0) & (y > 0)
    cents = 1200 * np.log2(y[both] / x[both])
    rms = float(np.sqrt(np.square(cents, dtype=np.float64).mean())) if both.any() else math.nan
    return rms, float(100 * ((x > 0) != (y > 0)).mean()) if len(x) else math.nan


def word_error(transcript: str, text: str) -> dict[str, Any]:
    """A transcript with its edits against the words of a text, and their number."""
    words = normalised_words(text)
    edits = word_edits(words, normalised_words(transcript))
    return {"transcript": transcript, "edits": edits, "words": len(words)}


def fit_length(wave: np.ndarray, length: int) -> np.ndarray:
    """The wave (T,) cut, or padded with silence, to `length` samples."""
    return np.pad(wave[:length], (0, max(0, length - len(wave))))


def _log_mels(reference: np.ndarray, degraded: np.ndarray) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Log-mels (80, F) of both, or None for waves that are too short."""
    waves = torch.from_numpy(np.stack(_pair(reference, degraded)).astype(np.float32))
    if waves.shape[1] <= MEL.padding:
        return None
    with torch.inference_mode():
        ours, theirs = _log_mel()(waves)
    return ours, theirs


@cache
def _log_mel() -> LogMel:
    return LogMel(MEL)


@cache
def _cosines() -> torch.Tensor:
    """(24, 80)"""
    order, band = torch.arange(1, CEPSTRA + 1).double()[:, None], torch.arange(MEL.n_mels).double() + 0.5
    return 2 / MEL.n_mels * torch.cos(math.pi * order * band / MEL.n_mels)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the angle between two vectors (D,)."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _pair(reference: np.ndarray, degraded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if reference.ndim != 1 or reference.shape != degraded.shape:
        raise AudioError(f"give mono waves of equal length, got {reference.shape} and {degraded.shape}")
    return np.asarray(reference, np.float64), np.asarray(degraded, np.float64)
