"""Layouts of S3Gen's published weights and ours, both ways, strict, with the sizes that shapes say.

The flow: Chatterbox's `flow.*`, flow.pt of CosyVoice 2 and 3. Queries, keys and values are three published matrices
and one of ours; everything else only changes its name. The vocoder: `mel2wav.*`, hift.pt. Modules carry the published
names; what differs is how the file spells weight norm (three ways), what it puts before the names, and Snake's alpha,
(C,) there and (1, C, 1) here.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

from vokens.checkpoint import NameTable, State, count_of, fold_weight_norm, unfold_weight_norm
from vokens.config import build_config
from vokens.errors import CheckpointError, ConfigError
from vokens.models.s3gen.config import MEANFLOW, S3GEN_24K, HiFTNetConfig, S3GenConfig
from vokens.nn.attention import rotary_rates

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
MIXER = f"{_NET}.time_embed_mixer.weight"  # of MeanFlow
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
        (MIXER, "estimator.time.mixer.weight"),
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

    Raises CheckpointError for a name that is not of this layout, or an attention without all of its three matrices.
    """
    fused = dict(state)
    for name in [name for name in state if re.search(r"\.(linear|to)_q\.(weight|bias)$", name)]:
        parts = [re.sub(r"_q(\.\w+)$", rf"_{x}\1", name) for x in "qkv"]
        missing = [part for part in parts if part not in state]
        if missing:
            raise CheckpointError(f"{name} has no {missing[0]} beside it: damaged, or of another model")
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


