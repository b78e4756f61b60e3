"""Estimates of mutual information against laws that are known in closed form."""

import math

import pytest
import torch

from vokens.bench.tasks.information import barber_agakov, draw_others, vclub

COUNT = 4000


def gaussians(rho: float, believed: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of correlated unit Gaussians (matched, shuffled, prior), q being the conditional of `believed`."""
    believed = rho if believed is None else believed
    draw = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, COUNT, generator=draw, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * noise
    others = draw_others(COUNT, 50, draw)

    def log_normal(value: torch.Tensor, mean: torch.Tensor, variance: float) -> torch.Tensor:
        return -0.5 * ((value - mean) ** 2 / variance + math.log(2 * math.pi * variance))

    variance = 1 - believed**2
    matched = log_normal(y, believed * x, variance)
    shuffled = log_normal(y[others], believed * x[:, None], variance)
    return matched, shuffled, log_normal(y, torch.zeros(()), 1.0)


def truth(rho: float) -> float:
    return -0.5 * math.log(1 - rho**2)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
def test_gaussians_with_the_true_conditional(rho):
    """The lower bound is tight, and vCLUB is rho^2 / (1 - rho^2), above the truth."""
    matched, shuffled, prior = gaussians(rho)
    assert float(barber_agakov(matched, prior).mean()) == pytest.approx(truth(rho), abs=0.05)
    assert float(vclub(matched, shuffled).mean()) == pytest.approx(rho**2 / (1 - rho**2), rel=0.05, abs=0.02)
    assert float(vclub(matched, shuffled).mean()) >= truth(rho) - 0.02


@pytest.mark.parametrize("believed", [0.2, 0.5, 0.85])
def test_a_wrong_conditional_lowers_the_lower_bound(believed):
    """By E KL(true conditional || q), in closed form."""
    rho = 0.7
    matched, _, prior = gaussians(rho, believed)
    variance = 1 - believed**2
    spread = 1 - rho**2 + (rho - believed) ** 2
    divergence = 0.5 * (math.log(variance / (1 - rho**2)) + spread / variance - 1)
    bound = float(barber_agakov(matched, prior).mean())
    assert bound == pytest.approx(truth(rho) - divergence, abs=0.05)
    assert bound < truth(rho)


def test_a_discrete_joint_is_exact():
    """Every cell of a table as often as its probability: no sampling is left, and the bounds are sums by hand."""
    counts = torch.tensor([[4, 1, 1], [1, 6, 1], [2, 0, 4]])
    joint = counts.double() / counts.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    information = float(torch.special.xlogy(joint, joint / (rows[:, None] * columns)).nan_to_num().sum())

    cells = torch.tensor([(x, y) for x in range(3) for y in range(3) for _ in range(counts[x, y])])
    x, y = cells.T
    smoothed = (counts.double() + 0.1) / (counts.double() + 0.1).sum(1, keepdim=True)
    everyone = torch.arange(len(cells)).expand(len(cells), -1)
    for q, tight in ((joint / rows[:, None], True), (smoothed, False)):
        lower = float(barber_agakov(q[x, y].log(), columns[y].log()).mean())
        assert lower == pytest.approx(information) if tight else lower < information
    shuffled = smoothed[x[:, None], y[everyone]].log()
    by_hand = float((joint * smoothed.log()).sum() - (rows[:, None] * columns * smoothed.log()).sum())
    upper = float(vclub(smoothed[x, y].log(), shuffled).mean())
    assert upper == pytest.approx(by_hand)
    assert upper > information


def test_independent_variables_share_nothing():
    """However sure q is of what it says: the matched pairs are shuffled pairs too."""
    scores = torch.randn(300, generator=torch.Generator().manual_seed(0)).expand(300, 300)
    assert float(vclub(scores.diagonal(), scores).mean()) == pytest.approx(0, abs=1e-6)


def test_impossible_pairs_are_left_out():
    matched = torch.tensor([-1.0, -2.0])
    shuffled = torch.tensor([[-3.0, -math.inf], [-math.inf, -math.inf]])
    terms = vclub(matched, shuffled)
    assert float(terms[0]) == 2.0
    assert terms[1].isnan() or terms[1].isinf()


def test_others_are_drawn_once_each_and_the_same_again():
    drawn = [draw_others(40, 10, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert all(len(set(row.tolist())) == 10 for row in drawn[0])
    assert sorted(draw_others(5, 99, torch.Generator().manual_seed(0))[0].tolist()) == [0, 1, 2, 3, 4]
