"""Flow objectives against their published equations (float64 toy), closed forms, and a toy that they must solve."""

from pathlib import Path

import pytest
import torch
from conftest import seeded
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from torch import nn

from vokens.flow import meanflow, objective
from vokens.flow.guidance import guide
from vokens.flow.objective import expand
from vokens.flow.regression import LEAST_ALPHA, alpha_at, guided_velocity, regress, regression_loss

TOY = load_file(Path(__file__).parents[1] / "golden/learnable/meanflow_toy.safetensors")
EXACT = 1e-12


def network(sign: float = 1.0):
    w1, w2, b1, b2 = (TOY[f"net.{name}"] for name in ("W1", "W2", "b1", "b2"))

    def u(x, t, r):
        return torch.tanh(torch.cat([x, t[:, None], (r - t)[:, None]], 1) @ (sign * w1).T + b1) @ w2.T + b2

    return u


def drawn():
    return (TOY[f"net.{name}"] for name in ("x_t", "t", "r", "v"))


def gaussian(mean):
    """Closed-form velocity of data N(mean, std^2)."""
    std = TOY["gauss.std"]

    def velocity(x, t):
        time = expand(t, x)
        share = (time * std**2 - (1 - time)) / ((1 - time) ** 2 + time**2 * std**2)
        return mean + share * (x - time * mean)

    return velocity


def close(actual, name, bound=EXACT):
    assert (actual - TOY[name]).abs().max() <= bound, name


def test_path_and_meanflow_equations():
    """MeanFlow's, with guidance baked in, and improved MeanFlow's."""
    on_path, velocity = objective.straight_path(TOY["net.x1"], TOY["net.z"], TOY["net.t"], sigma_min=0.0)
    close(on_path, "net.x_t")
    close(velocity, "net.v")
    (x, t, r, v), net = drawn(), network()
    u, derivative = meanflow.with_derivative(net, x, t, r, v)
    close(u, "net.u")
    close(derivative, "net.jvp")
    close(meanflow.meanflow_target(net, x, t, r, v), "meanflow.target")
    guided = 1.5 * v + 0.3 * net(x, t, t) - 0.8 * network(-1)(x, t, t)
    close(guided, "meanflow.cfg.v")
    close(meanflow.meanflow_target(net, x, t, r, guided), "meanflow.cfg.target")
    close(net(x, t, t), "imf.v_hat")
    close(meanflow.imf_velocity(net, x, t, r, net(x, t, t)), "imf.V")


def test_imf_gradient_goes_through_the_average_velocity_alone():
    x, t, r, v = drawn()
    weight = TOY["net.W2"].clone().requires_grad_()
    w1, b1, b2 = (TOY[f"net.{name}"] for name in ("W1", "b1", "b2"))

    def u(x, t, r):
        return torch.tanh(torch.cat([x, t[:, None], (r - t)[:, None]], 1) @ w1.T + b1) @ weight.T + b2

    with torch.no_grad():
        tangent = u(x, t, t)
    (meanflow.imf_velocity(u, x, t, r, tangent) - v).square().sum(1).mean().backward()
    close(weight.grad, "imf.mse.grad_W2")


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_alphaflow(alpha):
    x, t, r, v = drawn()
    target = meanflow.alphaflow_target(network(), x, t, r, v, alpha)
    close(target, f"alphaflow.target.a{alpha}")
    loss = (network()(x, t, r) - target).square().sum(1).mean() / alpha
    close(loss, f"alphaflow.loss.a{alpha}")


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_distilled_target(steps, guidance):
    x, t, r, _ = drawn()
    data, free = gaussian(TOY["gauss.mean"]), gaussian(TOY["intmeanflow.uncond_mean"])

    def guided(x, t):
        return (1 + guidance) * data(x, t) - guidance * free(x, t)

    actual = meanflow.distilled_target(guided, x, t, r, steps)
    close(actual, f"intmeanflow.target.n{steps}.cfg{guidance}")


