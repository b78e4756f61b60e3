"""Streams of the vocoder give what the whole mel gives, for any chunks, in constant memory."""

from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from conftest import refused
from test_hift import REDUCED, random_mel, reduced_hift

from vokens import audio
from vokens.audio import LogMel
from vokens.audio.mel import MEL_24K_80
from vokens.errors import AudioError, ConfigError
from vokens.models.s3gen.hift import HiFTNetModel


@pytest.fixture(params=["v1", "v2", "v3"])
def model(request: pytest.FixtureRequest) -> HiFTNetModel:
    return reduced_hift(request.param)


def stream(model: HiFTNetModel, mel: torch.Tensor, chunks: list[int], seeds: list[int]) -> list[torch.Tensor]:
    state, waves, start = model.init_state(len(mel), seeds), [], 0
    for i, size in enumerate(chunks):
        wave, state = model.step(mel[..., start : start + size], state, last=i == len(chunks) - 1)
        waves.append(wave)
        start += size
    assert start == mel.shape[-1]
    return waves


@pytest.mark.parametrize("chunks", [[2] * 13, [13, 0, 13], [26], [26, 0], [0, 21, 4, 1], [3, 7, 11, 5]])
def test_equals_the_whole(model: HiFTNetModel, chunks: list[int]) -> None:
    mel, seeds = random_mel(2, 80, 26), [5, 9]
    whole = model.inference(mel, seed=seeds)[0]
    joined = torch.cat(stream(model, mel, chunks, seeds), -1)
    torch.testing.assert_close(joined, whole, atol=1e-5, rtol=0)


def test_one_frame(model: HiFTNetModel) -> None:
    mel = random_mel(1, 80, 1)
    joined = torch.cat(stream(model, mel, [1], [0]), -1)
    torch.testing.assert_close(joined, model.inference(mel, seed=0)[0], atol=1e-5, rtol=0)


def test_lookahead(model: HiFTNetModel) -> None:
    """The wave stays exactly that far behind, whatever the chunks."""
    assert model.lookahead == {"v1": 9268, "v2": 9508, "v3": 1924}[model.config.source]
    state, given, frames = model.init_state(), 0, 0
    for size in (1, 18, 2, 1, 3):
        wave, state = model.step(random_mel(1, 80, size), state)
        given, frames = given + wave.shape[-1], frames + size
        assert given == max(0, frames * 480 - model.lookahead)


def test_state_stays_small_and_is_a_value(model: HiFTNetModel) -> None:
    mel = random_mel(1, 80, 30)
    state = model.init_state(seed=3)
    _, first = model.step(mel, state)
    once, again = (model.step(mel, first)[0] for _ in range(2))
    assert torch.equal(once, again)
    sizes = set()
    for _ in range(3):
        _, first = model.step(mel, first)
        sizes.add(sum(tensor.numel() for tensor in first.layers.values()))
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in first.layers.values())
    assert len(sizes) == 1


def test_refusals(model: HiFTNetModel) -> None:
    mel = random_mel(1, 80, 2)
    _, ended = model.step(mel, model.init_state(), last=True)
    refused(ConfigError, "has ended", model.step, mel, ended)
    refused(ConfigError, "stream of 2", lambda: model.step(mel, model.init_state(2)))
    refused(AudioError, "without any frame", lambda: model.step(mel[..., :0], model.init_state(), last=True))
    refused(AudioError, "NaN", lambda: model.step(mel * torch.nan, model.init_state()))
    published = HiFTNetModel(replace(REDUCED, arithmetic="published"))
    refused(ConfigError, "cannot be streamed", published.init_state)


def test_no_seams_on_speech(model: HiFTNetModel) -> None:
    """Log spectra at chunk borders are as far from those of the whole as elsewhere: not at all."""
    speech, _ = audio.load(files("vokens") / "samples" / "english.flac", 24000)
    mel = LogMel(MEL_24K_80)(torch.from_numpy(speech[None, 24000:48000]))
    whole = model.inference(mel, seed=1)[0]
    joined = torch.cat(stream(model, mel, [10, 10, 10, 10, 10], [1]), -1)
    bands = LogMel(replace(MEL_24K_80, f_max=None))
    off = (bands(joined) - bands(whole)).abs().mean(1)[0]
    assert off.max() < 1e-3
