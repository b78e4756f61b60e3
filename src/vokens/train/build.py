"""Parts of codec training from its config: network and discriminators."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vokens import checkpoint
from vokens.config import build_config
from vokens.errors import ConfigError
from vokens.models.codec import Codec
from vokens.models.pretrained import system
from vokens.nn.discriminators import (
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSTFTDiscriminator,
)
from vokens.train.config import AdversarialConfig, RunConfig
from vokens.train.gan import Discriminators

ADDS = ("scale", "attn.out.", "mlp.2.")  # of a residual block: zeros there, and it adds nothing


def build_codec(config: RunConfig) -> Codec:
    cls = system(config.system)
    if not cls.decodes:
        raise ConfigError(
            f"system {config.system!r} only encodes and cannot be trained as a codec: choose one that decodes, "
            'or train it by recognition with task = "recogniser"'
        )
    model = cls(build_config(cls.Config, config.model, "model"))
    if config.init:
        path = Path(config.init)
        path = path / "model.safetensors" if path.is_dir() else path
        state = {k: v.float() for k, v in checkpoint.read_state_dict(path).items()}
        load_grown(model, cls.remove_weight_norm(state), config.init)
    return model.add_weight_norm()


def load_grown(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load weights strictly, but blocks that follow those of the checkpoint begin as the identity: a deeper network
    starts where a shallower one ended (Net2Net, arXiv 1511.05641 §2.3).
    """
    depths: dict[str, int] = {}  # of the checkpoint's stacks of blocks, by what stands before "blocks."
    for stack, number, _ in map(_block, state):
        depths[stack] = max(depths.get(stack, 0), number + 1)
    for name, weight in model.state_dict().items():
        stack, number, part = _block(name)
        if name not in state and 0 < depths.get(stack, 0) <= number:
            state[name] = torch.zeros_like(weight) if part.startswith(ADDS) else weight
    checkpoint.load_strict(model, state, source)


def _block(name: str) -> tuple[str, int, str]:
    """Stack, number in it, and the rest of a name such as "encoder.blocks.3.scale"; number -1 outside of blocks."""
    stack, _, rest = name.partition("blocks.")
    number, _, part = rest.partition(".")
    return (stack, int(number), part) if number.isdigit() else (stack, -1, rest)


def build_discriminators(config: AdversarialConfig) -> Discriminators | None:
    builders = {
        "mpd": lambda: MultiPeriodDiscriminator(config.divisor),
        "msd": lambda: MultiScaleDiscriminator(config.divisor),
        "mstft": lambda: MultiScaleSTFTDiscriminator(config.filters, config.windows),
    }
    return Discriminators({kind: builders[kind]() for kind in config.kinds}) if config.kinds else None
