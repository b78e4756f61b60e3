"""Models: one folder per system; `vokens.load` opens any of them."""

from importlib import import_module
from typing import Any

_MOVED = {"load": "pretrained", "system": "pretrained", "SYSTEMS": "pretrained", "Codec": "codec"}


def __getattr__(name: str) -> Any:  # deprecated: `vokens.load` and `vokens.Codec`
    if name not in _MOVED:
        raise AttributeError(f"module 'vokens.models' has no attribute {name!r}")
    return getattr(import_module(f"vokens.models.{_MOVED[name]}"), name)
