"""Log-mels against librosa and the published recipes' goldens; batch = single; the frame law."""

from pathlib import Path

import librosa
import pytest
import torch
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vokens.audio import mel
from vokens.audio.mel import LogMel, MelConfig, mel_filterbank
from vokens.errors import AudioError, ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"
PRESETS = [mel.WHISPER_80, mel.WHISPER_128, mel.MEL_24K_80, mel.SOCODEC_16K_80, *mel.SPEECHTOKENIZER_LOSSES]


def pcm(wave: torch.Tensor) -> torch.Tensor:
    """Goldens store waves as int16 PCM or as exact floats."""
    return wave.float() / 32768 if wave.dtype == torch.int16 else wave.float()


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize("config", PRESETS)
def test_filterbank_is_librosas(config: MelConfig) -> None:
    c = config
    ours = mel_filterbank(c.sample_rate, c.n_fft, c.n_mels, c.f_min, c.f_max, c.scale, c.norm)
    sizes = {"sr": c.sample_rate, "n_fft": c.n_fft, "n_mels": c.n_mels, "fmin": c.f_min, "fmax": c.f_max}
    theirs = librosa.filters.mel(**sizes, htk=c.scale == "htk")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-8)


@pytest.mark.filterwarnings("ignore:Empty filters")
@settings(max_examples=30, deadline=None)
@given(
    rate=st.sampled_from([8000, 16000, 22050, 44100]),
    n_fft=st.integers(16, 2048),
    n_mels=st.integers(1, 160),
    f_min=st.floats(0, 1000),
    f_max=st.floats(1500, 4000) | st.none(),
    htk=st.booleans(),
    norm=st.sampled_from(["slaney", None]),
)
def test_any_filterbank_is_librosas(rate, n_fft, n_mels, f_min, f_max, htk, norm) -> None:
    ours = mel_filterbank(rate, n_fft, n_mels, f_min, f_max, "htk" if htk else "slaney", norm)
    sizes = {"sr": rate, "n_fft": n_fft, "n_mels": n_mels, "fmin": f_min, "fmax": f_max}
    theirs = librosa.filters.mel(**sizes, htk=htk, norm=norm)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-6, atol=1e-6)


def test_s3gen_golden() -> None:
    golden = load_file(GOLDEN / "s3gen/mel24k.safetensors")
    log_mel = LogMel(mel.MEL_24K_80)
    torch.testing.assert_close(log_mel.filterbank.sum(-1), golden["filters/row_sums"], rtol=0, atol=1e-6)
    for key in (k for k in golden if k.startswith("mel/")):
        wave = pcm(golden[key.replace("mel/", "wav/")])
        torch.testing.assert_close(log_mel(torch.atleast_2d(wave)), golden[key], rtol=0, atol=1e-4)


def test_socodec_golden() -> None:
    golden = load_file(GOLDEN / "socodec/mel.safetensors")
    log_mel = LogMel(mel.SOCODEC_16K_80)
    torch.testing.assert_close(log_mel.filterbank.sum(-1), golden["basis.row_sum"], rtol=0, atol=1e-6)
    waves = {k.removesuffix(".pcm"): pcm(v)[None] for k, v in golden.items() if k.endswith(".pcm")}
    waves |= {"batch": golden["batch.wav"], "silence1920": torch.zeros(1, 1920)}
    for name, wave in waves.items():
        expected = golden[f"{name}.mel"].transpose(1, 2)
        torch.testing.assert_close(log_mel(wave), expected, rtol=0, atol=1e-5)


