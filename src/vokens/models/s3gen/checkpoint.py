"""Names of S3Gen's published flow weights (Chatterbox `flow.*`, CosyVoice 2 and 3 flow.pt) and ours, both ways.

Queries, keys and values are three published matrices and one of ours; everything else only changes its name.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vokens.checkpoint import NameTable
from vokens.errors import CheckpointError
from vokens.nn.attention import rotary_rates

State = dict[str, Tensor]

_QKV = re.compile(r"(.+\.(?:linear_|to_))qkv(\.weight|\.bias)")


def _encoder_layers(published: str, ours: str) -> list[tuple[str, str]]:
    names = {
        "self_attn.linear_qkv": "attention.qkv",
        "self_attn.linear_out": "attention.out",
        "self_attn.linear_pos": "attention.positions",
        "feed_forward.w_1": "up",
        "feed_forward.w_2": "down",
        "norm_mha": "norm1",
        "norm_ff": "norm2",
    }
    rows = [(f"{published}.{{i}}.{theirs}.*", f"{ours}.{{i}}.{own}.*") for theirs, own in names.items()]
    biases = [(f"{published}.{{i}}.self_attn.pos_bias_{x}", f"{ours}.{{i}}.attention.bias_{x}") for x in "uv"]
    return rows + biases


def _stage(published: str, ours: str) -> list[tuple[str, str]]:
    """A resnet and its transformer blocks."""
    resnet = {
        "block1.block.0": "block1.conv",
        "block1.block.2": "block1.norm",
        "block2.block.0": "block2.conv",
        "block2.block.2": "block2.norm",
        "mlp.1": "time",
        "res_conv": "shortcut",
    }
    block = {
        "norm1": "norm1",
        "attn1.to_qkv": "attention.qkv",
        "attn1.to_out.0": "attention.out",
        "norm3": "norm2",
        "ff.net.0.proj": "up",
        "ff.net.2": "down",
    }
    rows = [(f"{published}.0.{theirs}.*", f"{ours}.resnet.{own}.*") for theirs, own in resnet.items()]
    return rows + [
        (f"{published}.1.{{j}}.{theirs}.*", f"{ours}.blocks.{{j}}.{own}.*") for theirs, own in block.items()
    ]


_NET = "decoder.estimator"
FLOW_TABLE = NameTable(
    [
        ("input_embedding.*", "embedding.*"),
        ("spk_embed_affine_layer.*", "speaker.*"),
        ("encoder_proj.*", "project.*"),
        ("encoder.embed.out.0.*", "encoder.embed.linear.*"),
        ("encoder.embed.out.1.*", "encoder.embed.norm.*"),
        ("encoder.pre_lookahead_layer.*", "encoder.lookahead.*"),
        *_encoder_layers("encoder.encoders", "encoder.layers"),
        ("encoder.up_layer.conv.*", "encoder.up.*"),
        ("encoder.up_embed.out.0.*", "encoder.up_embed.linear.*"),
        ("encoder.up_embed.out.1.*", "encoder.up_embed.norm.*"),
        *_encoder_layers("encoder.up_encoders", "encoder.up_layers"),
        ("encoder.after_norm.*", "encoder.norm.*"),
        (f"{_NET}.time_mlp.linear_1.*", "estimator.time.up.*"),
        (f"{_NET}.time_mlp.linear_2.*", "estimator.time.down.*"),
        (f"{_NET}.time_embed_mixer.weight", "estimator.time.mixer.weight"),
        *_stage(f"{_NET}.down_blocks.0", "estimator.first"),
        (f"{_NET}.down_blocks.0.2.*", "estimator.first_conv.*"),
        *_stage(f"{_NET}.mid_blocks.{{i}}", "estimator.middle.{i}"),
        *_stage(f"{_NET}.up_blocks.0", "estimator.last"),
        (f"{_NET}.up_blocks.0.2.*", "estimator.last_conv.*"),
        (f"{_NET}.final_block.block.0.*", "estimator.final.conv.*"),
        (f"{_NET}.final_block.block.2.*", "estimator.final.norm.*"),
        (f"{_NET}.final_proj.*", "estimator.out.*"),
    ]
)
RATES = f"{_NET}.rotary_embed.inv_freq"
_BLOCK = f"{_NET}.transformer_blocks.{{i}}"
DIT_TABLE = NameTable(
    [
        ("input_embedding.*", "embedding.*"),
        ("spk_embed_affine_layer.*", "speaker.*"),
        ("pre_lookahead_layer.*", "encoder.lookahead.*"),
        (f"{_NET}.time_embed.time_mlp.0.*", "estimator.time.up.*"),
        (f"{_NET}.time_embed.time_mlp.2.*", "estimator.time.down.*"),
        (f"{_NET}.input_embed.proj.*", "estimator.first.*"),
        (f"{_NET}.input_embed.conv_pos_embed.conv1.0.*", "estimator.conv1.*"),
        (f"{_NET}.input_embed.conv_pos_embed.conv2.0.*", "estimator.conv2.*"),
        (f"{_BLOCK}.attn_norm.linear.*", "estimator.blocks.{i}.modulation.*"),
        (f"{_BLOCK}.attn.to_qkv.*", "estimator.blocks.{i}.attention.qkv.*"),
        (f"{_BLOCK}.attn.to_out.0.*", "estimator.blocks.{i}.attention.out.*"),
        (f"{_BLOCK}.ff.ff.0.0.*", "estimator.blocks.{i}.up.*"),
        (f"{_BLOCK}.ff.ff.2.*", "estimator.blocks.{i}.down.*"),
        (f"{_NET}.norm_out.linear.*", "estimator.modulation.*"),
        (f"{_NET}.proj_out.*", "estimator.out.*"),
    ],
    dropped={RATES: "computed"},
)


def is_dit(state: Mapping[str, Tensor]) -> bool:
    """Whether these are tensors of CosyVoice 3's flow, by the published names or by ours."""
    return any(name.startswith((f"{_NET}.transformer_blocks.", "estimator.blocks.")) for name in state)


