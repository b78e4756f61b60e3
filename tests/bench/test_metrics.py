"""Each metric against a closed form or a second implementation, and where it is not defined."""

import math

import numpy as np
import pytest
import torch
from conftest import refused

from vokens.bench import metrics
from vokens.errors import AudioError
from vokens.text.transcripts import normalised_words, word_edits
from vokens.tokens import codebook_use

RATE = 16000


def speechlike(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Harmonics of a gliding 120 Hz voice under a syllable envelope, with a little noise."""
    t = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * (120 * t + 10 * np.sin(2 * np.pi * t))
    voice = sum(np.sin(h * phase) / h for h in range(1, 30))
    noise = np.random.default_rng(seed).normal(0, 0.05, len(t))
    return (0.1 * (voice + noise) * (0.05 + np.sin(2 * np.pi * 2 * t) ** 2)).astype(np.float32)


def noisy(wave: np.ndarray, level: float, seed: int = 1) -> np.ndarray:
    return (wave + np.random.default_rng(seed).normal(0, level, len(wave))).astype(np.float32)


# STOI: a second implementation, straight from section II of Taal et al. 2011 and of Jensen and Taal 2016


def octave_bands(wave: np.ndarray) -> np.ndarray:
    """(15, M) magnitudes of third octaves from 150 Hz, frames of 256 samples at 10 kHz, half overlapped."""
    window = np.hanning(258)[1:-1]
    starts = range(0, len(wave) - 256, 128)
    power = np.abs(np.fft.rfft([window * wave[i : i + 256] for i in starts], 512)).T ** 2
    grid = np.arange(257) * 10000 / 512
    bands = []
    for band in range(15):
        centre = 150 * 2 ** (band / 3)
        low, high = (np.abs(grid - centre * 2 ** (side / 6)).argmin() for side in (-1, 1))
        bands.append(np.sqrt(power[low:high].sum(0)))
    return np.array(bands)


def drop_silence(clean: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both waves without the frames in which the clean one is 40 dB below its loudest."""
    window = np.hanning(258)[1:-1]
    starts = np.arange(0, len(clean) - 256, 128)
    energy = np.array([20 * np.log10(np.linalg.norm(window * clean[i : i + 256]) + 1e-20) for i in starts])
    kept = starts[energy > energy.max() - 40]
    joined = []
    for wave in (clean, other):
        out = np.zeros(128 * (len(kept) - 1) + 256)
        for place, start in enumerate(kept):
            out[128 * place : 128 * place + 256] += window * wave[start : start + 256]
        joined.append(out)
    return joined[0], joined[1]


def unit(x: np.ndarray, axis: int) -> np.ndarray:
    x = x - x.mean(axis, keepdims=True)
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def stoi_of_the_paper(clean: np.ndarray, other: np.ndarray, extended: bool) -> float:
    import soxr

    clean, other = drop_silence(*(soxr.resample(wave.astype(float), RATE, 10000) for wave in (clean, other)))
    x_all, y_all = octave_bands(clean), octave_bands(other)
    scores = []
    for m in range(30, x_all.shape[1] + 1):
        x, y = x_all[:, m - 30 : m], y_all[:, m - 30 : m]  # (15, 30)
        if extended:
            scores.append((unit(unit(x, 1), 0) * unit(unit(y, 1), 0)).sum() / 30)
        else:
            gain = np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(y, axis=1, keepdims=True)
            clipped = np.minimum(gain * y, (1 + 10 ** (15 / 20)) * x)
            scores.append((unit(x, 1) * unit(clipped, 1)).sum() / 15)
    return float(np.mean(scores))


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("level", [0.003, 0.03])
def test_stoi_is_that_of_the_paper(extended, level):
    pytest.importorskip("pystoi")
    clean = speechlike()
    other = noisy(clean, level)
    # The two resamplers differ near 5 kHz, above the last band's edge of 4.3 kHz.
    expected = stoi_of_the_paper(clean, other, extended)
    assert metrics.stoi(clean, other, extended) == pytest.approx(expected, abs=3e-3)
    assert metrics.stoi(clean, clean, extended) == pytest.approx(1.0, abs=1e-6)


def test_stoi_is_deterministic_and_leaves_the_global_generator_alone():
    pytest.importorskip("pystoi")
    clean = speechlike()
    other = noisy(clean, 0.01)
    other[8000:20000] = 0  # where pystoi's own noise decides
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = metrics.stoi(clean, other, extended=True)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.random.random(7)  # noqa: NPY002
    assert metrics.stoi(clean, other, extended=True) == first


def test_pesq_of_the_same_wave_is_the_end_of_its_scale():
    pytest.importorskip("pesq")
    clean = speechlike()
    top = 0.999 + 4 / (1 + math.exp(-1.3669 * 4.5 + 3.8224))  # P.862.2's mapping of the highest raw score
    assert metrics.pesq_wb(clean, clean) == pytest.approx(top, abs=1e-4)
    scores = [metrics.pesq_wb(clean, noisy(clean, level)) for level in (0.001, 0.01, 0.1)]
    assert top > scores[0] > scores[1] > scores[2] > 1.02
    # It is not symmetric: the reference comes first.
    assert metrics.pesq_wb(clean, noisy(clean, 0.01)) != metrics.pesq_wb(noisy(clean, 0.01), clean)


def test_si_sdr_of_orthogonal_noise():
    rng = np.random.default_rng(0)
    target = rng.normal(size=RATE)
    target -= target.mean()
    noise = rng.normal(size=RATE)
    noise -= noise.mean()
    noise -= (noise @ target) / (target @ target) * target
    noise *= np.linalg.norm(target) / np.linalg.norm(noise) * 10 ** (-12 / 20)
    for gain, offset in ((1.0, 0.0), (-0.3, 0.0), (5.0, 0.4)):  # neither gain nor offset counts
        assert metrics.si_sdr(target, gain * (target + noise) + offset) == pytest.approx(12.0, abs=1e-9)
    assert metrics.si_sdr(target, target) == math.inf


def test_log_mel_distance_of_a_gain_is_its_logarithm():
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    assert metrics.log_mel_distance(noise, 0.5 * noise) == pytest.approx(math.log(2), abs=1e-4)
    assert metrics.log_mel_distance(noise, noise) == pytest.approx(0, abs=1e-6)


def test_log_mel_distance_by_hand():
    def to_hertz(mel: np.ndarray) -> np.ndarray:  # Slaney: linear to 1 kHz = 15 mel, then 27 to a factor 6.4
        return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))

    edges = to_hertz(np.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), 82))
    grid = np.arange(513) * RATE / 1024
    bank = [np.interp(grid, edges[i : i + 3], [0, 2 / (edges[i + 2] - edges[i]), 0]) for i in range(80)]

    def log_mel(wave: np.ndarray) -> np.ndarray:
        padded = np.pad(wave.astype(float), 512, mode="reflect")
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
        frames = [window * padded[i : i + 1024] for i in range(0, len(padded) - 1023, 256)]
        return np.log(np.maximum(np.abs(np.fft.rfft(frames)) @ np.array(bank).T, 1e-5))

    clean = speechlike()
    other = noisy(clean, 0.01)
    expected = np.abs(log_mel(clean) - log_mel(other)).mean()
    assert metrics.log_mel_distance(clean, other) == pytest.approx(float(expected), abs=1e-4)


