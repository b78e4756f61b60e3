"""Parts of codec training from its config: network, discriminators, mel scales."""

from pathlib import Path
from typing import Any

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
from vokens.train import losses as L
from vokens.train.config import AdversarialConfig, RunConfig
from vokens.train.gan import Discriminators


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
        checkpoint.load_strict(model, cls.remove_weight_norm(state), config.init)
    return model.add_weight_norm()


def build_discriminators(config: AdversarialConfig) -> Discriminators | None:
    builders = {
        "mpd": lambda: MultiPeriodDiscriminator(config.divisor),
        "msd": lambda: MultiScaleDiscriminator(config.divisor),
        "mstft": lambda: MultiScaleSTFTDiscriminator(config.filters, config.windows),
    }
    return Discriminators({kind: builders[kind]() for kind in config.kinds}) if config.kinds else None


def mel_recipe(name: str, sample_rate: int) -> tuple[Any, ...]:
    """Scales and weights of the mel loss; empty for the published ones."""
    if name == "published":
        return ()
    scales = L.dac_scales(sample_rate)
    return scales, [1.0] * len(scales)
