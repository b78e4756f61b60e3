"""The device that a name asks for, checked before anything is loaded onto it."""

import torch

from vokens.errors import ConfigError


def usable_device(device: str | torch.device) -> str:
    """The name of a device that works here; "auto" is CUDA where there is one. Raises ConfigError for others."""
    name = str(device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without that backend
        accepted = "auto, cpu" + (", cuda" if torch.cuda.is_available() else "")
        raise ConfigError(f"device {name!r} cannot be used here: {accepted} can") from error
    return name