def flow_sizes(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that published weights give: sizes by their shapes, MeanFlow's where its mixer is there, and the
    estimator's heads, which are given or the release's.

    Raises CheckpointError where they are neither.
    """

    def size(name: str, axis: int = 0) -> int:
        return state[name].shape[axis]

    try:
        shared = {
            "vocab_size": size("input_embedding.weight"),
            "token_embed_dim": size("input_embedding.weight", 1),
            "speaker_embed_dim": size("spk_embed_affine_layer.weight", 1),
        }
        if is_dit(state):
            width, head_width = size(f"{_NET}.input_embed.proj.weight"), 2 * size(RATES)
            block, lookahead = f"{_NET}.transformer_blocks.0", "pre_lookahead_layer.conv1.weight"
            return shared | {
                "network": "dit",
                "mel_bins": size(f"{_NET}.proj_out.weight"),
                "pre_lookahead_len": size(lookahead, 2) - 1,
                "pre_lookahead_channels": size(lookahead),
                "decoder_channels": width,
                "decoder_num_mid_blocks": count_of(state, f"{_NET}.transformer_blocks.{{}}.attn.to_q.weight"),
                "decoder_num_heads": size(f"{block}.attn.to_q.weight") // head_width,
                "decoder_attention_head_dim": head_width,
                "decoder_ff_mult": size(f"{block}.ff.ff.0.0.weight") // width,
            }
        width = size(f"{_NET}.final_proj.weight", 1)
        queries = size(f"{_NET}.down_blocks.0.1.0.attn1.to_q.weight")
        heads = int(given.get("decoder_num_heads", 0))
        if (width, queries) == (256, 512):
            heads = heads or S3GenConfig.decoder_num_heads
        if heads < 1 or queries % heads:
            raise CheckpointError(
                f"attention over {queries} channels with {heads or 'unknown'} heads: weights do not say them; give "
                "config={'decoder_num_heads': n}, or open the folder that training wrote"
            )
        sizes = shared | {
            "mel_bins": size("encoder_proj.weight"),
            "encoder_attention_heads": size("encoder.encoders.0.self_attn.pos_bias_u"),
            "encoder_linear_units": size("encoder.encoders.0.feed_forward.w_1.weight"),
            "encoder_num_blocks": count_of(state, "encoder.encoders.{}.norm_ff.weight"),
            "encoder_num_up_blocks": count_of(state, "encoder.up_encoders.{}.norm_ff.weight"),
            "token_mel_ratio": size("encoder.up_layer.conv.weight", 2) // 2,
            "pre_lookahead_len": size("encoder.pre_lookahead_layer.conv1.weight", 2) - 1,
            "decoder_channels": width,
            "decoder_n_blocks": count_of(state, f"{_NET}.down_blocks.0.1.{{}}.norm1.weight"),
            "decoder_num_mid_blocks": count_of(state, f"{_NET}.mid_blocks.{{}}.0.res_conv.weight"),
            "decoder_num_heads": heads,
            "decoder_attention_head_dim": queries // heads,
        }
        return sizes | (MEANFLOW if MIXER in state else {})
    except KeyError as error:
        raise CheckpointError(f"the flow lacks {error}: the file is damaged or of another model") from error


# HiFT ------------------------------------------------------------------------------------------------------

_BLOCKS = [(blocks, k) for blocks in ("resblocks", "source_resblocks") for k in (1, 2)]
_PLAIN = ("source_downs.{i}", "f0_predictor.classifier", "m_source.l_linear")  # published without weight norm
_NORMED = ("conv_pre", "conv_post", "ups.{i}", "f0_predictor.condnet.{i}")
_CONVS = tuple(f"{blocks}.{{i}}.convs{k}.{{j}}" for blocks, k in _BLOCKS)
HIFT_TABLE = NameTable(
    [(f"{module}.{end}",) * 2 for module in _PLAIN + _NORMED + _CONVS for end in ("weight", "bias")]
    + [(f"{blocks}.{{i}}.activations{k}.{{j}}.alpha",) * 2 for blocks, k in _BLOCKS],
    dropped={
        "discriminator.*": "of GAN training",
        "epoch": "CosyVoice's training files count in the state dict",
        "step": "likewise",
    },
)
Spelling = Literal["parametrizations", "weight_g", "folded"]
_NEWER = ".parametrizations.weight.original"


def hift_from_published(state: Mapping[str, Tensor]) -> State:
    """Weights by our names, weight norm folded, of a published state dict, alone or under the prefix that it has in
    Chatterbox's whole model or in CosyVoice's GAN training."""
    bare = {re.sub("^(mel2wav|generator)\\.", "", key): value for key, value in state.items()}
    if len(bare) < len(state):
        raise CheckpointError("a tensor occurs twice, with and without mel2wav. or generator.: damaged file")
    ours = HIFT_TABLE.to_ours(fold_weight_norm(bare))
    return {key: value[None, :, None] if key.endswith(".alpha") else value for key, value in ours.items()}


def hift_to_published(state: Mapping[str, Tensor], spelling: Spelling = "parametrizations") -> State:
    """Published names without a prefix of our folded weights, weight norm spelled as newer files do by default."""
    state = {key: value.flatten() if key.endswith(".alpha") else value for key, value in state.items()}
    published = HIFT_TABLE.to_published(state)
    if spelling == "folded":
        return published
    plain = tuple(name.removesuffix("{i}") for name in _PLAIN)
    modules = [key.removesuffix(".weight") for key in published if key.endswith(".weight")]
    unfolded = unfold_weight_norm(published, [name for name in modules if not name.startswith(plain)])
    if spelling == "weight_g":
        return unfolded
    return {
        key.replace(".weight_g", f"{_NEWER}0").replace(".weight_v", f"{_NEWER}1"): value
        for key, value in unfolded.items()
    }


def hift_config(state: Mapping[str, Tensor], source: str | None) -> HiFTNetConfig:
    """The config of the 24 kHz vocoder with the sizes of weights by our names and the sines of `source`.

    Names are those of every release, kernels tell CosyVoice 3, whose source is "v3" and may be None. Raises
    CheckpointError for parts of different releases, or a source of another; ConfigError for no source.
    """
    try:
        kernels = [state[f"{name}.weight"].shape[-1] for name in ("conv_pre", "f0_predictor.condnet.0")]
        width, bands = state["conv_pre.weight"].shape[:2]
        sizes = {
            "base_channels": width,
            "in_channels": bands,
            "f0_predictor_in_channels": bands,
            "f0_predictor_cond_channels": state["f0_predictor.classifier.weight"].shape[1],
            "nb_harmonics": state["m_source.l_linear.weight"].shape[1] - 1,
        }
    except KeyError as error:
        raise CheckpointError(f"the vocoder lacks {error}: it is damaged or of another model") from error
    if kernels not in ([7, 3], [5, 4]):
        raise CheckpointError(
            f"kernels of {kernels[0]} in conv_pre and {kernels[1]} in f0_predictor.condnet.0 were given: 7 and 3 "
            "(Chatterbox, CosyVoice 2) or 5 and 4 (CosyVoice 3) are accepted; the file is damaged or of two models"
        )
    causal = kernels == [5, 4]
    source = "v3" if source is None and causal else source
    if source is None:
        raise ConfigError(
            'a vocoder alone does not say which sines drive it: give config={"source": "v1"} (Chatterbox) or '
            '"v2" (CosyVoice 2)'
        )
    if causal != (source == "v3"):
        raise CheckpointError(
            f"the vocoder is {'' if causal else 'not '}CosyVoice 3's and sines of {source} were given: a flow "
            "and a vocoder of one release belong together"
        )
    return build_config(HiFTNetConfig, asdict(S3GEN_24K) | sizes | {"source": source}, "the vocoder's config")
