"""CosyVoice 3's causal vocoder beside test_hift: streams with four frames of look-ahead, its noise, its files."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import refused, seeded
from s3gen_weights import FOLDER, close, golden3
from test_hift import REDUCED, build, reduced_hift, source_of

from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3gen.checkpoint import Spelling, hift_to_published
from vokens.models.s3gen.config import S3GEN_24K
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3gen.source import GivenDraws, KeyedDraws, ReleasedDraws

CAUSAL = replace(REDUCED, source="v3")


@pytest.fixture
def model() -> HiFTNetModel:
    return reduced_hift("v3")


def test_recorded_decode_before_the_end(model: HiFTNetModel) -> None:
    recorded = golden3("hift_reduced_decode", "decode/not_final")
    found = model.decode(recorded["mel"], recorded["source"])
    close(found[:, ::3], recorded["wav_sub"], 1e-5)
    close(found[:, : 480 * 4], recorded["wav_not_final"], 1e-5)


def test_recorded_source_with_given_draws() -> None:
    recorded, source = golden3("hift_source", "injected"), source_of("v3")
    f0, draws = (
        golden3("hift_source")["f0"],
        GivenDraws(torch.zeros(1, 9, 1), recorded["noise"].transpose(1, 2)),
    )
    close(source.sines(f0, draws)[..., ::16], recorded["sines_sub"].transpose(1, 2), 1e-5)
    close(source(f0, draws), recorded["source"], 1e-5)


def test_recorded_noise_of_the_release() -> None:
    recorded, cpu = golden3("noise"), torch.device("cpu")
    draws = ReleasedDraws(1, 9)
    for row, sample in enumerate([0, 479, 480, 24000, 1_000_003]):
        close(draws.noise(sample, 1, cpu)[0, :, 0], recorded["released/rows"][row], 0)
    close(draws.noise(470, 20, cpu)[0, :, 9:11].T, recorded["released/rows"][1:3], 0)


@pytest.mark.slow
def test_recorded_noise_of_the_release_at_its_end() -> None:
    recorded, draws = golden3("noise"), ReleasedDraws(1, 9)
    close(draws.noise(7_199_999, 1, torch.device("cpu"))[0, :, 0], recorded["released/rows"][5], 0)


@pytest.mark.parametrize("case", ["", "silence", "T1"])
def test_recorded_inference(model: HiFTNetModel, case: str) -> None:
    recorded = golden3("hift_reduced_inference", case)
    wave, source = model.inference(recorded["mel"], generator=seeded(2010))
    close(wave, recorded["wav"], 1e-3)
    close(source[..., ::3], recorded["source_sub"], 1e-4)
    if not case:
        close(wave[:, : 480 * 3], recorded["wav_not_final"], 1e-3)
        close(model.f0_predictor(recorded["mel"]), recorded["f0"], 1e-4)


# Streams


def test_recorded_stream_comes_four_frames_earlier(model: HiFTNetModel) -> None:
    """The published stream gives 480 (T - 8) samples after T frames; four frames and four samples are enough."""
    recorded = golden3("hift_reduced_inference", "stream")
    mel = recorded["mel"]
    whole, _ = model.inference(mel, seed=3)
    state, waves, start = model.init_state(seed=3), [], 0
    for end, published in ((10, 960), (19, 5280), (34, 16320)):
        wave, state = model.step(mel[..., start:end], state, last=end == 34)
        waves.append(wave)
        given = sum(wave.shape[1] for wave in waves)
        assert given == (16320 if end == 34 else 480 * (end - 4) - 4)
        assert given >= published
        start = end
    close(torch.cat(waves, 1), whole, 5e-5)
    fixed, _ = model.inference(mel, generator=seeded(2010))
    close(fixed[:, ::5], recorded["wav_sub"], 1e-3)


# Noise


def test_noise_without_a_seed_is_the_release_s(model: HiFTNetModel) -> None:
    mel = golden3("hift_reduced_inference")["mel"]
    one, again = (model.inference(mel)[0] for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, model.inference(mel, seed=0)[0])
    uniform = KeyedDraws((0, 1), 9, uniform=True).noise(0, 20_000, torch.device("cpu"))
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.005
    assert abs(float(uniform.std()) - 12**-0.5) < 0.002


# Files


def test_published_names_are_complete() -> None:
    with torch.device("meta"):
        state = HiFTNetModel(replace(S3GEN_24K, source="v3")).state_dict()
    names = hift_to_published({k: torch.empty(v.shape) for k, v in state.items()})
    recorded = json.loads((FOLDER / "cosyvoice3/keys.json").read_text())
    expected = {k.removeprefix("mel2wav."): v for k, v in recorded.items() if k.startswith("mel2wav.")}
    assert {name: list(value.shape) for name, value in names.items()} == expected
    assert len(names) == 328
    assert sum(value.numel() for value in names.values()) == 20_779_887


@pytest.mark.parametrize("spelling", ["parametrizations", "weight_g", "folded"])
def test_shapes_tell_the_release(model: HiFTNetModel, spelling: Spelling) -> None:
    state = hift_to_published(model.state_dict(), spelling)
    found = HiFTNetModel.from_published(state, None)
    assert found.config == CAUSAL
    for name, value in model.state_dict().items():
        close(found.state_dict()[name], value, 1e-6)
    refused(CheckpointError, "CosyVoice 3", HiFTNetModel.from_published, state, {"source": "v2"})
    older = hift_to_published(build(REDUCED).state_dict(), spelling)
    refused(CheckpointError, "CosyVoice 3", HiFTNetModel.from_published, older, {"source": "v3"})
    refused(ConfigError, "which sines", HiFTNetModel.from_published, older, None)
    mixed = state | {k: v for k, v in older.items() if k.startswith("f0_predictor.condnet.0")}
    refused(CheckpointError, "condnet", HiFTNetModel.from_published, mixed, None)


# Released size


@pytest.mark.slow
def test_recorded_full_size() -> None:
    recorded, vocoder = golden3("hift_full"), build(replace(S3GEN_24K, source="v3"))
    mel = recorded["mel"]
    f0 = vocoder.f0_predictor(mel)
    close(f0, recorded["f0"], 1e-4)
    close(f0[:, :8], recorded["f0_not_final"], 1e-4)
    close(vocoder.decode(mel[..., :2], recorded["source"]), recorded["wav_from_source"], 1e-5)
    wave, source = vocoder.inference(mel, generator=seeded(2030))
    close(wave[:, ::2], recorded["wav_sub"], 1e-3)
    close(wave[:, :1440], recorded["wav_not_final"], 1e-3)
    close(source[..., ::5], recorded["source_sub"], 2e-4)
