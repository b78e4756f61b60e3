"""The networks of S3Gen's golden files: sizes from their README, weights from the published names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from conftest import seeded
from golden.weights import tensor
from safetensors.torch import load_file
from torch import Tensor, nn

from vokens.checkpoint import load_strict
from vokens.models.s3gen.checkpoint import RATES, flow_from_published, flow_to_published
from vokens.models.s3gen.config import DIALECTS, S3GenConfig
from vokens.models.s3gen.flow import TokenToMel, Voice

FOLDER = Path(__file__).parents[2] / "golden"
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


def recorded(release: str, name: str, heading: str = "") -> dict[str, Tensor]:
    """A golden file, or what is under a heading: float16 cast up, PCM divided."""
    start = f"{heading}/" if heading else ""
    whole = load_file(FOLDER / release / f"{name}.safetensors")
    found = {key.removeprefix(start): value for key, value in whole.items() if key.startswith(start)}
    found = {key: value / 32768 if value.dtype == torch.int16 else value for key, value in found.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}


golden, golden3 = partial(recorded, "s3gen"), partial(recorded, "cosyvoice3")

SIZES = (  # of a flow: width, encoder, estimator, chunk
    *("token_embed_dim", "encoder_attention_heads", "encoder_linear_units", "encoder_num_blocks"),
    *("encoder_num_up_blocks", "decoder_channels", "decoder_n_blocks", "decoder_num_mid_blocks"),
    *("decoder_num_heads", "decoder_attention_head_dim", "chunk_size"),
)


def sizes(*values: int) -> dict[str, int]:
    """Settings of a flow in the order of SIZES."""
    return dict(zip(SIZES, values, strict=True))


def reduced(dialect: str) -> S3GenConfig:
    """Width 48, 3 heads, 2 + 2 layers; estimator of 32 channels, 2 heads of 24, 4 stages of 2 blocks; chunk 5. Of
    CosyVoice 3 a look-ahead of 40 channels, and 3 blocks of 48 channels and 3 heads of 16."""
    if dialect != "cosyvoice3":
        return replace(DIALECTS[dialect], **sizes(48, 3, 80, 2, 2, 32, 2, 2, 2, 24, 5))
    of_decoder = {"channels": 48, "num_heads": 3, "attention_head_dim": 16, "num_mid_blocks": 3}
    decoder = {f"decoder_{name}": value for name, value in of_decoder.items()}
    return replace(DIALECTS[dialect], pre_lookahead_channels=40, chunk_size=5, **decoder)


def flow_shapes(config: S3GenConfig) -> dict[str, Tensor]:
    """flow.pt without values."""
    with torch.device("meta"):
        return flow_to_published(TokenToMel(config).state_dict(), config.decoder_attention_head_dim)


def published_flow(config: S3GenConfig) -> dict[str, Tensor]:
    """flow.pt."""
    state = flow_shapes(config)
    rates = {RATES: state.pop(RATES)} if RATES in state else {}
    return {name: weight(f"flow.{name}", like) for name, like in state.items()} | rates


def build_flow(config: S3GenConfig) -> TokenToMel:
    flow = TokenToMel(config)
    load_strict(flow, flow_from_published(published_flow(config)), "golden")
    return flow.eval().requires_grad_(False)


@cache
def reduced_flow(dialect: str) -> TokenToMel:
    """A shared one, which tests leave as it is."""
    return build_flow(reduced(dialect))


def voice_of(recorded: Mapping[str, Tensor], embedding: Tensor) -> Voice:
    """The voice of a recorded case; its speaker may stand beside the case."""
    return Voice(recorded["prompt_token"][0], recorded["prompt_feat"][0], embedding[0])


def ids(count: int, seed: int = 0) -> Tensor:
    return torch.randint(6561, (count,), generator=seeded(seed))


def close(found: Tensor, expected: Tensor, tolerance: float, relative: float = 0.0) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), atol=tolerance, rtol=relative
    )


def watched(stages: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Filled with what these modules give in later forward passes."""
    seen: dict[str, Tensor] = {}
    for name, stage in stages.items():
        stage.register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output.clone()})
        )
    return seen
