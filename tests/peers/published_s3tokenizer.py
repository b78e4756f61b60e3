"""The published package s3tokenizer 0.3.0 with random weights whose codes vary."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import nn


def package() -> ModuleType:
    """The package, whose import asks for torchaudio and onnx, which its networks never call."""
    for name in ("torchaudio", "onnx"):
        if name not in sys.modules and find_spec(name) is None:
            empty = ModuleType(name)
            empty.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = empty
    return import_module("s3tokenizer")


@torch.no_grad()
def build(
    name: str, seed: int = 0, *, width: int = 1280, layers: int | None = None, vq_size: int = 4096
) -> nn.Module:
    """The network of a release, in evaluation mode, at its own sizes or smaller: variance one through every matrix."""
    package()
    version = name.split("_")[2]
    place = {"v1": "model", "v2": "model_v2", "v3": "model_v3"}[version]
    module = import_module(f"s3tokenizer.{place}")
    config = (module.ModelConfigV3 if version == "v3" else module.ModelConfig)(
        n_audio_state=width,
        n_audio_head=width // 64,
        n_audio_layer=layers or (12 if version == "v3" else 6),
        n_codebook_size=vq_size if version == "v1" else 6561,
    )
    torch.manual_seed(seed)
    model = getattr(module, "S3Tokenizer" + ("" if version == "v1" else version.upper()))(name, config)
    for key, value in model.state_dict().items():
        if value.dim() > 1 and "positional" not in key:
            value.normal_(0.0, value[0].numel() ** -0.5)
    return model.eval()
