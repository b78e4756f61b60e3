"""Parameter groups and learning rates, the same for every task."""

import math
from typing import Any

from torch import nn

from vokens.train.config import OptimConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: weight decay for matrices, none for vectors (norms, biases, scales)."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def schedule(config: OptimConfig, step: int, steps: int) -> float:
    """Factor of the learning rate at a step."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "cosine":
        done = (step - config.warmup) / max(1, steps - config.warmup)
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if config.schedule == "decay" and config.decay_steps:
        left = (steps - step) / config.decay_steps
        return config.final + (1 - config.final) * min(1.0, left)
    return 1.0
