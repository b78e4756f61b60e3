"""Discriminators: recorded logits and features, published names and sizes, spectral norm, widths."""

import json
from pathlib import Path

import pytest
import torch
from conftest import refused, seeded
from golden import weights
from safetensors.torch import load_file
from torch import Tensor, nn

from vokens.checkpoint import NameTable, load_strict
from vokens.errors import ConfigError
from vokens.nn.discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSTFTDiscriminator,
    SpectralNorm,
)
from vokens.train.losses import ADVERSARIAL, feature_matching

GOLDEN = Path(__file__).parents[1] / "golden" / "speechtokenizer"
BUILD = {
    "mpd": MultiPeriodDiscriminator,
    "msd": MultiScaleDiscriminator,
    "mstftd": MultiScaleSTFTDiscriminator,
}
TINY = {"mpd": 8, "msd": 8, "mstftd": 4}
NORM_NAMES = {  # of one convolution: published name -> ours
    "weight": {"weight_g": "original0", "weight_v": "original1"},
    "spectral": {"weight_orig": "original", "weight_u": "0.u", "weight_v": "0.v"},
}


def conv_names(conv: str, norm: str = "weight", wrapper: str = "") -> list[tuple[str, str]]:
    """Rows for a convolution; `wrapper` is a level that only the published layout has."""
    rows = [(f"{conv}{wrapper}.bias", f"{conv}.bias")]
    for published, ours in NORM_NAMES[norm].items():
        rows.append((f"{conv}{wrapper}.{published}", f"{conv}.parametrizations.weight.{ours}"))
    return rows


def names(stack: str, norm: str = "weight", wrapper: str = "") -> list[tuple[str, str]]:
    """Rows for the convolutions of a stack."""
    convs = (f"discriminators.{stack}.convs.{{i}}", f"discriminators.{stack}.conv_post")
    return [row for conv in convs for row in conv_names(conv, norm, wrapper)]


# Training checkpoints of SpeechTokenizer, by the names the discriminators have there, and of DAC-VAE.
PUBLISHED_NAMES = {
    "mpd": NameTable(names("{k}")),
    "msd": NameTable(names("0", "spectral") + names("1") + names("2")),
    "mstftd": NameTable(
        [
            ("discriminators.{k}.spec_transform.window", "discriminators.{k}.window"),
            ("discriminators.{k}.convs.0.conv.weight", "discriminators.{k}.convs.0.weight"),
            *names("{k}", wrapper=".conv"),
        ]
    ),
    "dac": NameTable(
        conv_names("discriminators.{k}.convs.{i}", wrapper=".0")
        + conv_names("discriminators.{k}.band_convs.{b}.{i}", wrapper=".0")
        + conv_names("discriminators.{k}.conv_post")
    ),
}


def fill(network: nn.Module, name: str, golden: dict[str, Tensor]) -> nn.Module:
    """Test weights by published names; windows keep their values, spectral vectors come from the file."""
    state = PUBLISHED_NAMES[name].to_published(network.state_dict())
    state = {key: value.clone() for key, value in state.items()}
    windows = {key: state.pop(key) for key in list(state) if key.endswith("window")}
    weights.fill_(state, f"golden/{name}")
    state.update(windows)
    prefix = f"{name}.buf/"
    state.update({key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)})
    load_strict(network, PUBLISHED_NAMES[name].to_ours(state), "golden")
    return network


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "disc_tiny.safetensors")


@pytest.mark.parametrize("name", BUILD)
def test_recorded_judgement(name: str, golden: dict[str, Tensor]) -> None:
    network = fill(BUILD[name](TINY[name]), name, golden).eval()
    with torch.no_grad():
        real, real_features = network(golden["x"])
        fake, fake_features = network(golden["x_hat"])
    for i in range(len(real)):
        for kind, logits in (("real", real), ("fake", fake)):
            wanted = golden[f"{name}.{i}.logit_{kind}"]
            assert logits[i][0].shape == wanted.shape
            assert (logits[i][0] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    means = torch.stack([feature.abs().mean() for maps in real_features for feature in maps])
    spreads = torch.stack([feature.std(correction=0) for maps in fake_features for feature in maps])
    torch.testing.assert_close(means, golden[f"{name}.fmap_abs_mean_real"], rtol=1e-5, atol=0)
    torch.testing.assert_close(spreads, golden[f"{name}.fmap_std_fake"], rtol=1e-5, atol=0)
    losses = {
        "loss_d": ADVERSARIAL["least_squares"].discriminator(real, fake),
        "loss_adv": ADVERSARIAL["least_squares"].generator(fake),
        "loss_feat": feature_matching(real_features, fake_features),
    }
    for loss, value in losses.items():
        torch.testing.assert_close(value, golden[f"{name}.{loss}"], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "millions"), [("mpd", 41.1), ("msd", 29.6), ("mstftd", 0.47)])
