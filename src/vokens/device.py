"""Device names, checked before anything is loaded."""

import torch

from vokens.errors import ConfigError


def usable_device(device: str | torch.device) -> str:
    """Name of a usable device; "auto" is CUDA where available. Raises ConfigError for others."""
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without that backend
        accepted = "auto, cpu" + (", cuda" if torch.cuda.is_available() else "")
        raise ConfigError(f"device {name!r} cannot be used here: use {accepted}") from error
    return name
