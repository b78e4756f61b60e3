"""SoCodec called as its release is called: its paddings, its files, its command."""

import numpy as np
import pytest
import soundfile
import torch
from conftest import refused
from safetensors.torch import save_file
from test_socodec import CONFIG, GOLDEN, SMALL, difference, error, golden, published_weights, small, wave

from vokens.compat import socodec as compat
from vokens.errors import AudioError, CheckpointError, ConfigError, TokensError

CASES = CONFIG["cases"]["codec_small"]


@pytest.fixture(scope="module")
def release() -> compat.SoCodec:
    return compat.SoCodec(small(), torch.float32)


@pytest.mark.parametrize("samples", CASES["lengths"])
@pytest.mark.parametrize("layout", ["1d", "cli"])
def test_both_layouts(release, samples, layout):
    data = golden("codec_small")
    sound = wave(data[f"len{samples}.pcm"])
    features, synthesis = release.analysis_synthesis(sound if layout == "1d" else sound[None])
    name = f"len{samples}.{layout}"
    assert torch.equal(features["token"], data[f"{name}.codes"].long())
    assert error(features["speaker"], data[f"{name}.spk"]) <= 1e-5
    if f"{name}.wav" in data:
        assert difference(synthesis, data[f"{name}.wav"]) <= 1e-4


def test_a_list_in_one_call(release):
    data = golden("codec_small")
    waves = [wave(data[f"batch{i}.pcm"]) for i in range(3)]
    assert [len(item) for item in waves] == CASES["batch"]
    features, synthesis = release.analysis_synthesis(waves)
    for i, item in enumerate(features):
        assert torch.equal(item["token"], data[f"batch{i}.codes"].long())
        assert error(item["speaker"], data[f"batch{i}.spk"]) <= 1e-5
    assert difference(synthesis[1], data["batch1.wav"]) <= 1e-4


def test_silence(release):
    data = golden("codec_small")
    features, synthesis = release.analysis_synthesis(torch.zeros(1920))
    assert torch.equal(features["token"], data["silence1920.codes"].long())
    assert error(features["speaker"], data["silence1920.spk"]) <= 1e-5
    assert difference(synthesis, data["silence1920.wav"]) <= 1e-4


def test_published_features_file(release, tmp_path):
    data = torch.load(GOLDEN / "features_cli.pt", weights_only=True)
    assert data["token"].tolist() == CONFIG["cases"]["features_cli.pt"]["token"]
    compat.convert(release, str(GOLDEN / "features_cli.pt"), str(tmp_path / "synthesis.wav"))
    sound, rate = soundfile.read(tmp_path / "synthesis.wav", dtype="float32")
    assert (len(sound), rate) == (3 * 1920, 16000)
    assert difference(torch.from_numpy(sound), release.synthesis(data)) == 0


def test_the_command(release, tmp_path, monkeypatch):
    """wav to wav and wav to pt to wav are the same, 0.5 s of silence before and whole tokens long."""
    monkeypatch.setattr(compat, "init_codec", lambda: release)
    paths = [str(tmp_path / name) for name in ("in.wav", "features.pt", "a.wav", "b.wav")]
    soundfile.write(paths[0], wave(golden("codec_small")["stage.pcm"]).numpy(), 16000)
    for source, target in ((0, 1), (1, 2), (0, 3)):
        assert compat.main(["-i", paths[source], "-o", paths[target]]) == 0
    features = torch.load(paths[1], weights_only=True)
    assert features["token"].dtype == torch.int64
    assert features["token"].shape == (8, 4)  # ceil((8000 + 5000 + 1919) / 1920)
    assert features["speaker"].shape == (64,)
    assert np.array_equal(soundfile.read(paths[2])[0], soundfile.read(paths[3])[0])
    info = soundfile.info(paths[2])
    assert (info.frames, info.samplerate, info.subtype) == (8 * 1920, 16000, "FLOAT")
    assert compat.main(["-i", paths[0], "-o", str(tmp_path / "c.mp3")]) == 2


def test_published_files_in_ckpts(tmp_path, monkeypatch):
    (tmp_path / "ckpts").mkdir()
    analyzer, vocoder, _ = published_weights(SMALL)
    save_file(analyzer, tmp_path / "ckpts" / "socodec_16384x4_120ms_16khz_chinese.safetensors")
    monkeypatch.chdir(tmp_path)
    refused(CheckpointError, "mel_vocoder_80dim", compat.init_codec)
    save_file(vocoder, tmp_path / "ckpts" / "mel_vocoder_80dim_10ms_16khz.safetensors")
    with pytest.raises(CheckpointError, match="misshapen"):  # not of the released sizes
        compat.init_codec()


def test_what_is_refused(release, tmp_path):
    refused(AudioError, "shapes", lambda: release.analysis(torch.zeros(2, 100)))
    with pytest.raises(TokensError, match="token"):
        release.synthesis({"token": torch.zeros(3, 5, dtype=torch.int64), "speaker": torch.zeros(64)})
    with pytest.raises(TokensError, match="speaker"):
        release.synthesis({"token": torch.zeros(3, 4, dtype=torch.int64)})
    with pytest.raises(TokensError, match="16383"):
        release.synthesis({"token": torch.full((3, 4), 1 << 14), "speaker": torch.zeros(64)})
    (tmp_path / "features.pt").write_bytes(b"nothing")
    refused(TokensError, "safely", lambda: compat.convert(release, str(tmp_path / "features.pt"), "out.wav"))
    refused(ConfigError, "already", compat.convert, release, "a.pt", "b.pt")
