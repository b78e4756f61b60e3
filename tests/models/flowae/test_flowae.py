"""The flow-matching autoencoder: spectra there and back, seeds, steps; and its training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import refused, seeded, speechlike
from training import STFT, Build

import vokens
from vokens.errors import ConfigError, TokensError
from vokens.models.dacvae import DACVAE
from vokens.models.flowae import FlowAE, FlowAEConfig
from vokens.models.flowae.network import Spectra, velocity

TASK, RATE = "flow_autoencoder", 24000


@pytest.fixture(scope="module")
def model() -> FlowAE:
    torch.manual_seed(0)
    config = FlowAEConfig(**STFT, n_fft=240, width=16, flow_width=16, flow_layers=2, kernel_size=5, steps=2)
    return FlowAE(config).eval().requires_grad_(False)


def test_spectra_come_back_as_the_wave() -> None:
    wave = torch.from_numpy(speechlike(4800, sample_rate=RATE)).float()[None]
    spectra = Spectra(120, 0.3)
    spectra.fit(wave)
    features = spectra.of_speech(wave)
    assert features.shape == (1, 40, spectra.channels)
    assert features.square().mean() == pytest.approx(1, rel=0.05)
    inner = slice(120, -120)  # the ends have fewer windows over them
    torch.testing.assert_close(spectra.to_speech(features)[:, inner], wave[:, inner], atol=1e-4, rtol=1e-3)


def test_noise_has_a_deviation_of_one() -> None:
    white = torch.randn(1, 24000, generator=seeded(0))
    noise = Spectra(120, 0.3).of_noise(white)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise[:, 2:-2].std() == pytest.approx(1, rel=0.02)


def test_velocity_leads_to_the_clean_spectra() -> None:
    x, clean, t = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([0.0, 0.5])
    torch.testing.assert_close(x + (1 - t)[:, None, None] * velocity(clean, x, t), clean)


def test_seed_and_steps_decide(model: FlowAE) -> None:
    latents = model.encode(speechlike(1500, sample_rate=RATE), RATE)
    (wave,) = model.decode(latents)
    np.testing.assert_array_equal(wave, model.decode(latents, steps=2)[0])
    assert not np.array_equal(wave, model.decode(latents, seed=1)[0])
    assert not np.array_equal(wave, model.decode(latents, steps=3)[0])
    refused(ConfigError, "at least 1", model.decode, latents, steps=0)
    refused(TokensError, "other weights", lambda: model.decode(replace(latents, fingerprint="0" * 16)))


def test_the_flow_is_learned(trainer_for: Build) -> None:
    trainer = trainer_for("optim.learning_rate=1e-2", "augment=0.0")

    def loss_of_the_same_draws() -> float:
        done, trainer.step = trainer.step, 1000
        losses = [float(trainer.micro_step(part)[0].detach()) for part in range(6)]
        trainer.step = done
        return float(np.mean(losses))

    before = loss_of_the_same_draws()
    for _ in range(25):
        trainer.train_step()
    assert loss_of_the_same_draws() < 0.8 * before


def test_the_encoder_stays_or_learns(trainer_for: Build, data_of: Build) -> None:
    vae = DACVAE.from_pretrained(data_of(TASK)["autoencoder"])
    trainer = trainer_for()
    trainer.train_step()
    for name in ("encoder", "posterior"):
        for key, value in vae.get_submodule(name).state_dict().items():
            torch.testing.assert_close(
                trainer.model.get_submodule(name).state_dict()[key], value, rtol=0, atol=0
            )
    assert trainer.model.flow.spread.tolist() == [2.0] * 6
    sizes = "model={network='stft', latent_dim=6, n_fft=240, width=16, flow_width=32, flow_layers=1}"
    both = trainer_for("autoencoder=", "losses={flow=1.0, kl=0.01}", sizes)
    before = both.model.posterior.weight.detach().clone()
    values = both.train_step()
    assert {"flow", "kl"} <= values.keys()
    assert not torch.equal(both.model.posterior.weight, before)


def test_disturbed_crops_learn_noisier_times_alone(trainer_for: Build) -> None:
    trainer = trainer_for("augment=0.5", "data.batch_size=64")
    draws = trainer._draws(0)
    disturbed = draws.share > 0
    assert 0.3 < disturbed.float().mean() < 0.7
    assert (draws.time <= 1 - draws.share).all()
    assert not trainer_for("augment=0.0")._draws(0).share.any()


def test_two_processes_see_the_rows_of_one(trainer_for: Build) -> None:
    one, two = trainer_for("data.batch_size=4"), trainer_for()
    whole = one._draws(3)
    for rank in range(2):
        two.world, two.rank = 2, rank
        for mine, all_rows in zip(two._draws(3), whole, strict=True):
            torch.testing.assert_close(mine, all_rows[2 * rank : 2 * rank + 2], atol=0, rtol=0)


def test_the_trained_model_decodes(finished: Build) -> None:
    model = vokens.load(finished(TASK).out / "model")
    assert len(model.config.mean) == 6
    clip = speechlike(3000, sample_rate=RATE)
    (wave,) = model.decode(model.encode(clip, RATE), steps=4)
    assert wave.shape == clip.shape
