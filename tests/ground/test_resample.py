"""Resampling: parity with torchaudio's goldens, the length law, linearity, gradients, long audio."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vokens.audio import resample, sinc_resample
from vokens.audio.resample import _BLOCK, sinc_kernel
from vokens.errors import AudioError

GOLDEN = load_file(Path(__file__).parents[1] / "golden/s3gen/resample.safetensors")
RATES = sorted({tuple(int(rate) for rate in key.split("/")[0].split("_")) for key in GOLDEN})
COMMON = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 192000]


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("source", "target"), RATES)
def test_kernel_is_bit_equal(source: int, target: int) -> None:
    divisor = math.gcd(source, target)
    kernel = sinc_kernel(source // divisor, target // divisor)[:, 0]
    golden = GOLDEN[f"{source}_{target}/kernel"]  # every 1st, 20th or 40th phase
    assert torch.equal(kernel[:: len(kernel) // len(golden)], golden)


@pytest.mark.parametrize(("source", "target"), RATES)
def test_output_equals_golden(source: int, target: int) -> None:
    prefix = f"{source}_{target}/in"
    for key in (key for key in GOLDEN if key.startswith(prefix)):
        wave = GOLDEN[key].float() / (32768 if GOLDEN[key].dtype == torch.int16 else 1)
        expected = GOLDEN[key.replace("/in", "/out")]
        torch.testing.assert_close(sinc_resample(wave, source, target), expected, rtol=0, atol=1e-6)


COMMON_PAIRS = st.tuples(st.sampled_from(COMMON), st.sampled_from(COMMON))
ODD_PAIRS = st.tuples(st.integers(1, 60), st.integers(1, 60))


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(0, 3000), rates=COMMON_PAIRS | ODD_PAIRS)
def test_length_law(samples: int, rates: tuple[int, int]) -> None:
    source, target = rates
    length = -(-samples * target // source)
    assert sinc_resample(torch.zeros(samples), source, target).shape == (length,)
    array = resample(np.zeros(samples, np.float32), source, target)
    assert abs(len(array) - samples * target / source) <= 1


@pytest.mark.parametrize(("source", "target"), [(44100, 16000), (16000, 24000), (48000, 8000)])
def test_a_tone_stays_a_tone(source: int, target: int) -> None:
    seconds = torch.arange(source, dtype=torch.float64) / source
    expected = torch.sin(2 * math.pi * 440 * torch.arange(target, dtype=torch.float64) / target)
    tone = torch.sin(2 * math.pi * 440 * seconds).float()
    inner = slice(target // 10, -target // 10)
    for ours in (
        sinc_resample(tone, source, target),
        torch.from_numpy(resample(tone.numpy(), source, target)),
    ):
        torch.testing.assert_close(ours[inner].double(), expected[inner], rtol=0, atol=2e-3)


def test_rows_are_independent_and_shapes_kept() -> None:
    waves = noise(2, 3, 1000)
    for convert in (
        lambda w: resample(w, 44100, 16000),
        lambda w: torch.from_numpy(resample(w.numpy(), 44100, 16000)),
    ):
        together = convert(waves)
        assert together.shape == (2, 3, 363)
        for i in range(2):
            for j in range(3):
                torch.testing.assert_close(together[i, j], convert(waves[i, j]), rtol=0, atol=1e-7)


def test_long_audio_has_no_seams() -> None:
    source, target, samples = 3, 2, 3 * _BLOCK // 2 * 2 + 1001  # two block borders
    wave = noise(samples)
    kernel = sinc_kernel(source, target)
    width = (kernel.shape[-1] - source) // 2
    padded = torch.nn.functional.pad(wave[None], (width, width + source))
    whole = torch.nn.functional.conv1d(padded, kernel, stride=source).T.flatten()
    ours = sinc_resample(wave, source, target)
    torch.testing.assert_close(ours, whole[: len(ours)], rtol=0, atol=1e-6)


def test_same_rate_and_empty_are_returned_as_given() -> None:
    for wave in (noise(10), noise(10).numpy()):
        assert resample(wave, 16000, 16000) is wave
        assert resample(wave[:0], 16000, 24000).shape == (0,)


def test_types() -> None:
    assert resample(np.ones(300), 16000, 24000).dtype == np.float32
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        wave = noise(1, 400).to(dtype)
        assert resample(wave, 24000, 16000).dtype == dtype
    expected = sinc_resample(noise(1, 400), 24000, 16000)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinc_resample(noise(1, 400), 24000, 16000), expected)


def test_gradients() -> None:
    wave = noise(2, 23).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: sinc_resample(w, 3, 2), wave)


@pytest.mark.parametrize("rate", [0, -1, 16000.0, None])
def test_bad_rates(rate) -> None:
    for wave in (noise(10), noise(10).numpy()):
        for rates in ((rate, 16000), (16000, rate)):
            refused(AudioError, "Hz", resample, wave, *rates)


def test_rates_without_a_common_divisor() -> None:
    refused(AudioError, "soxr", lambda: resample(noise(100), 44101, 48000))
    assert abs(len(resample(noise(44101).numpy(), 44101, 48000)) - 48000) <= 1


def test_integer_waves() -> None:
    for wave in (torch.zeros(10, dtype=torch.int16), np.zeros(10, np.int16)):
        refused(AudioError, "floating point", resample, wave, 24000, 16000)
