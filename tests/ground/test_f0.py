"""Pitch: tones and voices within 1 %, silence and noise without, glides in time, octaves not confused."""

import numpy as np
import pytest
from conftest import refused

from vokens.audio.f0 import track_pitch
from vokens.errors import AudioError

RATE, HOP = 24000, 480


def voice(pitch: np.ndarray, rate: int = RATE, overtones: int = 10, tilt: float = 1.0) -> np.ndarray:
    """Harmonics of a pitch (N,) in Hz, random phases."""
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    start = np.random.default_rng(0).uniform(0, 2 * np.pi, overtones + 1)
    return 0.1 * sum(np.sin(k * phase + start[k]) / k**tilt for k in range(1, overtones + 1))


@pytest.mark.parametrize("pitch", [70.0, 103.7, 180.0, 251.3, 440.0])
@pytest.mark.parametrize("rate", [16000, 24000])
@pytest.mark.parametrize("overtones", [1, 10])
def test_steady_voices(pitch: float, rate: int, overtones: int) -> None:
    wave = voice(np.full(rate // 2, pitch), rate, overtones)
    actual = track_pitch(wave.astype(np.float32), rate, rate // 50)
    assert actual.shape == (25,)
    np.testing.assert_allclose(actual[2:-2], pitch, rtol=0.01)


def test_in_noise_and_without_its_fundamental() -> None:
    pitch = np.full(RATE, 140.0)
    wave = voice(pitch) - voice(pitch, overtones=1)
    noise = np.random.default_rng(1).standard_normal(RATE)
    noisy = wave + noise * np.sqrt((wave**2).mean() / 10)  # 10 dB
    actual = track_pitch(noisy, RATE, HOP)
    assert (np.abs(actual[2:-2] / 140 - 1) < 0.01).mean() > 0.95


def test_glides_are_in_time() -> None:
    time = np.arange(2 * RATE) / RATE
    pitch = 160 + 60 * np.sin(2 * np.pi * time)  # up to 380 Hz a second
    actual = track_pitch(voice(pitch), RATE, HOP)
    centres = pitch[HOP // 2 :: HOP]
    np.testing.assert_allclose(actual[2:-2], centres[2:-2], rtol=0.01)


def test_silence_noise_and_pauses_have_none() -> None:
    noise = 0.1 * np.random.default_rng(2).standard_normal(RATE)
    assert not track_pitch(np.zeros(RATE), RATE, HOP).any()
    assert (track_pitch(noise, RATE, HOP) > 0).mean() < 0.05
    paused = np.concatenate([voice(np.full(RATE // 2, 120.0)), 1e-3 * noise[: RATE // 2]])
    voiced = track_pitch(paused, RATE, HOP) > 0
    assert voiced[:23].all()
    assert not voiced[28:].any()


def test_sizes_and_what_is_refused() -> None:
    assert track_pitch(np.zeros(HOP - 1), RATE, HOP).shape == (0,)
    assert track_pitch(np.zeros(2 * HOP - 1), RATE, HOP).shape == (1,)
    refused(AudioError, "finite", lambda: track_pitch(np.array([0.0, np.nan]), RATE, HOP))
    refused(AudioError, "octave", lambda: track_pitch(np.zeros(RATE), RATE, HOP, 100.0, 120.0))