def test_published_names_and_sizes(name: str, millions: float) -> None:
    """Every tensor of the published layout, in its shape, and back to ours."""
    network = BUILD[name]()
    published = json.loads((GOLDEN / "keys.json").read_text())[f"discriminator.{name}"]
    state = PUBLISHED_NAMES[name].to_published(network.state_dict())
    shapes = {key: list(value.shape) for key, value in state.items()}
    assert shapes == {key: shape for key, (shape, _) in published.items()}
    assert PUBLISHED_NAMES[name].to_ours(state).keys() == network.state_dict().keys()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def test_logits_of_a_second() -> None:
    """Sizes of the released networks' logits; they do not depend on the width."""
    wave = torch.randn(1, 1, 16000, generator=seeded(0))
    with torch.no_grad():
        shapes = {name: [logits.shape[1:] for logits in BUILD[name](TINY[name])(wave)[0]] for name in BUILD}
    assert all(198 <= size <= 203 for (size,) in shapes["mpd"])
    assert shapes["msd"] == [(250,), (126,), (63,)]
    assert [s[1:] for s in shapes["mstftd"]] == [(59, 65), (28, 129), (122, 33), (247, 17), (497, 9)]


@pytest.mark.parametrize("name", BUILD)
def test_batch_equals_single(name: str) -> None:
    waves = torch.randn(3, 1, 3001, generator=seeded(1))
    network = BUILD[name](TINY[name]).eval()
    with torch.no_grad():
        batch, _ = network(waves)
        single = [network(wave[None])[0] for wave in waves]
    for i, logits in enumerate(batch):
        torch.testing.assert_close(logits, torch.cat([one[i] for one in single]), rtol=1e-5, atol=1e-6)


def test_every_parameter_learns() -> None:
    wave = torch.randn(2, 1, 3000, generator=seeded(2))
    for name in BUILD:
        network = BUILD[name](TINY[name])
        real, _ = network(wave)
        fake, _ = network(wave.flip(-1))  # a second forward before the backward, as in training
        ADVERSARIAL["least_squares"].discriminator(real, fake).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_spectral_norm_is_one() -> None:
    """sigma converges to the largest singular value, in training only, and one step is v first, then u."""
    weight = torch.randn(6, 5, 3, generator=seeded(3))
    norm = SpectralNorm(weight)
    u = norm.u.clone()
    norm(weight)
    v = nn.functional.normalize(weight.flatten(1).mT @ u, dim=0)
    torch.testing.assert_close(norm.v, v)
    torch.testing.assert_close(norm.u, nn.functional.normalize(weight.flatten(1) @ v, dim=0))
    for _ in range(200):
        norm(weight)
    u = norm.eval().u.clone()
    assert torch.linalg.matrix_norm(norm(weight).flatten(1), 2) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(norm.u, u)


@pytest.mark.parametrize("name", BUILD)
def test_mixed_precision(name: str, golden: dict[str, Tensor]) -> None:
    """Under autocast, and on a bfloat16 wave, logits stay near those in float32."""
    network = fill(BUILD[name](TINY[name]), name, golden).eval()
    with torch.no_grad():
        exact, _ = network(golden["x"])
        with torch.autocast("cpu", torch.bfloat16):
            rounded, _ = network(golden["x"].bfloat16())
    for a, b in zip(exact, rounded, strict=True):
        assert (a - b.float()).abs().max() < 0.05 * a.abs().max()


def test_what_is_refused() -> None:
    refused(ConfigError, "mono wave", lambda: MultiPeriodDiscriminator(32)(torch.zeros(1, 2, 4000)))
    refused(ConfigError, "2048 samples", lambda: MultiScaleSTFTDiscriminator(4)(torch.zeros(1, 1, 2047)))
    refused(ConfigError, "divisor 3", MultiScaleDiscriminator, 3)