def test_whisper_golden() -> None:
    golden = load_file(GOLDEN / "s3tokenizer/mel.safetensors")
    log_mel = LogMel(mel.WHISPER_128)
    for key in (k for k in golden if k.endswith(".pcm")):
        expected = golden[key.replace(".pcm", ".mel")]
        # Bands 80 dB below their frame's loudest see the rounding of the CPU's FFT: on one CPU ours is within
        # 1e-7 of the reference, and within 1.1e-5 of float64, from which the golden itself is 1.6e-5 away.
        torch.testing.assert_close(log_mel(pcm(golden[key])[None])[0], expected, rtol=0, atol=3e-5)
    longest = pcm(golden["noise4801.pcm"])[None]
    torch.testing.assert_close(LogMel(mel.WHISPER_80)(longest)[0], golden["mel80"], rtol=0, atol=1e-5)
    # The reference takes one maximum over a batch; ours is per item, so a row equals the row alone.
    quiet = golden["joint.wav"]
    torch.testing.assert_close(log_mel(quiet)[:1], golden["joint.mel"][:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(log_mel(quiet)[1:], log_mel(quiet[1:]), rtol=0, atol=1e-6)


def test_speechtokenizer_golden() -> None:
    golden = load_file(GOLDEN / "speechtokenizer/losses.safetensors")
    real, fake = golden["x"].squeeze(1), golden["x_hat"].squeeze(1)
    losses = []
    for i, config in enumerate(mel.SPEECHTOKENIZER_LOSSES):
        log_mel = LogMel(config)
        ours = log_mel(real)
        assert list(ours.shape) == golden[f"mel.{i}.shape"].tolist()
        torch.testing.assert_close(ours[0, :, :8], golden[f"mel.{i}.first_row"], rtol=0, atol=2e-5)
        torch.testing.assert_close(ours.mean((0, 2)), golden[f"mel.{i}.mean_per_band"], rtol=0, atol=2e-5)
        losses.append((ours - log_mel(fake)).abs().mean())
    torch.testing.assert_close(torch.stack(losses), golden["mel.losses"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("config", PRESETS)
@pytest.mark.parametrize("extra", [0, 1, 479, 480, 5000])
def test_frame_law(config: MelConfig, extra: int) -> None:
    samples = config.padding + 1 + extra
    frames = LogMel(config)(torch.zeros(1, samples)).shape[-1]
    assert frames == config.frames(samples) == samples // config.hop_length
    assert config.frames(torch.tensor([samples])).tolist() == [frames]


def test_all_centred_frames() -> None:
    config = MelConfig(16000, 400, 400, 160, n_mels=20, center=True)
    assert LogMel(config)(torch.zeros(1, 1600)).shape == (1, 20, 11)


@pytest.mark.parametrize("config", PRESETS)
def test_ragged_batch_is_single(config: MelConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([4000, 3999, config.padding + 1, 2400])
    # Noise beyond the ends: padding must not be seen.
    batch = torch.randn(4, 4000, generator=generator) * torch.tensor([0.1, 0.01, 0.3, 1e-4])[:, None]
    log_mel = LogMel(config)
    together = log_mel(batch, lengths)
    for row, wave, length in zip(together, batch, lengths.tolist(), strict=True):
        alone = log_mel(wave[None, :length])[0]
        torch.testing.assert_close(row[:, : config.frames(length)], alone, rtol=0, atol=2e-5)
        silence = row[:, config.frames(length) :]
        assert (silence == row.amin()).all()


def test_gradients_reach_silence() -> None:
    for config in PRESETS:
        wave = torch.zeros(1, 2048, requires_grad=True)
        LogMel(config)(wave).sum().backward()
        assert wave.grad is not None
        assert wave.grad.isfinite().all()


def test_stays_float32_and_out_of_state_dicts() -> None:
    wave = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    log_mel = LogMel(mel.SOCODEC_16K_80)
    expected = log_mel(wave)
    assert not log_mel.state_dict()
    assert torch.equal(log_mel.to(torch.bfloat16)(wave), expected)
    assert torch.equal(log_mel.to("meta").to_empty(device="cpu")(wave), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_mel(wave), expected)


def test_errors() -> None:
    refused(AudioError, "at least 433 samples", lambda: LogMel(mel.SOCODEC_16K_80)(torch.zeros(1, 432)))
    refused(AudioError, "batch", lambda: LogMel(mel.SOCODEC_16K_80)(torch.zeros(2000)))
    refused(ConfigError, "n_fft", MelConfig, 16000, 400, 512, 160, 80)
    refused(ConfigError, "8000", mel_filterbank, 16000, 400, 80, 0.0, 9000.0)
    refused(ConfigError, "bark", mel_filterbank, 16000, 400, 80, scale="bark")


def test_bands_made_in_inference_serve_training() -> None:
    with torch.inference_mode():
        bands = mel_filterbank(16000, 512, 23)
    weight = torch.ones(257, requires_grad=True)
    (bands @ weight).sum().backward()
    assert weight.grad is not None
