"""DAC-VAE: the published networks' outputs, whole frames; ragged batches as singles and windows as the whole, of the
flow autoencoder too.
"""

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import close, refused, seeded
from golden.weights import fill_
from safetensors.torch import load_file

import vokens
from vokens import audio
from vokens.bench.metrics import stoi
from vokens.errors import AudioError, CheckpointError, ConfigError, TokensError
from vokens.models.dacvae import DACVAE, DACVAEConfig, Latents
from vokens.models.dacvae import model as module
from vokens.models.dacvae import pulses as sources
from vokens.models.dacvae.cepstra import Cepstra
from vokens.models.dacvae.prior import FlowPrior
from vokens.models.dacvae.pulses import Pulses, turns_of
from vokens.models.flowae import FlowAE, FlowAEConfig
from vokens.models.learnable.decoder import decode_stream
from vokens.train.losses import kl_flow

GOLDEN = Path(__file__).parents[2] / "golden/learnable"
CASES = json.loads((GOLDEN / "config.json").read_text())["dacvae"]
TINY = ("dacvae64_tiny", "dacvae80_tiny")


def build(case: str, overrides: str = "overrides") -> DACVAE:
    """The network of a golden case, through its published names."""
    facts = CASES["cases"][case]
    sizes = facts["config"]
    names = ("encoder_dim", "encoder_rates", "latent_dim", "decoder_dim", "decoder_rates")
    values = {name: tuple(x) if isinstance(x := sizes[name], list) else x for name in names}
    config = DACVAEConfig(**values, conv_slope=0.1)
    state = fill_(DACVAE(config).to_published(), CASES["salt"])
    for name, value in state.items():
        rule = next((rule for rule in facts[overrides] if re.search(rule["pattern"], name)), None)
        if rule:
            value.mul_(rule.get("mul", 1.0)).add_(rule.get("add", 0.0))
    return DACVAE.from_published(state)


@pytest.fixture(scope="module", params=TINY)
def case(request):
    return build(request.param), load_file(GOLDEN / f"{request.param}.safetensors")


def test_latents_of_no_frames_are_empty_waves_and_print_in_one_line(case):
    model, _ = case
    latents = model.encode(np.zeros(model.hop_length * 3, np.float32), model.sample_rate)
    none = replace(latents, values=latents.values[..., :0], lengths=latents.lengths * 0)
    assert [wave.shape for wave in model.decode(none)] == [(0,)]
    assert repr(latents).startswith(f"Latents({model.name!r}, 1 item, ")
    assert "\n" not in repr(latents)
    refused(TokensError, "a Tensor was given to decode", model.decode, latents.values)


@torch.inference_mode()
def matches(model, golden, decoded="decode", prefix=""):
    """Posterior of the recorded wave and the decoder's wave of its mean."""
    mean, log_std = model.posterior_of(golden[f"{prefix}x"])
    close(mean, golden[f"{prefix}mu"])
    close(log_std, golden[f"{prefix}logs"])
    close(model.decoder(golden[f"{prefix}mu"]), golden[f"{prefix}{decoded}"], 5e-5)
    return mean, log_std


@torch.inference_mode()
def test_posterior_and_decoder_match(case):
    """Of the recorded wave, and of those of lengths around the hop."""
    model, golden = case
    mean, log_std = matches(model, golden, "decode_mu")
    close(mean + golden["eps"] * log_std.exp(), golden["z"])
    close(model.decoder(golden["z"]), golden["decode_z"], 5e-5)
    for name in sorted({key.split(".")[0] for key in golden if key.startswith("len")}):
        matches(model, golden, prefix=f"{name}.")


def test_frames_of_every_length(case):
    model, golden = case
    law = golden["frames_for_length_1_up"]
    for samples, frames in list(enumerate(law.tolist(), 1))[310::7]:
        if frames > 0:
            assert model.posterior_of(torch.zeros(1, 1, samples))[0].shape[2] == frames


