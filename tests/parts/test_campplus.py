"""CAM++ against recorded outputs of the published code; a published state dict must fit name by name."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, seeded
from s3gen_weights import weight
from safetensors.torch import load_file

from vokens.bench.evaluators import SpeakerEvaluator
from vokens.errors import AudioError
from vokens.evaluator_files import find_evaluator
from vokens.nn import campplus
from vokens.nn.campplus import CAMPPlus

GOLDEN = load_file(Path(__file__).parents[1] / "golden/s3gen/campplus_full.safetensors")


@pytest.fixture(scope="module")
def model() -> CAMPPlus:
    model = CAMPPlus().eval()
    model.load_state_dict({k: weight(f"speaker_encoder.{k}", v) for k, v in model.state_dict().items()})
    return model


def features(stop: int, start: int = 0) -> torch.Tensor:
    return GOLDEN["features"][None, start:stop].float()


@pytest.mark.parametrize("frames", [3, 4, 5, 6, 7, 50, 51, 199, 200, 201, 202, 203])
@torch.inference_mode()
def test_recorded_features(model, frames):
    torch.testing.assert_close(model(features(frames)), GOLDEN[f"embedding/T{frames}"], atol=2e-5, rtol=0)


@torch.inference_mode()
def test_recorded_stages(model):
    seen = {}

    def keep(name):
        return lambda module, args, output: seen.update({name: output})

    stages = {name: module for name, module in model.xvector.named_children() if name != "dense"}
    hooks = [module.register_forward_hook(keep(name)) for name, module in stages.items()]
    hooks.append(model.head.register_forward_hook(keep("head")))
    model(features(201))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 10
    for name, value in seen.items():
        value = value[..., 0] if name == "stats" else value[:, ::16, ::12]
        torch.testing.assert_close(value, GOLDEN[f"stage_T201/{name}"], atol=2e-5, rtol=1e-5)


def test_recorded_waves_of_different_lengths(model):
    waves = [GOLDEN[f"wav/{i}"].float() / 32768 for i in (0, 1)] + [torch.zeros(4000)]
    recorded = [GOLDEN[f"wav_embedding/{name}"] for name in (0, 1, "silence")]
    torch.testing.assert_close(model.embed(waves), torch.cat(recorded), atol=2e-5, rtol=0)


@torch.inference_mode()
def test_ragged_batch_equals_single_runs(model):
    lengths = torch.tensor([203, 3, 101, 200, 50])
    batch = torch.full((5, 210, 80), 7.0)  # padding that would be heard
    for row, n in zip(batch, lengths, strict=True):
        row[:n] = features(n)[0]
    alone = torch.cat([model(features(n)) for n in lengths])
    torch.testing.assert_close(model(batch, lengths), alone, atol=2e-5, rtol=0)


def test_too_short(model):
    refused(AudioError, "720 samples", lambda: model.embed([torch.zeros(719)]))


def test_the_network_has_the_published_tensors():
    assert len(CAMPPlus().state_dict()) == 937


@pytest.mark.evaluators
def test_published_weights_fit_strictly():
    evaluator = SpeakerEvaluator(find_evaluator("campplus-zh-en"))
    assert evaluator.embed(np.zeros(16000, np.float32)).shape == (192,)


def test_long_recordings_in_pieces(model, monkeypatch):
    """Where frames are independent, an hour goes piece by piece: the embedding is the same."""
    draw = seeded(0)
    waves = [0.1 * torch.randn(n, generator=draw) for n in (9000, 5123)]
    whole = model.embed(waves)
    monkeypatch.setattr(campplus, "_FRAMES", 20)
    for batched in (False, True):
        torch.testing.assert_close(model.embed(waves, batched=batched), whole, atol=2e-5, rtol=0)


def test_merged_norms_change_nothing(model):
    waves = [0.1 * torch.randn(n, generator=seeded(n)) for n in (9000, 5123)]
    whole = model.embed(waves)
    merged = campplus.merge_norms(copy.deepcopy(model))
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in merged.modules())
    for batched in (False, True):
        torch.testing.assert_close(merged.embed(waves, batched=batched), whole, atol=5e-5, rtol=0)
