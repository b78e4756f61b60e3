"""Solvers of dx/dt = v(x, t) from noise at t = 0 to data at t = 1, over a given time grid (arXiv 2210.02747).

Evaluation times are known in advance, so whatever depends on time alone is precomputed as a table.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from vokens.errors import ConfigError

Grid = Literal["cosine", "linear"]
Solver = Literal["euler", "midpoint"]
Velocity = Callable[[Tensor, int], Tensor]  # (x, number of the evaluation) -> dx/dt


def time_grid(steps: int, kind: Grid) -> Tensor:
    """Times (steps + 1,) from 0 to 1 in float32: "linear", or "cosine", 1 - cos(pi t / 2), finer at the noise."""
    if steps < 1 or kind not in ("cosine", "linear"):
        raise ConfigError(f"{steps} {kind!r} steps were given: give 1 or more, cosine or linear")
    times = torch.linspace(0, 1, steps + 1)
    return 1 - torch.cos(times * (math.pi / 2)) if kind == "cosine" else times


def evaluation_times(grid: Tensor, solver: Solver) -> Tensor:
    """Times (M,) at which the solver evaluates the velocity: M is the number of steps, for midpoint twice that."""
    starts = grid[:-1]
    if solver == "euler":
        return starts
    if solver != "midpoint":
        raise ConfigError(f"solver {solver!r} was given: euler and midpoint are accepted")
    return torch.stack([starts, (starts + grid[1:]) / 2], 1).flatten()


def integrate(velocity: Velocity, x: Tensor, grid: Tensor, solver: Solver = "euler") -> Tensor:
    """Integrate x from the first to the last time of the grid; x stays float32 whatever dtype the velocity has."""
    for step, width in enumerate(grid.diff().tolist()):
        if solver == "euler":
            x = x + width * velocity(x, step)
        else:
            halfway = x + width / 2 * velocity(x, 2 * step)
            x = x + width * velocity(halfway, 2 * step + 1)
    return x
