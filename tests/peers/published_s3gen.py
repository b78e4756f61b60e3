"""The S3Gen of the published package chatterbox-tts 0.1.7, without what its import asks for and never calls.

`make peers` puts the package, diffusers, conformer, omegaconf and torchaudio into .venv/peers-s3gen: beside the others
they would shadow packages that vokens' own dependencies look for.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

FOLDER = Path(sys.prefix) / "peers-s3gen"


def package() -> ModuleType:
    """The module chatterbox.models.s3gen.s3gen; skips the test where `make peers` has not run.

    torchaudio has no build for torch without CUDA, but its resampler and Kaldi features are Python, so its folder is
    opened without its libraries. The package's own __init__ loads a watermarker and text models: left out as well.
    """
    if "chatterbox" not in sys.modules:
        if not (FOLDER / "chatterbox").is_dir():
            pytest.skip(f"{FOLDER} has no chatterbox-tts: make peers")
        sys.path.insert(0, str(FOLDER))
        _open_torchaudio()
        _bare("chatterbox")
    return import_module("chatterbox.models.s3gen.s3gen")


def build(*, meanflow: bool = False, seed: int = 0) -> Any:
    """S3Token2Wav of the released size with random weights whose outputs vary, in evaluation mode."""
    module = package()
    torch.manual_seed(seed)
    model: nn.Module = module.S3Token2Wav(meanflow=meanflow)
    return model.eval()


def _bare(name: str) -> ModuleType:
    """A package whose submodules can be imported and whose own __init__ has not run."""
    made = ModuleType(name)
    made.__path__ = [str(FOLDER / name)]
    made.__spec__ = ModuleSpec(name, None, is_package=True)
    sys.modules[name] = made
    return made


def _open_torchaudio() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]
    extension = ModuleType("torchaudio._extension")
    vars(extension).update(
        fail_if_no_align=lambda function: function,
        lazy_import_sox_ext=None,
        _IS_ALIGN_AVAILABLE=False,
        _IS_RIR_AVAILABLE=False,
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
    )
    audio = _bare("torchaudio")
    sys.modules["torchaudio._extension"] = extension
    vars(audio).update(_extension=extension, transforms=import_module("torchaudio.transforms"))