def test_many_teacher_steps_reach_the_closed_form_average():
    x, t, r, _ = drawn()
    exact = TOY["gauss.average_velocity"]
    error = [
        (meanflow.distilled_target(gaussian(TOY["gauss.mean"]), x, t, r, steps) - exact).abs().max()
        for steps in (10, 100, 1000)
    ]
    assert error[1] < error[0] / 8  # Euler's error falls with the step
    assert error[2] < error[1] / 8


def test_assignment_has_the_least_cost_and_keeps_every_noise():
    shape, mask = (6, 3, 1), torch.ones(6, 1, 1)
    x1 = TOY["net.x1"].reshape(shape)
    noise = torch.randn(shape, generator=seeded(1)).to(x1)
    cost = (x1[:, None] - noise[None]).square().flatten(2).sum(2)
    assert objective.assignment(x1, noise, mask).tolist() == list(linear_sum_assignment(cost.numpy())[1])
    assert (linear_sum_assignment(TOY["pairing.cost"].numpy())[1] == TOY["pairing.assignment"].numpy()).all()


def test_nearest_noise_is_the_least_distant_of_the_draws_over_an_items_own_frames():
    x1 = torch.randn(4, 5, 12, generator=seeded(0))
    lengths = [12, 9, 5, 3]
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).float().unsqueeze(1)
    actual = objective.nearest_noise(x1, mask, 8, seeded(7))
    generator = seeded(7)
    draws = torch.stack([torch.randn(4, 5, 12, generator=generator) for _ in range(8)], 1)
    for row, length in enumerate(lengths):
        distance = (x1[row, :, :length] - draws[row, :, :, :length]).square().flatten(1).sum(1)
        assert torch.equal(actual[row], draws[row, distance.argmin()])


@pytest.mark.parametrize("size", [2, 3, 7])
def test_derangement_has_no_fixed_point_and_is_a_permutation(size):
    for seed in range(50):
        partner = objective.derangement(size, seeded(seed))
        assert sorted(partner.tolist()) == list(range(size))
        assert (partner != torch.arange(size)).all()


def test_padding_takes_no_part_in_the_losses():
    generator = seeded(2)
    v, u = torch.randn(3, 4, 10, generator=generator), torch.randn(3, 4, 10, generator=generator)
    mask = (torch.arange(10) < torch.tensor([10, 6, 2])[:, None]).float().unsqueeze(1)
    partner = torch.tensor([1, 2, 0])
    noisy = v + 50 * (1 - mask)
    assert torch.equal(objective.squared_error(v, u, mask), objective.squared_error(noisy, u, mask))
    assert torch.equal(objective.contrast(v, u, mask, partner), objective.contrast(noisy, u, mask, partner))
    moved = u + 50 * (1 - mask)
    assert torch.equal(objective.contrast(v, u, mask, partner), objective.contrast(v, moved, mask, partner))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layers = nn.Linear(4, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)
        self.layers = nn.Sequential(*layers)

    def forward(self, x, t, r):
        return self.layers(torch.cat([x, t[:, None], (r - t)[:, None]], 1))


CENTRES = torch.tensor([[4.0, 4.0], [4.0, -4.0], [-4.0, 4.0], [-4.0, -4.0]])


