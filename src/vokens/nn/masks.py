"""Padding masks of ragged batches."""

import torch
from torch import Tensor


def padding_mask(lengths: Tensor, longest: int) -> Tensor:
    """(B, T) bool of lengths (B,): True at real positions, False at padding (as transformers' padding_mask)."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def frame_mask(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """(B, T, 1) for frames x (B, T, D), in their type: 1 inside each row's length and 0 beyond; None for full rows."""
    return None if lengths is None else padding_mask(lengths, x.shape[1])[..., None].to(x.dtype)
