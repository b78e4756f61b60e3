"""S3Gen and HiFTNet for transformers' AutoConfig and AutoModel: importing this module registers them.

    import vokens.compat.s3gen
    model = transformers.AutoModel.from_pretrained("a folder that save_pretrained wrote")

The model is vokens' own; transformers only selects it by the model_type in config.json.
"""

from pathlib import Path
from typing import Any

from vokens.config import build_config
from vokens.errors import needs_extra
from vokens.models.pretrained import Pretrained
from vokens.models.s3gen import HiFTNetConfig, HiFTNetModel, S3GenConfig, S3GenModel

_OPTIONS = ("cache_dir", "local_files_only", "revision", "device", "dtype")


def register() -> None:
    """Register both kinds of models with transformers; idempotent."""
    with needs_extra("transformers", "hf", "AutoModel finds S3Gen through it"):
        from transformers import AutoConfig, AutoModel
    for model in (S3GenModel, HiFTNetModel):
        config, opener = _names(model)
        AutoConfig.register(model.system, config, exist_ok=True)
        AutoModel.register(config, opener, exist_ok=True)


def _names(model: type[Pretrained]) -> tuple[type, type]:
    """Classes for transformers: a config of its own base class, and a class that opens the model."""
    from transformers import PretrainedConfig

    class Config(PretrainedConfig):
        """The content of config.json; `config` holds the sizes."""

        model_type = model.system

        def __init__(self, config: dict[str, Any] | None = None, **other: Any) -> None:
            super().__init__(**other)
            self.config = config or {}

    class Opener:
        """Factory of vokens' models."""

        config_class = Config

        @classmethod
        def from_pretrained(cls, source: str | Path, *_: Any, **options: Any) -> Pretrained:
            return model.from_pretrained(source, **{k: v for k, v in options.items() if k in _OPTIONS})

        @classmethod
        def _from_config(cls, config: Config, **_: Any) -> Pretrained:
            return model(build_config(model.Config, config.config, "config")).eval()

    return Config, Opener


register()

__all__ = ["HiFTNetConfig", "HiFTNetModel", "S3GenConfig", "S3GenModel", "register"]
