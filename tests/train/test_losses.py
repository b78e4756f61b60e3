"""Losses: recorded values, constants, masks, names. Balancer: shares, scales, accumulation."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import refused
from safetensors.torch import load_file
from torch import Tensor, nn

from vokens.errors import ConfigError
from vokens.train import losses
from vokens.train.balancer import Balancer
from vokens.train.losses import MelLoss, d_axis, dac_mel, stft_loss, t_axis, wave_l1, weighted_sum

GOLDEN = Path(__file__).parents[1] / "golden" / "speechtokenizer" / "losses.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(value: Tensor, wanted: Tensor, rtol: float = 1e-5) -> None:
    torch.testing.assert_close(value, wanted, rtol=rtol, atol=0)


def test_recorded_reconstruction(golden: dict[str, Tensor]) -> None:
    x, x_hat = golden["x"], golden["x_hat"]
    close(wave_l1(x_hat, x), golden["recon"])
    close(wave_l1(x_hat[..., :-100], x), golden["recon.trim"])
    mel = MelLoss()
    close(torch.stack(mel.per_scale(x_hat, x)), golden["mel.losses"])
    close(mel(x_hat, x), golden["mel.weighted"])


@pytest.mark.parametrize("loss", [MelLoss(), dac_mel(16000), stft_loss])
def test_spectral_losses(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Zero for equal waves; blind to the sign; (B, N) or (B, 1, N); a finite gradient at silence."""
    target, output = 0.1 * noise(2, 4000), 0.1 * noise(2, 4000, seed=1)
    assert loss(target, target) == 0
    torch.testing.assert_close(loss(-output, target), loss(output, target))
    torch.testing.assert_close(loss(output[:, None], target[:, None]), loss(output, target))
    silence = torch.zeros(2, 4000, requires_grad=True)
    loss(silence, target).backward()
    assert silence.grad is not None
    assert silence.grad.isfinite().all()


def test_gain_is_a_logarithm() -> None:
    """Half the amplitude is ln 2 in every bin of the STFT loss, log10 2 in every band of each DAC scale."""
    wave = noise(1, 16000)
    assert stft_loss(wave / 2, wave) == pytest.approx(math.log(2), rel=1e-4)
    dac = dac_mel(16000)
    assert dac(wave / 2, wave) == pytest.approx(7 * math.log10(2), rel=1e-4)


def test_target_gets_no_gradient() -> None:
    target, output = noise(1, 3000).requires_grad_(), noise(1, 3000, seed=1).requires_grad_()
    (MelLoss()(output, target) + stft_loss(output, target)).backward()
    assert output.grad is not None
    assert target.grad is None


