"""The networks of S3Gen's golden files: sizes from their README, weights from the published names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from golden.weights import tensor
from safetensors.torch import load_file
from torch import Tensor, nn

from vokens.checkpoint import load_strict
from vokens.models.s3gen.checkpoint import flow_from_published, flow_to_published
from vokens.models.s3gen.config import DIALECTS, S3GenConfig

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


def weight(name: str, like: Tensor) -> Tensor:
    """The golden weight of a published name; counters are 0."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    factor, summand = next((o for pattern, o in OVERRIDES.items() if re.fullmatch(pattern, name)), (1.0, 0.0))
    return tensor(name, tuple(like.shape)) * factor + summand


def recorded(folder: Path, name: str, heading: str = "") -> dict[str, Tensor]:
    """A golden file, or what is under a heading: float16 cast up, PCM divided."""
    found = load_file(folder / f"{name}.safetensors")
    found = part(found, heading) if heading else found
    found = {key: value / 32768 if value.dtype == torch.int16 else value for key, value in found.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}


SIZES = (  # of a flow: width, encoder, estimator, chunk
    *("token_embed_dim", "encoder_attention_heads", "encoder_linear_units", "encoder_num_blocks"),
    *("encoder_num_up_blocks", "decoder_channels", "decoder_n_blocks", "decoder_num_mid_blocks"),
    *("decoder_num_heads", "decoder_attention_head_dim", "chunk_size"),
)


def sizes(*values: int) -> dict[str, int]:
    """Settings of a flow in the order of SIZES."""
    return dict(zip(SIZES, values, strict=True))


def reduced(dialect: str) -> S3GenConfig:
    """Width 48, 3 heads, 2 + 2 layers; estimator of 32 channels, 2 heads of 24, 4 stages of 2 blocks; chunk 5."""
    return replace(DIALECTS[dialect], **sizes(48, 3, 80, 2, 2, 32, 2, 2, 2, 24, 5))


def fill(module: nn.Module, under: str = "") -> nn.Module:
    """Golden weights for a part of the flow that is called `under` there, by way of the published names."""
    own = {under + name: value for name, value in module.state_dict().items()}
    published = flow_to_published(own)
    drawn = {name: tensor(f"flow.{name}", tuple(value.shape)) for name, value in published.items()}
    ours = {name.removeprefix(under): value for name, value in flow_from_published(drawn).items()}
    load_strict(module, ours, "golden")
    return module.eval()


def close(found: Tensor, expected: Tensor, tolerance: float, relative: float = 0.0) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), atol=tolerance, rtol=relative)


def part(golden: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors under one heading of a golden file, float where they were stored as float16."""
    start = name + "/"
    found = {key.removeprefix(start): value for key, value in golden.items() if key.startswith(start)}
    return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}
