"""CosyVoice 3's networks with golden weights, reduced as in its golden files or of the released size."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from golden.weights import tensor
from s3gen_model import OVERRIDES
from s3gen_weights import part
from safetensors.torch import load_file
from torch import Tensor

from vokens.checkpoint import load_strict
from vokens.models.s3gen.checkpoint import RATES, flow_from_published, flow_to_published
from vokens.models.s3gen.config import DIALECTS, S3GenConfig
from vokens.models.s3gen.flow import TokenToMel

FOLDER = Path(__file__).parents[2] / "golden/cosyvoice3"
FULL = DIALECTS["cosyvoice3"]
REDUCED = replace(
    FULL,
    pre_lookahead_channels=40,
    decoder_channels=48,
    decoder_num_heads=3,
    decoder_attention_head_dim=16,
    decoder_num_mid_blocks=3,
    chunk_size=5,
)


def golden(name: str, heading: str = "") -> dict[str, Tensor]:
    """A golden file, or what is under a heading: float16 cast up, PCM divided."""
    found = load_file(FOLDER / f"{name}.safetensors")
    if heading:
        found = part(found, heading)
    return {
        key: value / 32768
        if value.dtype == torch.int16
        else value.float()
        if value.is_floating_point()
        else value
        for key, value in found.items()
    }


def filled(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Golden weights in the shapes of a published state dict."""
    found = {}
    for name, like in state.items():
        whole = prefix + name
        factor, summand = next((o for p, o in OVERRIDES.items() if re.fullmatch(p, whole)), (1.0, 0.0))
        found[name] = tensor(whole, tuple(like.shape)) * factor + summand
    return found


def flow_shapes(config: S3GenConfig = REDUCED) -> dict[str, Tensor]:
    """flow.pt without values."""
    with torch.device("meta"):
        return flow_to_published(TokenToMel(config).state_dict(), config.decoder_attention_head_dim)


def published_flow(config: S3GenConfig = REDUCED) -> dict[str, Tensor]:
    """flow.pt."""
    state = flow_shapes(config)
    return filled(state, "flow.") | {RATES: state[RATES]}


def build_flow(config: S3GenConfig = REDUCED) -> TokenToMel:
    flow = TokenToMel(config)
    load_strict(flow, flow_from_published(published_flow(config)), "golden")
    return flow.eval().requires_grad_(False)
