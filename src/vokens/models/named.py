"""Several models at a time, by names that users give them: what a server and a page offer."""

from collections.abc import Sequence

import torch

from vokens.errors import ConfigError
from vokens.models.pretrained import Pretrained, load


def load_named(names: Sequence[str], device: str | torch.device = "cpu") -> dict[str, Pretrained]:
    """The models of `names`: as in `vokens.load`, called by their own names, or "NAME=SOURCE" gives one.

    Raises ConfigError for two models of one name and for none, and what `vokens.load` raises.
    """
    found: dict[str, Pretrained] = {}
    for text in names:
        given, equals, source = text.partition("=")
        if not given or (equals and not source):
            raise ConfigError(f"{text!r} names no model: give a name such as mini, or NAME=FOLDER")
        model = load(source if equals else given, device=device)
        name = given if equals else model.name
        if name in found:
            raise ConfigError(
                f"two models are called {name!r}: give one another name, NAME={source or given}"
            )
        found[name] = model
    if not found:
        raise ConfigError("no model was named: name at least one, such as mini")
    return found
