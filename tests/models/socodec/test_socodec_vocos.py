"""SoCodec's light vocoder: pieces and streams equal the whole, it takes BigVGAN's place in a codec, and learns."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import refused, seeded, speechlike
from torch.testing import assert_close
from training import RECIPES, Build, write_speech

import vokens
from vokens.errors import ConfigError
from vokens.models.socodec import SoCodec, SoCodecConfig, model

LIGHT = {"vocoder": "vocos", "vocoder_width": 24, "vocoder_layers": 2}
SIZES = SoCodecConfig(**RECIPES["socodec"]["model"] | LIGHT)


def codec(sizes: SoCodecConfig = SIZES) -> SoCodec:
    torch.manual_seed(0)
    return SoCodec(sizes).eval().requires_grad_(False)


def test_pieces_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    mel = torch.randn(80, 90, generator=seeded(0)) * 2.5 - 5
    whole = codec().vocode(mel)
    assert whole.shape == (90 * 160,)
    monkeypatch.setattr(model, "VOCODER_FRAMES", 17)
    assert_close(codec().vocode(mel), whole, rtol=0, atol=1e-6)


def test_a_sample_sees_as_far_as_is_said() -> None:
    vocoder, reach = codec().vocoder, codec().vocoder.reach
    mel = torch.zeros(1, 80, 80)
    changed = mel.clone()
    changed[..., 40] = 3.0
    moved = (vocoder(mel) != vocoder(changed))[0].nonzero()
    assert 40 - reach <= int(moved.min()) // 160 <= 40 <= int(moved.max()) // 160 <= 40 + reach
    assert int(moved.max()) // 160 >= 40 + reach - 1


def test_a_trained_codec_gets_another_vocoder(trainer: Build, tmp_path: Path) -> None:
    old = codec(dataclasses.replace(SIZES, vocoder="bigvgan", vocoder_width=32))
    old.save_pretrained(tmp_path / "old")
    vocos = 'model.vocoder="vocos"', "model.vocoder_width=24", "model.vocoder_layers=2"
    changes = f"init={tmp_path / 'old'}", *vocos, "steps=30", "vocoder_seconds=0.2", "data.batch_size=2"
    refused(ConfigError, "another vocoder", trainer, "socodec", *changes, "losses={mel=1.0}")
    speech = write_speech(tmp_path / "speech", 16000, (1.0,))
    alone = "losses={wave_mel=1.0, wave_stft=1.0}", f"data.train={speech}", "data.valid="
    plain = "ema=0.0", "fit_codebooks=0", "optim.betas=[0.9, 0.99]", "optim.schedule=cosine", "optim.clip=0.0"
    run = trainer("socodec", *changes, *alone, *plain, "optim.learning_rate=2e-3")
    losses = [run.train_step()["wave_mel"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    run.save()
    new = vokens.load(run.out / "codec")
    assert isinstance(new, SoCodec)
    tokens = old.encode(speechlike(8000, seed=3), 16000)
    assert torch.equal(new.encode(speechlike(8000, seed=3), 16000).codes, tokens.codes)
    assert tokens.global_vector is not None
    mels = [each.decode_mel(tokens.codes, tokens.global_vector) for each in (old, new)]
    assert torch.equal(*mels)
