"""Classifier-free guidance (arXiv 2207.12598) of flow models.

Both velocities come from one doubled batch; where the schedule is 0 the unconditional half is not computed.
"""

import torch
from torch import Tensor


def guidance_schedule(times: Tensor, rate: float, end: float = 1.0) -> list[float]:
    """Guidance strength of each evaluation: `rate` at times before `end`, then 0 (no guidance)."""
    return torch.where(times < end, rate, 0.0).tolist()


def guide(velocities: Tensor, rate: float, first: int = 0) -> Tensor:
    """(1 + rate) v_c - rate v_u of a doubled batch (2 B, ..., D), conditional half first -> (B, ..., D).

    Dims below `first` are v_c.
    """
    conditional, unconditional = velocities.chunk(2)
    guided = (1 + rate) * conditional - rate * unconditional
    return torch.cat([conditional[..., :first], guided[..., first:]], -1) if first else guided
