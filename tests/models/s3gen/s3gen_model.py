"""Whole S3Gens with golden weights under Chatterbox's names, reduced as in the golden files or of the released size."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from s3gen_weights import reduced, weight
from torch import Tensor

from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.checkpoint import flow_to_published, hift_to_published
from vokens.models.s3gen.config import DIALECTS, S3GEN_24K, S3GenConfig
from vokens.models.s3gen.flow import TokenToMel
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3tokenizer import S3Tokenizer, S3TokenizerConfig
from vokens.nn.campplus import CAMPPlus

# What shapes do not say of the reduced networks.
SETTINGS = {"decoder_num_heads": 2, "decoder_attention_head_dim": 24, "chunk_size": 5}


@lru_cache(2)
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
        name: weight(name, value)
        for part, layout in layouts.items()
        for name, value in ((f"{part}.{key}", value) for key, value in layout.items())
    }


def build(dialect: str) -> S3GenModel:
    """A reduced model."""
    if dialect != "cosyvoice2":
        return S3GenModel.from_published(published(dialect), SETTINGS)
    return S3GenModel.from_published(published("chatterbox"), reduced("cosyvoice2"))
