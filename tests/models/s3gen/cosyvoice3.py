"""CosyVoice 3's networks with golden weights, reduced as in its golden files or of the released size."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from s3gen_weights import recorded, weight
from torch import Tensor

from vokens.checkpoint import load_strict
from vokens.models.s3gen.checkpoint import RATES, flow_from_published, flow_to_published
from vokens.models.s3gen.config import DIALECTS, S3GenConfig
from vokens.models.s3gen.flow import TokenToMel

FOLDER = Path(__file__).parents[2] / "golden/cosyvoice3"
golden = partial(recorded, FOLDER)
FULL = DIALECTS["cosyvoice3"]
ESTIMATOR = {"channels": 48, "num_heads": 3, "attention_head_dim": 16, "num_mid_blocks": 3}
ESTIMATOR = {f"decoder_{name}": value for name, value in ESTIMATOR.items()}
REDUCED = replace(FULL, pre_lookahead_channels=40, chunk_size=5, **ESTIMATOR)


def flow_shapes(config: S3GenConfig = REDUCED) -> dict[str, Tensor]:
    """flow.pt without values."""
    with torch.device("meta"):
        return flow_to_published(TokenToMel(config).state_dict(), config.decoder_attention_head_dim)


def published_flow(config: S3GenConfig = REDUCED) -> dict[str, Tensor]:
    """flow.pt."""
    state = flow_shapes(config)
    return {name: weight(f"flow.{name}", like) for name, like in state.items()} | {RATES: state[RATES]}


def build_flow(config: S3GenConfig = REDUCED) -> TokenToMel:
    flow = TokenToMel(config)
    load_strict(flow, flow_from_published(published_flow(config)), "golden")
    return flow.eval().requires_grad_(False)
