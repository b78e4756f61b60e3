"""Regression targets of a velocity network by the name of the objective, and the loss.

"flow": the path's velocity. "meanflow", "imf", "alpha": average velocities from scratch (`vokens.flow.meanflow`).
"intmeanflow": those of a teacher, computed by the caller. Each may add contrastive flow matching.
"""

import math

import torch
from torch import Tensor

from vokens.flow.meanflow import AverageVelocity, alphaflow_target, imf_velocity, meanflow_target
from vokens.flow.objective import contrast, expand, item_errors, squared_error

# Floor of the adaptive weight 1 / (error + floor), per element; objectives that are absent use the plain mean.
FLOORS = {"meanflow": 1e-3, "imf": 1e-2, "alpha": 1e-3}
OBJECTIVES = ("flow", *FLOORS, "intmeanflow")
LEAST_ALPHA = 5e-3  # below it alpha-Flow uses the MeanFlow target (2510.20771)


def alpha_at(progress: float) -> float:
    """alpha-Flow's curriculum, from flow matching (1) at the start of a run to MeanFlow (0) at its end: a sigmoid."""
    return 1 / (1 + math.exp(25 * (min(progress, 1.0) - 0.5)))


def regress(
    objective: str, network: AverageVelocity, x: Tensor, t: Tensor, r: Tensor, v: Tensor, alpha: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Prediction and target, (B, …) each; gradients flow through the prediction only.

    v (B, …): the path's velocity, guided or not, or a teacher's mean velocity from t to r. alpha: for "alpha" only.
    """
    if objective in ("flow", "intmeanflow"):
        return network(x, t, r), v
    if objective == "imf":
        with torch.no_grad():
            tangent = network(x, t, t)
        return imf_velocity(network, x, t, r, tangent), v
    if objective == "alpha" and alpha > LEAST_ALPHA:
        target = torch.where(expand(r > t, x), alphaflow_target(network, x, t, r, v, alpha), v)
    else:
        target = meanflow_target(network, x, t, r, v)
    return network(x, t, r), target


def guided_velocity(v: Tensor, conditional: Tensor, free: Tensor, guidance: float, first: int = 0) -> Tensor:
    """Velocity target for training guidance into the network, from its own two velocities at this point.

    The fixed point is (1 + guidance) v_c - guidance v_free, as `flow.guidance` computes it (iMF, 2512.02012, with
    1 + guidance as its scale). Dims below `first` are not guided.
    """
    added = guidance / (1 + guidance) * (conditional - free)
    added[..., :first] = 0
    return v + added


def regression_loss(
    objective: str,
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    negative: Tensor | None = None,
    contrastive: float = 0.0,
) -> Tensor:
    """Loss () of `regress`; negative (B,): negative-sample index, contrastive: weight of the contrastive loss."""
    if objective not in FLOORS:
        loss = squared_error(prediction, target, mask)
        return loss if negative is None else loss - contrastive * contrast(prediction, target, mask, negative)
    errors = item_errors(prediction, target, mask)
    weights = 1 / (errors.detach() + FLOORS[objective])
    if negative is not None:
        errors = errors - contrastive * item_errors(prediction, target[negative], mask * mask[negative])
    return (weights * errors).mean()
