"""The published package speechtokenizer 1.0.1 with random weights that let signals live and codes vary."""

import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

RELEASED: dict[str, Any] = {
    **{"n_filters": 64, "strides": [8, 5, 4, 2], "dimension": 1024, "semantic_dimension": 768},
    **{"bidirectional": True, "dilation_base": 2, "residual_kernel_size": 3, "n_residual_layers": 1},
    **{"lstm_layers": 2, "activation": "ELU", "codebook_size": 1024, "n_q": 8, "sample_rate": 16000},
}


def package() -> ModuleType:
    """The package, whose import pulls its trainer and with it torchaudio, which its codec never calls."""
    if "torchaudio" not in sys.modules:
        empty = ModuleType("torchaudio")
        empty.__spec__ = ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = empty
    import speechtokenizer

    return speechtokenizer


@torch.no_grad()
def build(seed: int = 0, **settings: Any) -> nn.Module:
    """A model in evaluation mode: gains of 1.7, codebooks Gaussian at the scale of each residual."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's older weight norm
        model = package().SpeechTokenizer(RELEASED | settings).eval()
    for name, value in model.named_parameters():
        if name.endswith("weight_g"):
            value.mul_(1.7)
    scale = model.encoder(0.1 * torch.randn(1, 1, 16000)).std()
    for depth, layer in enumerate(model.quantizer.vq.layers):
        layer._codebook.embed.copy_(torch.randn_like(layer._codebook.embed) * scale * 0.6**depth)
        layer._codebook.inited.fill_(1.0)
    return model


def audio(seconds: float, seed: int = 0) -> Tensor:
    """Noise (1, 1, N) at 16 kHz whose loudness rises and falls as speech does."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(round(16000 * seconds)) / 16000
    loudness = 0.1 * (0.2 + torch.sin(2 * torch.pi * 1.5 * time).clamp(min=0))
    return (torch.randn(len(time), generator=generator) * loudness)[None, None]
