"""DAC-VAE's training: published losses and discriminators, resuming, processes, latents' statistics, what opens."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import speechlike
from golden.weights import fill_
from safetensors.torch import load_file
from training import (
    bfloat16_follows_float32,
    next_step_after_resuming,
    write_recipe,
    write_speech,
)

import vokens
from vokens.checkpoint import load_strict
from vokens.errors import ConfigError
from vokens.models.dacvae import DACVAE
from vokens.nn.discriminators import PUBLISHED_NAMES, BandDiscriminator, DACDiscriminator
from vokens.train import losses as L
from vokens.train.config import read_recipe
from vokens.train.tasks.dacvae import VAETrainer

RATE = 24000
GOLDEN = Path(__file__).parents[1] / "golden/learnable/dacvae_losses.safetensors"
RECIPE = """
task = "dacvae"
name = "tiny"
steps = 3
ema = 0.9
threads = 1
log_every = 1
validate_every = 3
save_every = 100
mel_windows = [256, 1024]
[model]
network = "stft"
latent_dim = 6
width = 32
expansion = 2
encoder_layers = 1
decoder_layers = 1
[data]
seconds = 0.12
batch_size = 2
[discriminators]
divisor = 32
channels = 2
windows = [512]
start = 2
[optim]
learning_rate = 2e-3
betas = [0.8, 0.99]
schedule = "constant"
[losses]
mel = 1.0
spectrum = 1.0
kl = 1e-3
adversarial = 0.1
feature = 0.1
"""
DAC = (
    "model={latent_dim=6, encoder_dim=2, encoder_rates=[8, 60], decoder_dim=16, decoder_rates=[60, 8], "
    "conv_slope=0.1}"
)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("speech"), RATE)


@pytest.fixture
def recipe(speech: Path, tmp_path: Path) -> Path:
    return write_recipe(tmp_path, RECIPE, speech)


def trainer_for(recipe: Path, *changes: str) -> VAETrainer:
    return VAETrainer(read_recipe(recipe, changes))


# What was published


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
        "loss_d": L.least_squares_discriminator(real, fake),
        "loss_g": L.least_squares_generator(fake),
        "loss_feat": L.feature_matching(real_maps, fake_maps) / 2,
    }.items():
        torch.testing.assert_close(value, golden[name], rtol=1e-5, atol=0)


def test_recorded_losses(golden: dict[str, torch.Tensor]) -> None:
    x, x_hat = golden["x"], golden["x_hat"]
    mel = L.MelLoss(L.dac_scales(RATE), [1.0] * 7)
    torch.testing.assert_close(torch.stack(mel.per_scale(x_hat, x)), golden["mel_loss.per_window"])
    for name, value in {
        "mel_loss": mel(x_hat, x),
        "stft_loss": L.LinearSTFTLoss()(x_hat, x),
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


# Learning


@pytest.mark.parametrize("network", ["stft", DAC])
def test_speech_is_learned(recipe: Path, network: str) -> None:
    changes = [] if network == "stft" else [network]
    trainer = trainer_for(recipe, "discriminators.start=1000", "optim.learning_rate=5e-3", *changes)
    found = [trainer.train_step() for _ in range(20)]
    early, late = (np.mean([f["mel"] for f in part]) for part in (found[:5], found[-5:]))
    assert late < 0.75 * early


PULSES = ("model.pulses=true", "model.latent_dim=20", "losses={mel=1.0, kl=0.0}")


def test_a_decoder_of_pulses_goes_on_from_their_vocoder(recipe: Path) -> None:
    trainer = trainer_for(recipe, *PULSES, "optim.learning_rate=2e-3", "optim.warmup=1")
    losses = [trainer.train_step()["mel"] for _ in range(30)]
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    trainer.export()
    model = DACVAE.from_pretrained(trainer.out / "model")
    again = trainer_for(recipe, *PULSES, f"init={trainer.out / 'model'}")
    assert all(torch.equal(value, again.final_state()[name]) for name, value in model.state_dict().items())


def test_both_turns_teach_their_own_network(recipe: Path) -> None:
    trainer = trainer_for(recipe, "discriminators.start=0", "losses={mel=0.0, kl=0.0, adversarial=1.0}")
    assert trainer.discriminators is not None
    judges = {k: v.clone() for k, v in trainer.discriminators.state_dict().items()}
    network = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    first = trainer.train_step()
    assert any(not torch.equal(judges[k], v) for k, v in trainer.discriminators.state_dict().items())
    assert any(not torch.equal(network[k], v) for k, v in trainer.model.state_dict().items())
    found = [trainer.train_step() for _ in range(8)]
    assert found[-1]["discriminator"] < first["discriminator"]


@pytest.mark.parametrize("network", ["stft", DAC])
def test_bfloat16_follows_float32(recipe: Path, network: str) -> None:
    change = network if network == DAC else "model.prior_layers=2"
    bfloat16_follows_float32(partial(trainer_for, recipe), change, "discriminators.start=0")


@pytest.mark.parametrize("changes", [(), ("model.prior_layers=2", "model.prior_width=8")])
def test_resuming_gives_the_identical_next_loss(recipe: Path, changes: tuple[str, ...]) -> None:
    changes = ("accumulate=2", "discriminators.seconds=0.06", *changes)
    found = next_step_after_resuming(
        lambda: trainer_for(recipe, *changes), 3
    )  # the discriminators have begun
    assert {"discriminator", "adversarial", "feature", "kl"} <= found.keys()


def test_two_processes_see_the_rows_of_one(recipe: Path) -> None:
    one, two = trainer_for(recipe, "data.batch_size=4"), trainer_for(recipe)
    whole, noise = one.train.batch(3), one._noise(3, 6)
    for rank in range(2):
        rows = slice(2 * rank, 2 * rank + 2)
        torch.testing.assert_close(two.train.batch(3, rank, 2).wave, whole.wave[rows], atol=0, rtol=0)
        two.world, two.rank = 2, rank
        torch.testing.assert_close(two._noise(3, 6), noise[rows], atol=0, rtol=0)


def test_the_divergence_takes_its_weight_slowly(recipe: Path) -> None:
    trainer = trainer_for(recipe, "kl_warmup=4", "losses={mel=0.0, kl=2.0}")
    for step in range(6):
        trainer.step = step
        total, values = trainer.micro_step(0)
        torch.testing.assert_close(total, values["kl"] * 2 * min(1.0, (step + 1) / 4))


def test_the_trained_model_opens_with_the_statistics_of_its_latents(recipe: Path, tmp_path: Path) -> None:
    trainer = trainer_for(recipe)
    trainer.run()
    model = vokens.load(tmp_path / "run" / "model")
    assert isinstance(model, DACVAE)
    assert (model.name, model.hop_length, model.frame_rate) == ("tiny", 480, 50.0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"valid/mel", "valid/kl", "valid/active"} <= lines[-1].keys()
    clips = [model.encode(speechlike(9600, seed=i, sample_rate=RATE), RATE).values[0] for i in range(3)]
    numbers = (torch.cat(clips, 1) - torch.tensor(model.config.mean)[:, None]) / torch.tensor(
        model.config.std
    )[:, None]
    assert numbers.mean().abs() < 0.5
    assert 0.5 < numbers.std() < 2
    again = trainer_for(recipe, f"init={tmp_path / 'run' / 'model'}")
    state = DACVAE.fold(again.model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, atol=1e-6, rtol=1e-6)


# Settings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("losses={mel=1.0}", "losses.kl"),
        ("losses={kl=1.0}", "spectral loss"),
        ("losses={kl=1.0, mel=1.0, beauty=1.0}", "beauty"),
        ("model.network=rnn", "dac and stft"),
        ("kl=free", "published"),
        ("system=mini", "dacvae"),
    ],
)
def test_bad_settings_are_named(recipe: Path, change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        trainer_for(recipe, change)
