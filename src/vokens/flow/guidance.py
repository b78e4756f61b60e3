"""Classifier-free guidance (arXiv 2207.12598) for flows: away from what the model says without its conditions.

Both velocities come from one doubled batch. Where the schedule says 0 the second half is not computed at all.
"""

import torch
from torch import Tensor


def guidance_schedule(times: Tensor, rate: float, end: float = 1.0) -> list[float]:
    """Strength of each evaluation: `rate` at times before `end`, 0 from there on, where guidance is skipped."""
    return torch.where(times < end, rate, 0.0).tolist()


def guide(velocities: Tensor, rate: float) -> Tensor:
    """(1 + rate) v_c - rate v_u of a doubled batch (2 B, ...), conditional half first -> (B, ...)."""
    conditional, unconditional = velocities.chunk(2)
    return (1 + rate) * conditional - rate * unconditional
