"""Whole S3Gens with golden weights under Chatterbox's names, reduced as in the golden files or of the released size."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from golden.weights import tensor
from s3gen_weights import reduced
from safetensors.torch import load_file
from torch import Tensor

from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.checkpoint import flow_to_published, hift_to_published
from vokens.models.s3gen.config import DIALECTS, S3GEN_24K, S3GenConfig
from vokens.models.s3gen.flow import TokenToMel
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig
from vokens.nn.campplus import CAMPPlus

FOLDER = Path(__file__).parents[2] / "golden/s3gen"
# Scale and offset of some weights, as the files' config.json has them.
OVERRIDES = {
    r".*\.alpha": (1.0, 1.0),
    r"mel2wav\.conv_pre\.parametrizations\.weight\.original0": (0.15, 0.0),
    r"mel2wav\.(source_)?resblocks\..*\.convs2\.\d\.parametrizations\.weight\.original0": (0.3, 0.0),
    r"mel2wav\.m_source\.l_linear\.weight": (3.0, 0.0),
    r"speaker_encoder\..*(conv[12]|linear\w*|shortcut\.0)\.weight": (1.4, 0.0),
    r"mel2wav\.f0_predictor\.classifier\.weight": (100.0, 0.0),
    r"mel2wav\.f0_predictor\.classifier\.bias": (1.0, 150.0),
}
# What shapes do not say of the reduced networks.
SETTINGS = {"decoder_num_heads": 2, "decoder_attention_head_dim": 24, "chunk_size": 5}


def golden(name: str) -> dict[str, Tensor]:
    """A golden file: float16 cast up, PCM divided."""
    found = load_file(FOLDER / f"{name}.safetensors")
    return {
        key: value / 32768
        if value.dtype == torch.int16
        else value.float()
        if value.is_floating_point()
        else value
        for key, value in found.items()
    }


def published(dialect: str, full: bool = False) -> dict[str, Tensor]:
    """A state dict as Chatterbox publishes it, without the tokenizer's filters."""
    config: S3GenConfig = DIALECTS[dialect] if full else reduced(dialect)
    vocoder = S3GEN_24K if full else replace(S3GEN_24K, base_channels=32, f0_predictor_cond_channels=32)
    tokens = S3TokenizerConfig() if full else S3TokenizerConfig(width=128, heads=2, layers=2)
    layouts: dict[str, Mapping[str, Tensor]] = {
        "tokenizer": S3Tokenizer(tokens).to_published(),
        "speaker_encoder": CAMPPlus().state_dict(),
        "flow": flow_to_published(TokenToMel(config).state_dict()),
        "mel2wav": hift_to_published(HiFTNetModel(vocoder).state_dict()),
    }
    return {
        name: _weight(name, value)
        for part, layout in layouts.items()
        for name, value in ((f"{part}.{key}", value) for key, value in layout.items())
    }


def build(dialect: str) -> S3GenModel:
    """A reduced model."""
    if dialect != "cosyvoice2":
        return S3GenModel.from_published(published(dialect), SETTINGS)
    model = S3GenModel.from_published(published("chatterbox"), reduced("cosyvoice2"))
    return model


def _weight(name: str, like: Tensor) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    factor, summand = next((o for pattern, o in OVERRIDES.items() if re.fullmatch(pattern, name)), (1.0, 0.0))
    return tensor(name, tuple(like.shape)) * factor + summand