def one_step_distance(name, steps=1500, learning_rate=2e-3):
    """Median distance of one-step samples to the nearest of four narrow Gaussians."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    # Without the fall the last steps' weights decide: 0.3 on one processor, 0.5 on another.
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps)))
    mask = torch.ones(256, 1)
    for step in range(steps):
        x1 = CENTRES[torch.randint(4, (256,))] + 0.1 * torch.randn(256, 2)
        z, t, r = torch.randn(256, 2), torch.rand(256), torch.rand(256)
        t, r = torch.minimum(t, r), torch.maximum(t, r)
        r = torch.where(torch.rand(256) < 0.5, t, r)
        x, v = objective.straight_path(x1, z, t, 0.0)
        actual, target = regress(name, net, x, t, t if name == "flow" else r, v, alpha_at(step / steps))
        optimizer.zero_grad()
        regression_loss(name, actual, target, mask).backward()
        optimizer.step()
        falling.step()
    z = torch.randn(1000, 2)
    with torch.no_grad():
        sample = z + net(z, torch.zeros(1000), torch.ones(1000))
    return torch.cdist(sample, CENTRES).amin(1).median().item()


def test_improved_meanflow_samples_in_one_step_where_flow_matching_cannot():
    assert one_step_distance("imf", learning_rate=8e-3) < 0.5  # of three seeds 0.27 to 0.30
    assert one_step_distance("flow", 400) > 1.5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bound"), [("meanflow", 0.5), ("alpha", 1.0)])
def test_other_objectives_sample_in_one_step(name, bound):
    assert one_step_distance(name, 6000) < bound  # MeanFlow: 0.60 after 2500, 0.44 after 5000


def test_objectives_by_name_are_their_equations():
    x, t, r, v = drawn()
    u = network()
    tangent = u(x, t, t)
    expected = {
        "flow": (u(x, t, r), v),
        "intmeanflow": (u(x, t, r), v),
        "meanflow": (u(x, t, r), meanflow.meanflow_target(u, x, t, r, v)),
        "imf": (meanflow.imf_velocity(u, x, t, r, tangent), v),
    }
    for name, (actual, target) in expected.items():
        ours = regress(name, u, x, t, r, v)
        assert torch.equal(ours[0], actual), name
        assert torch.equal(ours[1], target), name
    mixed = regress("alpha", u, x, t, r, v, 0.5)[1]
    jumping = (r > t)[:, None]
    assert torch.equal(mixed, torch.where(jumping, meanflow.alphaflow_target(u, x, t, r, v, 0.5), v))
    assert torch.equal(regress("alpha", u, x, t, r, v, 1e-3)[1], expected["meanflow"][1])


def test_the_curriculum_goes_from_flow_matching_to_meanflow():
    values = [alpha_at(step / 100) for step in range(101)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.999
    assert values[-1] < LEAST_ALPHA
    assert alpha_at(1e6) < LEAST_ALPHA


def test_guidance_that_is_learned_is_the_samplers():
    generator = seeded(0)
    v, free = torch.randn(2, 3, 4, generator=generator)
    for rate, first in ((0.3, 0), (0.7, 0), (0.7, 2)):
        guided = guide(torch.cat([v, free]), rate, first)
        torch.testing.assert_close(guided_velocity(v, guided, free, rate, first), guided)


def test_weighted_losses_count_items_alike_and_contrast_pushes_away():
    actual = torch.zeros(2, 1, 4)
    target = torch.stack([torch.full((1, 4), 1.0), torch.full((1, 4), 10.0)])
    mask = torch.ones(2, 1, 4)
    torch.testing.assert_close(objective.item_errors(actual, target, mask), torch.tensor([1.0, 100.0]))
    assert abs(regression_loss("imf", actual, target, mask) - 1) < 0.01
    assert regression_loss("flow", actual, target, mask) == 50.5
    partner = torch.tensor([1, 0])
    for name in ("flow", "imf", "intmeanflow"):
        point = actual.clone().requires_grad_()
        plain = regression_loss(name, point, target, mask)
        with_contrast = regression_loss(name, point, target, mask, partner, 0.05)
        assert with_contrast < plain
        towards = torch.autograd.grad(plain - with_contrast, point)[0]
        assert (towards * target[partner] < 0).all()  # descending the contrast moves away from the partner's


def test_times_have_their_densities():
    t = torch.rand(20_000, generator=seeded(0))
    assert abs(objective.logit_normal_time(t).logit().mean() - 0.4) < 0.03
    assert abs(objective.logit_normal_time(t).logit().std() - 1.0) < 0.03
    assert abs(objective.cosine_time(t).median() - (1 - 2**-0.5)) < 0.02
    assert objective.logit_normal_time(torch.tensor([0.0, 1.0])).isfinite().all()
    first = objective.first_step_time(t)
    assert abs((first == 0).float().mean() - 0.5) < 0.02
    assert abs(first[first > 0].median() - 0.5) < 0.02
