"""DAC-VAE's training: published losses and discriminators, resuming, processes, latents' statistics, what opens."""

from pathlib import Path

import pytest
import torch
from conftest import speechlike
from golden.weights import fill_
from safetensors.torch import load_file
from test_discriminators import PUBLISHED_NAMES
from training import PULSES, Build

import vokens
from vokens.checkpoint import load_strict
from vokens.models.dacvae import DACVAE
from vokens.nn.discriminators import BandDiscriminator, DACDiscriminator
from vokens.train import losses as L

TASK, RATE = "dacvae", 24000
GOLDEN = Path(__file__).parents[1] / "golden/learnable/dacvae_losses.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def test_recorded_judgement(golden: dict[str, torch.Tensor]) -> None:
    judge = DACDiscriminator(8, 4)
    state = fill_(PUBLISHED_NAMES["dac"].to_published(judge.state_dict()), "golden")
    load_strict(judge, PUBLISHED_NAMES["dac"].to_ours(state), "golden")
    with torch.no_grad():
        real, real_maps = judge(golden["x"])
        fake, fake_maps = judge(golden["x_hat"])
        view = judge.views(golden["x"])[0]
        band = judge.discriminators[5]
        assert isinstance(band, BandDiscriminator)
        spectrum = band.spectrum(view)[..., : band.edges[1]]
    torch.testing.assert_close(view[..., :256], golden["preprocessed"], rtol=0, atol=1e-6)
    torch.testing.assert_close(spectrum[:1, :, :2], golden["mrd2048.spec_band0"], rtol=1e-5, atol=2e-5)
    for i in range(8):
        for kind, logits in (("real", real), ("fake", fake)):
            wanted = golden[f"{i}.last_{kind}"].flatten()
            assert (logits[i][0] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        for kind, find in (("abs_mean", lambda m: m.abs().mean()), ("std", lambda m: m.std(correction=0))):
            found = torch.stack([find(feature) for feature in real_maps[i]])  # without the logits
            wanted = golden[f"{i}.fmap_{kind}"][: len(found)]
            torch.testing.assert_close(found, wanted, rtol=2e-5, atol=0)
    for name, value in {
        "loss_d": L.ADVERSARIAL["least_squares"].discriminator(real, fake),
        "loss_g": L.ADVERSARIAL["least_squares"].generator(fake),
        "loss_feat": L.feature_matching(real_maps, fake_maps) / 2,
    }.items():
        torch.testing.assert_close(value, golden[name], rtol=1e-5, atol=0)


def test_recorded_losses(golden: dict[str, torch.Tensor]) -> None:
    x, x_hat = golden["x"], golden["x_hat"]
    mel = L.dac_mel(RATE)
    torch.testing.assert_close(torch.stack(mel.per_scale(x_hat, x)), golden["mel_loss.per_window"])
    for name, value in {
        "mel_loss": mel(x_hat, x),
        "stft_loss": L.linear_stft_loss(x_hat, x),
        "waveform_loss": L.wave_l1(x_hat, x),
        "kl.correct": L.kl_normal(golden["kl.mu"], golden["kl.logs"]),
        "kl.reference": L.kl_published(golden["kl.mu"], golden["kl.logs"]),
    }.items():
        torch.testing.assert_close(value, golden[name], rtol=1e-5, atol=0)


def test_published_discriminator_names_and_size() -> None:
    with torch.device("meta"):
        state = DACDiscriminator().state_dict()
    assert (len(state), sum(value.numel() for value in state.values())) == (324, 42_519_760)
    published = PUBLISHED_NAMES["dac"].to_published(state)
    assert "discriminators.5.band_convs.4.3.0.weight_g" in published
    assert "discriminators.0.convs.4.0.bias" in published
    assert "discriminators.7.conv_post.weight_v" in published


def test_divergence_by_one_sample_is_the_closed_form_on_average() -> None:
    """With f the identity; and both are 0 for a normal posterior."""
    generator = torch.Generator().manual_seed(0)
    mean, log_std = 0.5 * torch.randn(1, 2, 1, generator=generator), torch.tensor([[[-1.0], [0.3]]])
    z = mean + log_std.exp() * torch.randn(1, 2, 20000, generator=generator)
    assert L.kl_flow(z, log_std.expand_as(z)) == pytest.approx(float(L.kl_normal(mean, log_std)), rel=0.03)
    assert L.kl_normal(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)) == 0


def test_a_decoder_of_pulses_goes_on_from_their_vocoder(trainer_for: Build) -> None:
    trainer = trainer_for(*PULSES)
    trainer.train_step()
    trainer.export()
    model = DACVAE.from_pretrained(trainer.out / "model")
    again = trainer_for(*PULSES, f"init={trainer.out / 'model'}")
    assert all(torch.equal(value, again.final_state()[name]) for name, value in model.state_dict().items())


def test_the_divergence_takes_its_weight_slowly(trainer_for: Build) -> None:
    trainer = trainer_for("kl_warmup=4", "losses={mel=0.0, kl=2.0}")
    for step in range(6):
        trainer.step = step
        total, values = trainer.micro_step(0)
        torch.testing.assert_close(total, values["kl"] * 2 * min(1.0, (step + 1) / 4))


def test_the_trained_model_has_the_statistics_of_its_latents(finished: Build) -> None:
    model = vokens.load(finished(TASK).out / "model")
    assert (model.hop_length, model.frame_rate) == (480, 50.0)
    clips = [model.encode(speechlike(9600, seed=i, sample_rate=RATE), RATE).values[0] for i in range(3)]
    numbers = (torch.cat(clips, 1) - torch.tensor(model.config.mean)[:, None]) / torch.tensor(
        model.config.std
    )[:, None]
    assert numbers.mean().abs() < 0.5
    assert 0.5 < numbers.std() < 2