def flow_from_published(state: Mapping[str, Tensor]) -> State:
    """Our names for CosyVoice 2's or 3's flow.pt, or for Chatterbox's tensors under `flow.` with that prefix cut.

    Raises:
        CheckpointError: a name that is not of this layout, or an attention without all of its three matrices.
    """
    fused = dict(state)
    for name in [name for name in state if re.search(r"\.(linear|to)_q\.(weight|bias)$", name)]:
        parts = [re.sub(r"_q(\.\w+)$", rf"_{x}\1", name) for x in "qkv"]
        missing = [part for part in parts if part not in state]
        if missing:
            raise CheckpointError(
                f"{name} has no {missing[0]} beside it: the file is damaged or of another model"
            )
        fused[re.sub(r"_q(\.\w+)$", r"_qkv\1", name)] = torch.cat([fused.pop(part) for part in parts])
    if not is_dit(fused):
        return FLOW_TABLE.to_ours(fused)
    rates = fused.get(RATES)
    if rates is not None and not torch.allclose(rates.float(), rotary_rates(2 * len(rates)), rtol=1e-5):
        raise CheckpointError(f"{RATES} are not rotary rates of base 10000: the file is of another model")
    return DIT_TABLE.to_ours(fused)


def flow_to_published(state: Mapping[str, Tensor], head_width: int = 64) -> State:
    """The inverse: our weights under the names of flow.pt; Chatterbox puts `flow.` before them.

    head_width: of CosyVoice 3's attention, for the rates of its rotation, which are in the file.
    """
    split: State = {}
    dit = is_dit(state)
    for name, tensor in (DIT_TABLE if dit else FLOW_TABLE).to_published(state).items():
        match = _QKV.fullmatch(name)
        if match is None:
            split[name] = tensor
        else:
            for x, part in zip("qkv", tensor.chunk(3), strict=True):
                split[f"{match[1]}{x}{match[2]}"] = part
    if dit:
        split[RATES] = rotary_rates(head_width)
    return split