def test_normaliser():
    assert normalised_words("It’s well-known: O'Neill—won 3 ÉTUDES!") == [
        *("it's", "well", "known", "o'neill", "won", "études")
    ]
    assert normalised_words("  ") == []


def test_word_edits_are_those_of_jiwer():
    jiwer = pytest.importorskip("jiwer")
    rng = np.random.default_rng(0)
    for _ in range(50):
        reference, other = (list(rng.choice(list("abcd"), rng.integers(1, 12))) for _ in range(2))
        counts = jiwer.process_words(" ".join(reference), " ".join(other))
        expected = counts.substitutions + counts.deletions + counts.insertions
        assert word_edits(reference, other) == expected
    assert word_edits(["a", "b"], []) == 2
    assert word_edits([], ["a"]) == 1


def test_codebook_use():
    assert codebook_use(np.arange(8), 16) == (0.5, 3.0)
    assert codebook_use(np.zeros(5, int), 4) == (0.25, 0.0)
    share, bits = codebook_use(np.array([0, 0, 0, 1]), 2)
    assert (share, bits) == (1.0, pytest.approx(0.811278, abs=1e-6))


def test_cosine():
    assert metrics.cosine(np.array([1.0, 0.0]), np.array([2.0, 2.0])) == pytest.approx(math.sqrt(0.5))


def test_what_is_not_defined_is_nan():
    clean = speechlike()
    silence, short = np.zeros_like(clean), clean[:1000]
    assert math.isnan(metrics.si_sdr(silence, clean))
    assert math.isnan(metrics.si_sdr(clean, silence))
    assert math.isnan(metrics.log_mel_distance(clean[:500], clean[:500]))
    pytest.importorskip("pystoi")
    pytest.importorskip("pesq")
    assert math.isnan(metrics.pesq_wb(silence, clean))
    assert math.isnan(metrics.pesq_wb(clean, silence))
    assert math.isnan(metrics.pesq_wb(short, short))
    assert math.isnan(metrics.stoi(short, short))
    blip = np.zeros(RATE, np.float32)
    blip[2000:4000] = clean[2000:4000]  # 125 ms of sound in a second: less than STOI's segment
    assert math.isnan(metrics.stoi(blip, blip))


