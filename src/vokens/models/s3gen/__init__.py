"""S3Gen: from S3 tokens to a waveform in the voice of a reference (CosyVoice 2, Chatterbox)."""

from importlib import import_module
from typing import Any

# Names of the published page; imported when asked for, since parts are also used alone.
_HOMES = {
    "S3GenModel": "model",
    "S3GenModelConfig": "config",
    "S3GenConfig": "config",
    "DIALECTS": "config",
    "HiFTNetModel": "hift",
    "HiFTNetConfig": "config",
    "ReferenceVoice": "voice",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = list(_HOMES)
