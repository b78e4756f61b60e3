"""Streams of the vocoder give what the whole mel gives, for any chunks, in constant memory."""

from dataclasses import replace

import pytest
import torch
from test_hift import REDUCED, build, random_mel

from vokens.models.s3gen.hift import HiFTNetModel


@pytest.fixture(scope="module", params=["v1", "v2"])
def model(request: pytest.FixtureRequest) -> HiFTNetModel:
    return build(replace(REDUCED, source=request.param))


def stream(model: HiFTNetModel, mel: torch.Tensor, chunks: list[int], seeds: list[int]) -> list[torch.Tensor]:
    state, waves, start = model.init_state(len(mel), seeds), [], 0
    for i, size in enumerate(chunks):
        wave, state = model.step(mel[..., start : start + size], state, last=i == len(chunks) - 1)
        waves.append(wave)
        start += size
    assert start == mel.shape[-1]
    return waves


@pytest.mark.parametrize(
    "chunks", [[1] * 26, [13, 0, 13], [26], [26, 0], [0, 26], [2, 24], [21, 4, 1], [3, 7, 11, 5]]
)
def test_equals_the_whole(model: HiFTNetModel, chunks: list[int]) -> None:
    mel, seeds = random_mel(2, 80, 26), [5, 9]
    whole = model.inference(mel, seed=seeds)[0]
    joined = torch.cat(stream(model, mel, chunks, seeds), -1)
    torch.testing.assert_close(joined, whole, atol=1e-5, rtol=0)


def test_one_frame(model: HiFTNetModel) -> None:
    mel = random_mel(1, 80, 1)
    joined = torch.cat(stream(model, mel, [1], [0]), -1)
    torch.testing.assert_close(joined, model.inference(mel, seed=0)[0], atol=1e-5, rtol=0)
