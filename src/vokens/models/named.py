"""Models by name, for a server or a page that offers several."""

from collections.abc import Sequence
from typing import Any

import torch

from vokens.errors import ConfigError
from vokens.models.pretrained import load
from vokens.models.speaking import as_speaker


def load_named(names: Sequence[str], device: str | torch.device = "cpu") -> dict[str, Any]:
    """The models of `names`: as in `vokens.load`, called by their own names, or "NAME=SOURCE" gives one. Those that
    speak texts are a `Speaker`, CosyVoice's folder or id too.

    Raises ConfigError for two models of one name and for none, and what `vokens.load` raises.
    """
    models: dict[str, Any] = {}
    for text in names:
        prefix, equals, source = text.partition("=")
        if not prefix or (equals and not source):
            raise ConfigError(f"{text!r} names no model: give a name such as mini, or NAME=FOLDER")
        source = source or prefix
        model = load(source, device=device)
        name = prefix if equals else model.name
        if name in models:
            raise ConfigError(f"two models are called {name!r}: give one another name, NAME={source}")
        models[name] = as_speaker(model, source, device=device)
    if not models:
        raise ConfigError("no model was named: name at least one, such as mini")
    return models