def test_whole_frames_as_the_published_forward_has_them(case):
    """The published forward fills up to whole frames first; so does encode, for every length."""
    model, golden = case
    wave = golden["x"][:, 0].numpy()
    latents = model.encode(list(wave), model.sample_rate)
    close(latents.values, golden["forward.mu"])
    with torch.inference_mode():
        _, log_std = model.encode_batch(golden["x"][:, 0], latents.num_samples)
        z = latents.values + golden["forward.eps"] * log_std.exp()
    drawn = replace(latents, values=z)
    close(torch.from_numpy(np.stack(model.decode(drawn))), golden["forward.audio"][:, 0], 5e-5)
    for samples in (1, 311, model.hop_length, model.hop_length + 1):
        short = model.encode(np.zeros(samples, np.float32), model.sample_rate)
        assert short.lengths.tolist() == [-(-samples // model.hop_length)]
        assert len(model.decode(short)[0]) == samples


@pytest.mark.parametrize("name", TINY)
def test_both_clamps(name):
    model, golden = build(name, "clamp_overrides"), load_file(GOLDEN / f"{name}.safetensors")
    with torch.inference_mode():
        mean, log_std = model.posterior_of(golden["trace.x"])
    close(mean, golden["clamp.mu"], 1e-4)
    close(log_std, golden["clamp.logs"], 1e-4)
    assert log_std.abs().max() == 14


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dacvae64_full", "dacvae80_full"])
def test_released_sizes_match(name):
    model, golden = build(name), load_file(GOLDEN / f"{name}.safetensors")
    assert model.name in module.RELEASES
    matches(model, golden, "decode_mu")


def test_published_names_come_back(case, tmp_path):
    model, _ = case
    state = model.to_published()
    torch.save({"generator": state}, tmp_path / "any.pt")
    again = vokens.load(tmp_path / "any.pt")
    assert again.config == model.config
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-6, atol=1e-7)
    clean = DACVAE(replace(model.config, conv_slope=1.0))
    refused(CheckpointError, r"conv_slope = 1.0: save this model", clean.to_published)


LIGHT = {"network": "stft", "latent_dim": 6, "width": 32, "expansion": 2}
LIGHT |= {"encoder_layers": 2, "decoder_layers": 2}


@pytest.fixture(scope="module", params=[*TINY, "stft", "pulses", "flowae"])
def network(request):
    if request.param in TINY:
        return build(request.param)
    torch.manual_seed(0)
    if request.param == "flowae":
        return FlowAE(FlowAEConfig(**LIGHT, flow_width=16, flow_layers=2, kernel_size=5, steps=2)).freeze()
    more = {"pulses": True, "latent_dim": 20} if request.param == "pulses" else {}
    return DACVAE(DACVAEConfig(**LIGHT | more)).freeze()


def waves(model, *frames):
    generator = seeded(3)
    sizes = [int(count * model.hop_length) for count in frames]
    return [torch.randn(size, generator=generator).mul(0.1).numpy() for size in sizes]


def near(model, one, other):
    """Pulses take a rounding of the pitch times the time that has passed, times their harmonics."""
    share = 1e-5 * np.abs(other).max() if model.system == "flowae" else 1e-6
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3 if model.config.pulses else share)


def test_ragged_batch_equals_singles(network):
    model = network
    clips = waves(model, 7.3, 2.0, 11.9, 0.4)
    together = model.encode(clips, model.sample_rate)
    again = model.decode(together)
    for row, clip in enumerate(clips):
        alone = model.encode(clip, model.sample_rate)
        frames = int(alone.lengths[0])
        torch.testing.assert_close(together.values[row, :, :frames], alone.values[0], rtol=1e-5, atol=1e-6)
        assert (together.values[row, :, frames:] == 0).all()
        near(model, again[row], model.decode(alone)[0])


def test_windows_equal_the_whole(network, monkeypatch):
    model = network
    clips = waves(model, 150.2, 90.0)
    whole = model.encode(clips, model.sample_rate)
    monkeypatch.setattr(module, "WINDOW_SECONDS", 20 / model.frame_rate)
    pieces = model.encode(clips, model.sample_rate)
    torch.testing.assert_close(pieces.values, whole.values, rtol=1e-5, atol=1e-6)
    sound = model.decode(whole)
    monkeypatch.setattr(module, "WINDOW_SECONDS", 1e6)
    for one, other in zip(sound, model.decode(whole), strict=True):
        near(model, one, other)


def test_draws_follow_their_generator(network):
    model = network
    clip = waves(model, 5)[0]
    one, same = (model.encode(clip, model.sample_rate, generator=seeded(1)) for _ in range(2))
    other = model.encode(clip, model.sample_rate, generator=seeded(2))
    assert torch.equal(one.values, same.values)
    assert not torch.equal(one.values, other.values)


def test_folder_and_latents_survive_disk(network, tmp_path):
    model = network
    again = vokens.load(model.save_pretrained(tmp_path / "vae"))
    clip = waves(model, 4.5)[0]
    latents = again.encode(clip, model.sample_rate)
    latents.save(tmp_path / "hello.lat")
    read = Latents.load(tmp_path / "hello.lat")
    np.testing.assert_array_equal(again.decode(read)[0], again.decode(latents)[0])


