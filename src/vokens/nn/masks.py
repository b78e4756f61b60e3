"""Padding masks of ragged batches."""

import torch
from torch import Tensor


def padding_mask(lengths: Tensor, longest: int) -> Tensor:
    """(B, T) bool of lengths (B,): True at real positions, False at padding (as transformers' padding_mask)."""
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)