def test_recorded_distillation(golden: dict[str, Tensor]) -> None:
    feature = golden["distill.feature"].clone().requires_grad_()
    target = golden["distill.target"]
    loss = d_axis(feature, target)
    close(loss, golden["distill.d_axis"])
    loss.backward()
    assert feature.grad is not None
    wanted = golden["distill.d_axis.grad"]
    assert (feature.grad - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    close(d_axis(target, target), golden["distill.d_axis.same"])
    close(d_axis(-target, target), golden["distill.d_axis.negated"])
    close(t_axis(feature, target), golden["distill.t_axis.patched"])
    close(t_axis(feature, target, similarity_weight=3.0), golden["distill.t_axis.patched.lambda3"])


def test_silent_item(golden: dict[str, Tensor]) -> None:
    feature = golden["distill.feature"].clone()
    feature[0] = 0
    feature.requires_grad_()
    loss = d_axis(feature, golden["distill.target"])
    close(loss, golden["distill.d_axis.zero_item"])
    loss.backward()
    assert feature.grad is not None
    assert feature.grad.isfinite().all()


def test_constants() -> None:
    target = noise(4, 2000, 8)
    assert d_axis(3 * target, target) == pytest.approx(0.3133, abs=1e-4)
    assert d_axis(noise(4, 2000, 8, seed=1), target) == pytest.approx(0.6931, abs=5e-3)


@pytest.mark.parametrize("distill", [d_axis, t_axis])
def test_padded_frames_count_for_nothing(distill) -> None:
    """Whatever stands in the padding, a batch gives what its items give alone; and no gradient goes there."""
    feature, target, lengths = noise(2, 9, 4).requires_grad_(), noise(2, 9, 4, seed=1), torch.tensor([9, 5])
    loss = distill(feature, target, lengths)
    spoiled = target.clone()
    spoiled[1, 5:] = 1e3
    torch.testing.assert_close(distill(feature, spoiled, lengths), loss)
    alone = torch.stack(
        [distill(feature[i : i + 1, :n], target[i : i + 1, :n]) for i, n in enumerate([9, 5])]
    )
    # d_axis averages items, t_axis frames.
    share = torch.tensor([0.5, 0.5]) if distill is d_axis else lengths / lengths.sum()
    torch.testing.assert_close(loss, (alone * share).sum())
    loss.backward()
    assert feature.grad is not None
    assert feature.grad[1, 5:].abs().max() == 0
    assert feature.grad[1, :5].abs().min() > 0


def test_adversarial_optima() -> None:
    """At D(target) = 1, D(output) = 0 (least squares) or -1 (hinge) the discriminator is done."""
    real, fake = [torch.ones(2, 7), torch.ones(2, 3)], [torch.zeros(2, 7), torch.zeros(2, 3)]
    least, hinge = losses.ADVERSARIAL["least_squares"], losses.ADVERSARIAL["hinge"]
    assert least.discriminator(real, fake) == 0
    assert hinge.discriminator(real, [-logits - 1 for logits in fake]) == 0
    assert least.generator(fake) == 2  # summed over stacks
    assert hinge.generator(fake) == 1  # averaged over stacks
    assert least.generator(real) == hinge.generator(real) == 0
    assert hinge.generator([5 * logits for logits in real]) == 0
    assert least.generator([5 * logits for logits in real]) == 32


def test_feature_matching() -> None:
    """Published: twice the sum; the papers' form does not depend on the scale of a layer."""
    real = [[noise(2, 4, 9), noise(2, 4, 5)], [noise(2, 3, 7)]]
    fake = [[feature + 0.5 for feature in maps] for maps in real]
    assert losses.feature_matching(real, fake) == pytest.approx(2 * 3 * 0.5)
    normalised = losses.normalised_feature_matching(real, fake)
    scaled = [[[100 * feature for feature in maps] for maps in both] for both in (real, fake)]
    torch.testing.assert_close(losses.normalised_feature_matching(*scaled), normalised)
    wanted = sum(0.5 / feature.abs().mean() for maps in real for feature in maps) / 3
    torch.testing.assert_close(normalised, wanted)


def test_weighted_sum() -> None:
    terms = {"wave": torch.tensor(2.0, requires_grad=True), "mel": torch.tensor(3.0, requires_grad=True)}
    total = weighted_sum(terms, {"mel": 10.0, "wave": 0.5})
    assert total == 31
    total.backward()
    assert terms["mel"].grad == 10
    off = {"wave": terms["wave"], "mel": torch.tensor(torch.nan)}
    assert weighted_sum(off, {"wave": 1.0, "mel": 0.0}) == 2
    refused(ConfigError, r"no loss called.*mell", weighted_sum, terms, {"wave": 1.0, "mell": 1.0})
    refused(ConfigError, r"no weight for \['mel'\]", weighted_sum, terms, {"wave": 1.0})


def wave_losses(output: Tensor, target: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
    return {"wave": scale * (output - target).abs().mean(), "power": (output - target).square().mean()}


def gradient(balancer: Balancer, terms: dict[str, Tensor], output: Tensor) -> Tensor:
    return torch.autograd.grad(balancer(terms, output), output)[0]


def test_weights_are_shares_of_the_gradient() -> None:
    """Each loss alone has a gradient of exactly its share of the norm, whatever its scale."""
    target = noise(4, 1, 500)
    output = noise(4, 1, 500, seed=1).requires_grad_()
    terms = wave_losses(output, target, scale=1e6)
    both = gradient(Balancer({"wave": 1, "power": 3}), terms, output)
    parts = {name: torch.autograd.grad(loss, output, retain_graph=True)[0] for name, loss in terms.items()}
    unit = {name: part / (4 * part.flatten(1).norm(dim=1).mean()) for name, part in parts.items()}
    torch.testing.assert_close(both, 0.25 * unit["wave"] + 0.75 * unit["power"])
    tiny = gradient(Balancer({"wave": 1, "power": 3}), wave_losses(output, target, scale=1e-6), output)
    torch.testing.assert_close(tiny, both)


def test_norms_are_running_means() -> None:
    """After norms n1, n2, n3 the divisor is their decayed mean, so that a quiet step stays quiet."""
    balancer = Balancer({"wave": 1.0}, decay=0.5)
    for scale in (1.0, 4.0, 2.0):
        output = torch.zeros(2, 1, 100, requires_grad=True)
        grad = gradient(balancer, {"wave": scale * output.sum(dim=(1, 2)).mean()}, output)
    mean = (0.25 * 1 + 0.5 * 4 + 2) / (0.25 + 0.5 + 1)
    assert 2 * grad[0].norm().item() == pytest.approx(2 / mean, rel=1e-6)


def test_accumulation_equals_the_whole_batch() -> None:
    """Averaged micro-batches give the model the gradient of the whole batch, under the same running means."""
    x, target = noise(8, 1, 64), noise(8, 1, 64, seed=1)
    balancer = Balancer({"wave": 2, "power": 1})
    model = nn.Conv1d(1, 1, 3, padding=1)
    output = model(x)
    balancer(wave_losses(output, target), output)
    balancer.eval()

    def model_gradient(parts: int) -> Tensor:
        model.zero_grad()
        for a, b in zip(x.chunk(parts), target.chunk(parts), strict=True):
            output = model(a)
            (balancer(wave_losses(output, b), output) / parts).backward()
        assert model.weight.grad is not None
        return model.weight.grad.clone()

    torch.testing.assert_close(model_gradient(4), model_gradient(1))


def test_some_losses_and_bad_ones() -> None:
    """A loss not yet started leaves its share to the others; an overflow leaves the means as they were."""
    balancer = Balancer({"wave": 1, "power": 1}, total_norm=2.0)
    output, target = noise(2, 1, 50).requires_grad_(), noise(2, 1, 50, seed=1)
    terms = wave_losses(output, target)
    alone = gradient(balancer, {"wave": terms["wave"]}, output)
    assert 2 * alone.flatten(1).norm(dim=1).mean().item() == pytest.approx(2.0)
    before = {name: value.clone() for name, value in balancer.state_dict().items()}
    balancer({"wave": terms["wave"] * torch.inf}, output)
    assert all(torch.equal(value, before[name]) for name, value in balancer.state_dict().items())
    refused(ConfigError, "among the weights", balancer, {"mel": terms["wave"]}, output)
    refused(ConfigError, "positive", Balancer, {"wave": 0.0})
