"""Ranks of torchrun (or anything else that sets RANK and WORLD_SIZE) as independent workers on one folder.

There is no process group and no collective: ranks never wait for each other, and may differ in speed or die.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from vokens.errors import ConfigError


@dataclass(frozen=True)
class Layout:
    """Rank and world size of this process, in all and on its machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self | None:
        """As the variables of torchrun say; None where no launcher has set them. Raises ConfigError for wrong ones."""
        environment = os.environ if environment is None else environment
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return None
        defaults = {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        given = {name: environment.get(name, default) for name, default in defaults.items()}
        if not all(text.isdigit() for text in given.values()):
            raise ConfigError(f"{given} are not the numbers that torchrun sets")
        layout = cls(*(int(text) for text in given.values()))
        if not (layout.rank < layout.world and layout.local_rank < layout.local_world):
            raise ConfigError(f"{given}: ranks count from 0 and stay below the sizes")
        return layout

    def device(self, device: str) -> str:
        """The device of this rank: its own GPU where the choice is open."""
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return f"cuda:{self.local_rank % torch.cuda.device_count()}" if device == "cuda" else device
