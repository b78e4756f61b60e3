"""Kaldi's filter bank: recorded outputs of torchaudio's port, and Kaldi's own C++ as second opinion."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused
from safetensors.torch import load_file

from vokens.audio.fbank import kaldi_fbank
from vokens.errors import AudioError

GOLDEN = load_file(Path(__file__).parents[1] / "golden/s3gen/fbank.safetensors")
WAVES = [name.removeprefix("wav/") for name in GOLDEN if name.startswith("wav/")]


def golden_wave(name: str) -> torch.Tensor:
    wave = GOLDEN[f"wav/{name}"]
    return wave.float() / 32768 if wave.dtype == torch.int16 else wave.float()


@pytest.mark.parametrize("name", WAVES)
def test_recorded(name):
    features = kaldi_fbank(golden_wave(name))
    torch.testing.assert_close(features, GOLDEN[f"fbank/{name}"], atol=2e-4, rtol=0)
    if f"cmn/{name}" in GOLDEN:
        centred, golden = features - features.mean(0), GOLDEN[f"cmn/{name}"].float()
        torch.testing.assert_close(centred, golden, atol=2e-4, rtol=0)


def test_kaldi_native():
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "povey"
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = 80
    options.mel_opts.low_freq = 20
    options.use_energy = False
    wave = np.random.default_rng(1).normal(0, 0.2, 8000).astype(np.float32)
    native = knf.OnlineFbank(options)
    native.accept_waveform(16000, wave.tolist())
    native.input_finished()
    expected = np.stack([native.get_frame(i) for i in range(native.num_frames_ready)])
    np.testing.assert_allclose(kaldi_fbank(torch.from_numpy(wave)).numpy(), expected, atol=5e-4)


def test_batch_equals_single_and_length_law():
    waves = torch.randn(3, 1700, generator=torch.Generator().manual_seed(0))
    batch = kaldi_fbank(waves)
    assert batch.shape == (3, 1 + (1700 - 400) // 160, 80)
    for wave, features in zip(waves, batch, strict=True):
        # Products of other shapes round otherwise.
        assert torch.allclose(kaldi_fbank(wave), features, atol=1e-4)


def test_too_short():
    refused(AudioError, "400 samples", lambda: kaldi_fbank(torch.zeros(399)))