def test_lengths_must_agree():
    refused(AudioError, "equal length", lambda: metrics.si_sdr(np.zeros(5), np.zeros(6)))


def magnitudes(wave: np.ndarray, size: int) -> np.ndarray:
    signal = pytest.importorskip("scipy.signal")
    padded = np.pad(wave.astype(float), size // 2, mode="reflect")
    spectra = signal.stft(
        padded, window="hann", nperseg=size, noverlap=3 * size // 4, boundary=None, padded=False
    )
    return np.abs(spectra[2]) * size / 2  # scipy divides by the window's sum


def test_narrow_band_pesq_of_the_same_wave_is_the_end_of_its_scale():
    pytest.importorskip("pesq")
    clean = speechlike()
    top = 0.999 + 4 / (1 + math.exp(-1.4945 * 4.5 + 4.6607))  # P.862.1's mapping of the highest raw score
    assert metrics.pesq_nb(clean, clean) == pytest.approx(top, abs=1e-4)
    high = np.random.default_rng(0).normal(0, 0.02, len(clean) * 8)
    spectrum = np.fft.rfft(high[: len(clean)])
    spectrum[np.fft.rfftfreq(len(clean), 1 / RATE) < 5000] = 0  # noise above its band
    other = (clean + np.fft.irfft(spectrum, len(clean))).astype(np.float32)
    assert metrics.pesq_nb(clean, other) > 4.2 > metrics.pesq_wb(clean, other)


def test_stft_distance_is_that_of_scipy_and_of_a_gain():
    clean, other = speechlike(), noisy(speechlike(), 0.01)
    expected = []
    for size in (512, 1024, 2048):
        x, y = (np.maximum(magnitudes(wave, size), 1e-5) for wave in (clean, other))
        expected.append(np.linalg.norm(x - y) / np.linalg.norm(x) + np.abs(np.log(x / y)).mean())
    assert metrics.stft_distance(clean, other) == pytest.approx(np.mean(expected), abs=1e-4)
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    assert metrics.stft_distance(noise, 0.5 * noise) == pytest.approx(0.5 + math.log(2), abs=1e-3)
    assert metrics.stft_distance(noise, noise) == 0


def test_mel_cepstral_distortion_is_that_of_scipys_cosine_transform():
    fft = pytest.importorskip("scipy.fft")
    from vokens.audio.mel import LogMel

    clean, other = speechlike(), noisy(speechlike(), 0.01)
    logs = LogMel(metrics.MEL)(torch.from_numpy(np.stack([clean, other]))).double().numpy()
    cepstra = fft.dct(logs, type=2, axis=1) / 80  # 1/80 sum 2 ln m cos
    difference = (cepstra[0] - cepstra[1])[1:25]
    expected = (10 / np.log(10) * np.sqrt(2 * (difference**2).sum(0))).mean()
    assert metrics.mel_cepstral_distortion(clean, other) == pytest.approx(expected, abs=1e-6)
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    quiet = 0.25 * noise  # level is not in it
    assert metrics.mel_cepstral_distortion(noise, quiet) == pytest.approx(0, abs=1e-3)


def test_mel_cepstral_distortion_of_all_cepstra_is_the_spectral_distance_in_decibels(monkeypatch):
    from vokens.audio.mel import LogMel

    monkeypatch.setattr(metrics, "CEPSTRA", 79)
    metrics._cosines.cache_clear()
    try:
        clean, other = speechlike(), noisy(speechlike(), 0.01)
        actual = metrics.mel_cepstral_distortion(clean, other)
    finally:
        metrics._cosines.cache_clear()
    logs = LogMel(metrics.MEL)(torch.from_numpy(np.stack([clean, other]))).double()
    decibels = 20 / math.log(10) * (logs[0] - logs[1])  # (80, F); Parseval
    assert actual == pytest.approx(float(decibels.std(0, unbiased=False).mean()), abs=1e-6)


def test_pitch_error_of_known_tones():
    def tone(pitch: float) -> np.ndarray:
        t = np.arange(RATE) / RATE
        return 0.1 * sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 8))

    low, high = tone(200.0), tone(200.0 * 2 ** (50 / 1200))
    cents, voicing = metrics.pitch_error(low, high)
    assert cents == pytest.approx(50, abs=1)
    assert voicing == pytest.approx(0, abs=1)
    half = low.copy()
    half[RATE // 2 :] = np.random.default_rng(0).normal(0, 0.05, RATE // 2)
    cents, voicing = metrics.pitch_error(low, half)
    assert cents < 5
    assert voicing == pytest.approx(50, abs=4)
    silence, error = metrics.pitch_error(low, np.zeros(RATE))
    assert math.isnan(silence)
    assert error == pytest.approx(100, abs=2)