def test_folders_that_name_a_retired_setting_open(tmp_path):
    model = DACVAE(DACVAEConfig(**LIGHT)).eval()
    path = model.save_pretrained(tmp_path / "vae") / "config.json"
    for phase in (True, False):  # as commits wrote that could leave it out of latents
        facts = json.loads(path.read_text())
        facts["config"]["phase"] = phase
        path.write_text(json.dumps(facts))
        if phase:
            assert vokens.load(path.parent).fingerprint == model.fingerprint
            continue
        refused(ConfigError, "phase = False is no longer built: True is accepted", vokens.load, path.parent)


def test_clear_errors(case, tmp_path):
    model, _ = case
    refused(AudioError, "sample_rate=", lambda: model.encode(np.zeros(1000, np.float32)))
    refused(ConfigError, "samples to a frame", DACVAEConfig, encoder_rates=(2, 3))
    latents = model.encode(waves(model, 2)[0], model.sample_rate)
    narrow = replace(latents, values=latents.values[:, :3], fingerprint="")
    refused(TokensError, "numbers", model.decode, narrow)
    (tmp_path / "no.lat").write_bytes(b"nothing")
    refused(TokensError, r"Latents\.save", Latents.load, tmp_path / "no.lat")
    refused(ConfigError, "'dac', 'stft' are accepted", DACVAEConfig, network="rnn")
    refused(ConfigError, "must be even", DACVAEConfig, latent_dim=7, prior_layers=4)
    for changes in ({"network": "dac"}, {"latent_dim": 4}, {"latent_dim": 85}, {"prior_layers": 2}):
        sizes = {"network": "stft", "latent_dim": 40, "pulses": True} | changes
        refused(ConfigError, "5 to 84", DACVAEConfig, **sizes)


def test_pulses_are_harmonics_at_one_level_and_phases_go_on_from_step_to_step(monkeypatch):
    monkeypatch.setattr(sources, "NOISE", 0.0)
    source = Pulses(240, 24000)
    frequency = torch.tensor([[0.0] * 10 + [200.0] * 90])
    turns = turns_of(frequency, 240, 24000)
    wave = source(frequency, turns)[0]
    assert float(wave[:2400].square().mean().sqrt()) == pytest.approx(1.0, rel=0.05)
    assert float(wave[2400:].square().mean().sqrt()) == pytest.approx(1.0, rel=0.01)
    levels = torch.fft.rfft(wave[2400:].double()).abs() / 10800  # bins are 24000 / 21600 Hz apart
    harmonics = (torch.arange(1, 55) * 180).tolist()
    expected = (2 / 54) ** 0.5
    torch.testing.assert_close(levels[harmonics], torch.full((54,), expected).double(), rtol=1e-3, atol=0)
    levels[harmonics] = 0
    assert levels.max() < 1e-3
    assert torch.equal(source(frequency[:, 5:], turns[:, 5:], 5)[0], wave[1200:])


@pytest.mark.parametrize("network", ["pulses"], indirect=True)
def test_the_last_latents_tell_the_pitch(network):
    time = torch.arange(24000) / 24000
    wave = 0.1 * sum((2 * torch.pi * 220 * k * time).sin() for k in range(1, 20)) * (time < 0.5)
    z = network.encode(wave.numpy(), 24000).values
    found = sources.hertz(z[:, -4:])[0]
    torch.testing.assert_close(found[5:45], torch.full((40,), 220.0), rtol=0.01, atol=0)
    assert (found[60:] == 0).all()
    torch.testing.assert_close(z[0, -4:-2, 5:], torch.full((2, 45), 0.5525), rtol=0, atol=0.03)


def test_a_decoder_of_pulses_is_a_vocoder_before_training():
    """Intelligible speech at its level from 36 cepstra and the pitch, of a decoder with its first weights."""
    torch.manual_seed(0)
    config = DACVAEConfig(network="stft", pulses=True, latent_dim=40, width=64, decoder_layers=2)
    model = DACVAE(config).eval()
    recording = files("vokens") / "samples/english.flac"
    latents = model.encode(recording)
    wave, _ = audio.load(recording, 24000)
    (speech,) = model.decode(latents)
    at_16k = (audio.resample(each, 24000, 16000) for each in (wave, speech))
    assert stoi(*at_16k) > 0.88  # .94 with these weights
    assert float(np.square(speech).mean() / np.square(wave).mean()) == pytest.approx(1.0, abs=0.4)
    assert 0.3 < float(latents.values[0].std(1).mean()) < 2


