"""CosyVoice 3's causal vocoder against recorded outputs; streams with four frames of look-ahead; its noise."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import refused
from cosyvoice3 import FOLDER, golden
from test_hift import REDUCED, Given, build, near, seeded, source_of

from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3gen.checkpoint import Spelling, hift_to_published
from vokens.models.s3gen.config import S3GEN_24K
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3gen.source import KeyedDraws, PublishedDraws, ReleasedDraws

CAUSAL = replace(REDUCED, source="v3")


@pytest.fixture(scope="module")
def model() -> HiFTNetModel:
    return build(CAUSAL)


# Recorded outputs


@pytest.mark.parametrize("case", ["T1", "T2", "T4", "T11", "silence"])
def test_recorded_pitch(model: HiFTNetModel, case: str) -> None:
    recorded = golden("hift_reduced_decode", f"f0/{case}")
    found = model.f0_predictor(recorded["mel"])
    near(found, recorded["f0"], 1e-4)
    if "f0_not_final" in recorded:  # three frames are looked at only
        near(found[:, :-3], recorded["f0_not_final"], 1e-4)


@pytest.mark.parametrize("case", ["T1", "T3", "batch", "silence"])
def test_recorded_decode(model: HiFTNetModel, case: str) -> None:
    recorded = golden("hift_reduced_decode", f"decode/{case}")
    seen = {}
    stages = [key.removeprefix("stage/") for key in recorded if key.startswith("stage/")]
    for name in stages:
        if "stft" not in name:
            keep = lambda module, args, output, name=name: seen.update({name: output.clone()})  # noqa: E731
            model.get_submodule(name).register_forward_hook(keep)
    near(model.decode(recorded["mel"], recorded["source"]), recorded["wav"], 1e-5)
    for name, value in seen.items():
        if name in stages:
            near(value, recorded[f"stage/{name}"], 1e-5)


def test_recorded_decode_before_the_end(model: HiFTNetModel) -> None:
    recorded = golden("hift_reduced_decode", "decode/not_final")
    found = model.decode(recorded["mel"], recorded["source"])
    near(found[:, ::3], recorded["wav_sub"], 1e-5)
    near(found[:, : 480 * 4], recorded["wav_not_final"], 1e-5)


@pytest.mark.parametrize("case", ["injected", "seeded", "batch", "long"])
def test_recorded_source(case: str) -> None:
    whole, source = golden("hift_source"), source_of("v3")
    recorded = golden("hift_source", case)
    f0 = recorded.get("f0", whole["f0"])
    frames = f0.shape[1] * 480
    if case == "injected":
        draws = Given(torch.zeros(1, 9, 1), recorded["noise"].transpose(1, 2))
        near(source.sines(f0, draws)[..., ::16], recorded["sines_sub"].transpose(1, 2), 1e-5)
    else:
        seed = {"seeded": 2001, "batch": 2002, "long": 2003}[case]
        draws = PublishedDraws(seeded(seed), [frames] * len(f0), 9, "v3")
    found = source(f0, draws)
    if case == "long":
        near(found[..., ::29], recorded["source_sub"], 1e-5)
        source.config = replace(source.config, arithmetic="exact")
        near(source(f0, draws)[..., ::29], recorded["source_sub"], 5e-4)
    else:
        near(found, recorded["source"], 1e-5)


def test_recorded_noise_of_the_release() -> None:
    recorded, cpu = golden("noise"), torch.device("cpu")
    draws = ReleasedDraws(1, 9)
    for row, sample in enumerate([0, 479, 480, 24000, 1_000_003]):
        near(draws.noise(sample, 1, cpu)[0, :, 0], recorded["released/rows"][row], 0)
    near(draws.noise(470, 20, cpu)[0, :, 9:11].T, recorded["released/rows"][1:3], 0)


@pytest.mark.slow
def test_recorded_noise_of_the_release_at_its_end() -> None:
    recorded, draws = golden("noise"), ReleasedDraws(1, 9)
    near(draws.noise(7_199_999, 1, torch.device("cpu"))[0, :, 0], recorded["released/rows"][5], 0)


@pytest.mark.parametrize("case", ["", "silence", "T1"])
def test_recorded_inference(model: HiFTNetModel, case: str) -> None:
    recorded = golden("hift_reduced_inference", case)
    wave, source = model.inference(recorded["mel"], generator=seeded(2010))
    near(wave, recorded["wav"], 1e-3)
    near(source[..., ::3], recorded["source_sub"], 1e-4)
    if not case:
        near(wave[:, : 480 * 3], recorded["wav_not_final"], 1e-3)
        near(model.f0_predictor(recorded["mel"]), recorded["f0"], 1e-4)


# Streams


def test_recorded_stream_comes_four_frames_earlier(model: HiFTNetModel) -> None:
    """The published stream gives 480 (T - 8) samples after T frames; four frames and four samples are enough."""
    recorded = golden("hift_reduced_inference", "stream")
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
    near(torch.cat(waves, 1), whole, 5e-5)
    fixed, _ = model.inference(mel, generator=seeded(2010))
    near(fixed[:, ::5], recorded["wav_sub"], 1e-3)


# Noise


def test_noise_without_a_seed_is_the_release_s(model: HiFTNetModel) -> None:
    mel = golden("hift_reduced_inference")["mel"]
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
    recorded = json.loads((FOLDER / "keys.json").read_text())
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
        near(found.state_dict()[name], value, 1e-6)
    refused(CheckpointError, "CosyVoice 3", HiFTNetModel.from_published, state, {"source": "v2"})
    older = hift_to_published(build(REDUCED).state_dict(), spelling)
    refused(CheckpointError, "CosyVoice 3", HiFTNetModel.from_published, older, {"source": "v3"})
    refused(ConfigError, "which sines", HiFTNetModel.from_published, older, None)
    mixed = state | {k: v for k, v in older.items() if k.startswith("f0_predictor.condnet.0")}
    refused(CheckpointError, "condnet", HiFTNetModel.from_published, mixed, None)


# Released size


@pytest.mark.slow
def test_recorded_full_size() -> None:
    recorded, vocoder = golden("hift_full"), build(replace(S3GEN_24K, source="v3"))
    mel = recorded["mel"]
    f0 = vocoder.f0_predictor(mel)
    near(f0, recorded["f0"], 1e-4)
    near(f0[:, :8], recorded["f0_not_final"], 1e-4)
    near(vocoder.decode(mel[..., :2], recorded["source"]), recorded["wav_from_source"], 1e-5)
    wave, source = vocoder.inference(mel, generator=seeded(2030))
    near(wave[:, ::2], recorded["wav_sub"], 1e-3)
    near(wave[:, :1440], recorded["wav_not_final"], 1e-3)
    near(source[..., ::5], recorded["source_sub"], 2e-4)
