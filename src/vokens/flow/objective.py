"""Flow matching objectives: the straight path, its losses, and the pairing of noise with data.

Time 0 is noise, 1 is data. x is (B, T, C) with mask (B, T, 1), or (B, C, T) with mask (B, 1, T), 1 where an
item has frames; padding takes no part in any loss, distance or choice.
Flow matching: arXiv 2210.02747; immiscible pairing: 2406.12303, 2505.18521; contrastive: 2506.05350.
"""

import numpy as np
import torch
from torch import Tensor

from vokens.errors import needs_extra

SIGMA_MIN = 1e-6  # of CosyVoice's path: x_0 keeps this share of noise at the data's end


def expand(time: Tensor, like: Tensor) -> Tensor:
    """time (B,) as (B, 1, …), to be multiplied with `like` (B, …)."""
    return time.reshape(-1, *[1] * (like.dim() - 1))


def straight_path(x1: Tensor, z: Tensor, t: Tensor, sigma_min: float = SIGMA_MIN) -> tuple[Tensor, Tensor]:
    """Point and velocity (B, …) at times t (B,) on the line from noise z to data x1 (B, …)."""
    time = expand(t, x1)
    return (1 - (1 - sigma_min) * time) * z + time * x1, x1 - (1 - sigma_min) * z


def cosine_time(t: Tensor) -> Tensor:
    """Times in [0, 1] warped towards the noise: 1 - cos(pi t / 2), as CosyVoice samples and solves."""
    return 1 - torch.cos(t * torch.pi / 2)


def logit_normal_time(t: Tensor) -> Tensor:
    """Map uniform t to logit-normal timesteps, mean 0.4 towards the data, std 1 (MeanFlow)."""
    return torch.sigmoid(0.4 + torch.special.ndtri(t.clamp(1e-6, 1 - 1e-6)))


def first_step_time(t: Tensor) -> Tensor:
    """Map uniform t to 0, where a sampler of one step evaluates, in half of the rows; uniform in the others."""
    return (2 * t - 1).clamp(min=0)


def squared_error(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over the frames of all items and their channels: ()."""
    return (((predicted - target) * mask) ** 2).sum() / mask.expand_as(target).sum()


def item_errors(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean over each item's own frames and their channels: (B,); 0 where it has none."""
    total = (((predicted - target) * mask) ** 2).flatten(1).sum(1)
    return total / mask.expand_as(target).flatten(1).sum(1).clamp(min=1)


def contrast(predicted: Tensor, target: Tensor, mask: Tensor, negative: Tensor) -> Tensor:
    """Squared error () to the targets of negative samples, which contrastive flow matching maximises.

    negative (B,): index of each item's negative sample; frames beyond its end take no part.
    """
    return squared_error(predicted, target[negative], mask * mask[negative])


def derangement(size: int, generator: torch.Generator) -> Tensor:
    """A permutation (size,) without fixed points: a shift of randomly ordered items. size 1 has none: [0].

    Every index occurs exactly once, which patching the fixed points of a random permutation does not give.
    """
    order = torch.randperm(size, generator=generator)
    shifted = torch.empty_like(order)
    shifted[order] = order.roll(1)
    return shifted


def nearest_noise(x1: Tensor, mask: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """For each item the nearest of k normal draws, one in memory at a time; k = 1 is plain noise."""
    best = _draw(x1, generator)
    least = _rank(x1, best, mask)
    for _ in range(k - 1):
        z = _draw(x1, generator)
        rank = _rank(x1, z, mask)
        closer = rank < least
        best = torch.where(expand(closer, z), z, best)
        least = torch.where(closer, rank, least)
    return best


def assignment(x1: Tensor, z: Tensor, mask: Tensor) -> Tensor:
    """Index (B,) int64 of the assignment of noises z to items x1 that minimises the sum of distances.

    Distances are means per element, so that long items do not dominate. Raises MissingExtra without scipy.
    """
    with needs_extra("scipy", "train", "assigning noise to data"):
        from scipy.optimize import linear_sum_assignment
    x, m = x1.float() * mask, mask.float().expand_as(x1)
    # cost[i, j] = |x_i - z_j|^2 over the frames of i
    cost = m.flatten(1) @ z.float().square().flatten(1).T - 2 * x.flatten(1) @ z.float().flatten(1).T
    cost = cost / m.flatten(1).sum(1, keepdim=True)
    _, columns = linear_sum_assignment(cost.double().cpu().numpy())
    return torch.from_numpy(np.asarray(columns)).to(z.device)


def _draw(like: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise of the shape and dtype of `like`, drawn on the generator's device."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _rank(x1: Tensor, z: Tensor, mask: Tensor) -> Tensor:
    """|x - z|^2 (B,) over valid frames, without |x|^2, the same for all z; in float32: halves choose others."""
    x, z = x1.float(), z.float()
    return ((z.square() - 2 * x * z) * mask).flatten(1).sum(1)
