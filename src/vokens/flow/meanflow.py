"""MeanFlow: a network u(x, t, r) of the average velocity between two times, for one- or few-step sampling.

u obeys u = v + (r - t) du/dt along the path (time 0 is noise, 1 is data; the papers' clocks run the other way).
MeanFlow: arXiv 2505.13447; improved MeanFlow (iMF): 2512.02012; alpha-Flow: 2510.20771; IntMeanFlow: 2510.07979.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vokens.flow.objective import expand

AverageVelocity = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (B, …), t (B,), r (B,) -> u (B, …)
Velocity = Callable[[Tensor, Tensor], Tensor]  # x (B, …), t (B,) -> v (B, …)


def with_derivative(
    network: AverageVelocity, x: Tensor, t: Tensor, r: Tensor, tangent: Tensor
) -> tuple[Tensor, Tensor]:
    """u and its total derivative du/dt = du/dx · tangent + du/dt at fixed r, both (B, …), without gradients.

    One forward-mode (JVP) pass. Fused attention kernels have no forward mode, so the math kernel is used.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        tangents = tangent, torch.ones_like(t), torch.zeros_like(r)
        return torch.func.jvp(network, (x, t, r), tangents)[:2]


def meanflow_target(network: AverageVelocity, x: Tensor, t: Tensor, r: Tensor, v: Tensor) -> Tensor:
    """Target of u(x, t, r): v + (r - t) du/dt, v the path's (or a guided) velocity (B, …)."""
    _, derivative = with_derivative(network, x, t, r, v)
    return v + expand(r - t, v) * derivative


def imf_velocity(network: AverageVelocity, x: Tensor, t: Tensor, r: Tensor, tangent: Tensor) -> Tensor:
    """The velocity that u implies, u - (r - t) du/dt with gradients through u alone; its target is the path's.

    tangent (B, …): the network's own velocity u(x, t, t), so that the prediction depends on x alone (iMF §3).
    """
    _, derivative = with_derivative(network, x, t, r, tangent)
    return network(x, t, r) - expand(r - t, x) * derivative


def alphaflow_target(
    network: AverageVelocity, x: Tensor, t: Tensor, r: Tensor, v: Tensor, alpha: float
) -> Tensor:
    """alpha-Flow target without derivatives: alpha v + (1 - alpha) u from an intermediate point.

    alpha = 1 is trajectory flow matching, 1/2 shortcut models, -> 0 MeanFlow; the loss is divided by alpha.
    """
    s = t + alpha * (r - t)
    with torch.no_grad():
        onward = network(x + expand(s - t, x) * v, s, r)
    return alpha * v + (1 - alpha) * onward


@torch.no_grad()
def distilled_target(velocity: Velocity, x: Tensor, t: Tensor, r: Tensor, steps: int) -> Tensor:
    """IntMeanFlow: the mean velocity of a teacher's ODE from t to r in `steps` Euler steps; at r = t its velocity."""
    moved, width = x, (r - t) / steps
    for step in range(steps):
        moved = moved + expand(width, x) * velocity(moved, t + step * width)
    span = expand(r - t, x)
    return torch.where(span > 0, (moved - x) / span.clamp(min=1e-9), velocity(x, t))