def test_cepstra_and_gain_are_inverse():
    torch.manual_seed(0)
    cepstra = Cepstra(20, 24000, 960, 2)
    source = cepstra.spectrum.spectra(torch.randn(1, 24000))
    target = torch.randn(1, 20, 50).cumsum(2) / 7  # slow, as speech is
    shaped = source * cepstra.gain(target, source).exp()
    assert float((cepstra.of(shaped) - target)[..., 2:-2].abs().mean()) < 0.15  # .06; targets vary by .7


def test_errors_of_cepstra_weigh_what_they_move_in_the_spectrum():
    sizes = {"network": "stft", "latent_dim": 20, "width": 16, "decoder_layers": 1}
    model = DACVAE(DACVAEConfig(pulses=True, **sizes))
    weights = model.weights
    assert weights[:16].mean() == pytest.approx(1)
    assert (weights[16:] == 1).all()
    cepstra = torch.zeros(1, 16, 1)
    moved = []
    for number in (1, 4, 15):  # an equal change of each number: how far the 80 bands move, RMS
        change = cepstra.clone()
        change[0, number] = 1.0
        bands = (change * model.encoder.scale).mT @ model.encoder.cosines
        moved.append(bands.square().mean().sqrt())
    torch.testing.assert_close(weights[[1, 4, 15]] / weights[1], torch.stack(moved) / moved[0])
    assert DACVAE(DACVAEConfig(**sizes)).weights is None


def stirred(layers: int = 4) -> FlowPrior:
    """A prior away from its start at the identity."""
    torch.manual_seed(1)
    prior = FlowPrior(6, 8, layers)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return prior.double().eval().requires_grad_(False)


def test_flow_prior_is_invertible_and_keeps_volume():
    prior, z = stirred(), torch.randn(1, 6, 5, dtype=torch.float64)
    flowed = prior(z)
    assert (flowed - z).abs().max() > 0.5
    torch.testing.assert_close(prior.inverse(flowed), z)
    jacobian = torch.autograd.functional.jacobian(prior, z).reshape(30, 30)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], torch.zeros((), dtype=torch.float64))


def test_flow_prior_starts_as_the_plain_one():
    torch.manual_seed(0)
    z, log_std = torch.randn(2, 6, 9), torch.randn(2, 6, 9)
    torch.testing.assert_close(kl_flow(FlowPrior(6, 8, 4)(z), log_std), kl_flow(z, log_std))


def test_flow_prior_of_a_ragged_batch_is_that_of_singles():
    prior, z = stirred(), torch.randn(2, 6, 9, dtype=torch.float64)
    lengths = torch.tensor([9, 4])
    together = prior(z, lengths)
    torch.testing.assert_close(together[1:, :, :4], prior(z[1:, :, :4]))
    torch.testing.assert_close(prior.inverse(together, lengths)[1, :, :4], z[1, :, :4])


def test_flow_prior_relaxes_the_prior():
    """Latents that follow one another are not normal; trained on them, the flow finds a nearer normal."""
    generator = seeded(0)
    torch.manual_seed(0)
    prior = FlowPrior(2, 16, 4)
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        x = torch.randn(32, 1, 8, generator=generator)
        z = torch.cat([x, x.square() + 0.1 * torch.randn(32, 1, 8, generator=generator)], 1)
        loss = kl_flow(prior(z), torch.zeros_like(z))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


def test_a_model_with_a_flow_prior_decodes_z(tmp_path):
    torch.manual_seed(0)
    model = DACVAE(DACVAEConfig(**LIGHT, prior_layers=2)).eval()
    wave, noise = 0.1 * torch.randn(1, 960), torch.zeros(1, 6, 2)
    output = model(wave, noise)
    assert output.flowed is not None
    torch.testing.assert_close(output.wave, model.decoder(output.mean)[:, 0])
    again = vokens.load(model.save_pretrained(tmp_path / "vae"))
    torch.testing.assert_close(again(wave, noise).flowed, output.flowed.detach())


@torch.inference_mode()
@pytest.mark.parametrize("network", [*TINY, "stft", "pulses"], indirect=True)
@pytest.mark.parametrize("sizes", [[1] * 40, [7, 1, 20, 12], [40]])
def test_latents_in_pieces_are_decoded_as_at_once(network, sizes):
    """Pulses go on in phase, and noise by its place."""
    z = torch.randn(network.config.latent_dim, 40, generator=seeded(0))
    whole = network.decode_batch(z[None], torch.tensor([40]))[0].numpy()
    pieces = list(decode_stream(network, z.split(sizes, 1)))
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-3 * np.abs(whole).max())
