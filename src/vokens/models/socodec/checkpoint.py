"""SoCodec's published weights: analyzer, vocoder and HuBERT, under the names of their three files.

One table per file serves both directions. HuBERT comes as fairseq's training checkpoint, in transformers' layout, or
inside the analyzer's file.
"""

from collections.abc import Collection, Sequence

import torch

from vokens.checkpoint import NameTable, State, fold_weight_norm, unfold_weight_norm
from vokens.errors import CheckpointError
from vokens.models.socodec.vocoder import low_pass

INSIDE = "ssl_extractor.model."  # HuBERT inside the analyzer's file
_UNUSED = "of HuBERT's training"
_FILTERS = (".upsample.filter", ".downsample.lowpass.filter")


def _stack(published: str, ours: str, blocks: Sequence[str]) -> list[tuple[str, str]]:
    """Rows of a causal stack; its layers are numbered with swish and an empty layer between them."""
    rows = [(f"{published}.layers.0.*", f"{ours}.first.*")]
    for i, kind in enumerate(blocks):
        layers, block = f"{published}.layers.{2 + 3 * i}.layers", f"{ours}.blocks.{i}"
        units, conv = ((0, 3), "6") if kind == "down" else ((3, 6), "0")
        rows += [
            (f"{layers}.{place}.layers.{3 * j}.*", f"{block}.units.{unit}.conv{j + 1}.*")
            for unit, place in enumerate(units)
            for j in range(2)
        ]
        rows.append((f"{layers}.{conv}.*", f"{block}.conv.*" if kind == "down" else f"{block}.conv.up.*"))
    return [*rows, (f"{published}.layers.{2 + 3 * len(blocks)}.*", f"{ours}.last.*")]


def analyzer_table(num_strides: int) -> NameTable:
    """Names of the analyzer whose encoder has num_strides strides, without its HuBERT."""
    ecapa = "speaker_encoder"
    rows = [
        (f"{ecapa}.blocks.0.conv.conv.*", "speaker.first.*"),
        (f"{ecapa}.mfa.conv.conv.*", "speaker.join.*"),
        (f"{ecapa}.asp.tdnn.conv.conv.*", "speaker.pool.tdnn.*"),
        (f"{ecapa}.asp.conv.conv.*", "speaker.pool.conv.*"),
        (f"{ecapa}.fc.conv.*", "speaker.out.*"),
        ("quantizer.quantizers.0.project_in.*", "codebooks.project_in.*"),
        ("quantizer.quantizers.0.project_out.*", "codebooks.project_out.*"),
        ("quantizer.quantizers.0._codebook.codebooks.{i}.*", "codebooks.codebooks.{i}.*"),
    ]
    for i in range(3):
        block, ours = f"{ecapa}.blocks.{i + 1}", f"speaker.blocks.{i}"
        rows += [
            (f"{block}.tdnn1.conv.conv.*", f"{ours}.tdnn1.*"),
            (f"{block}.tdnn2.conv.conv.*", f"{ours}.tdnn2.*"),
            (f"{block}.res2net_block.blocks.0.conv.conv.*", f"{ours}.res2net.*"),
            (f"{block}.se_block.conv1.conv.*", f"{ours}.squeeze.*"),
            (f"{block}.se_block.conv2.conv.*", f"{ours}.excite.*"),
        ]
    rows += _stack("encoder", "encoder", ["down"] * num_strides)
    rows += _stack("decoder_1", "semantic_decoder", ["up"] * num_strides)
    rows += _stack("decoder_2", "mel_decoder", ["up"])
    return NameTable(rows)


VOCODER = NameTable(
    [
        ("conv_pre.*", "vocoder.first.*"),
        ("ups.{i}.0.*", "vocoder.ups.{i}.*"),
        ("resblocks.{i}.convs.{j}.*", "vocoder.blocks.{i}.convs.{j}.*"),
        ("resblocks.{i}.activations.{j}.act.*", "vocoder.blocks.{i}.activations.{j}.*"),
        ("activation_post.act.*", "vocoder.activation.*"),
        ("conv_post.*", "vocoder.last.*"),
    ]
)

_LAYER = "encoder.layers.{i}."
_HUBERT_ROWS = [  # fairseq -> transformers
    ("feature_extractor.conv_layers.{i}.0.weight", "feature_extractor.conv_layers.{i}.conv.weight"),
    ("feature_extractor.conv_layers.{i}.2.1.*", "feature_extractor.conv_layers.{i}.layer_norm.*"),
    ("layer_norm.*", "feature_projection.layer_norm.*"),
    ("post_extract_proj.*", "feature_projection.projection.*"),
    ("encoder.pos_conv.0.*", "encoder.pos_conv_embed.conv.*"),
    ("encoder.layer_norm.*", "encoder.layer_norm.*"),
    *(
        (f"{_LAYER}self_attn.{name}_proj.*", f"{_LAYER}attention.{name}_proj.*")
        for name in ("q", "k", "v", "out")
    ),
    (f"{_LAYER}self_attn_layer_norm.*", f"{_LAYER}layer_norm.*"),
    (f"{_LAYER}fc1.*", f"{_LAYER}feed_forward.intermediate_dense.*"),
    (f"{_LAYER}fc2.*", f"{_LAYER}feed_forward.output_dense.*"),
    (f"{_LAYER}final_layer_norm.*", f"{_LAYER}final_layer_norm.*"),
]
FAIRSEQ = NameTable(
    [(theirs, f"hubert.model.{ours}") for theirs, ours in _HUBERT_ROWS],
    dropped={"mask_emb": _UNUSED, "final_proj.*": _UNUSED, "label_embs_concat": _UNUSED},
)
TRANSFORMERS = NameTable(
    [(ours, f"hubert.model.{ours}") for _, ours in _HUBERT_ROWS], dropped={"masked_spec_embed": _UNUSED}
)


def is_analyzer(keys: Collection[str]) -> bool:
    return "quantizer.quantizers.0._codebook.codebooks.0.embed" in keys


def is_vocoder(keys: Collection[str]) -> bool:
    return "resblocks.0.activations.0.act.alpha" in keys and "conv_pre.bias" in keys


def vocoder_to_ours(state: State) -> State:
    """The vocoder under our names; its stored low-pass filters must be the one that we compute."""
    taps = torch.tensor(low_pass())
    for name in [name for name in state if name.endswith(_FILTERS)]:
        if not torch.allclose(state[name].float().flatten(), taps, atol=1e-5):
            raise CheckpointError(f"{name} is not SoCodec's low-pass filter: the vocoder is another model")
    kept = {name: value.float() for name, value in state.items() if not name.endswith(_FILTERS)}
    return VOCODER.to_ours(fold_weight_norm(kept))


def vocoder_to_published(ours: State) -> State:
    """A vocoder under the published names: with weight norm, and with a filter beside every activation."""
    state = VOCODER.to_published(ours)
    for activation in [name.removesuffix(".act.alpha") for name in state if name.endswith(".act.alpha")]:
        state |= {activation + end: torch.tensor(low_pass()).view(1, 1, -1) for end in _FILTERS}
    folded = [name.removesuffix(".weight") for name in state if name.endswith(".weight")]
    return unfold_weight_norm(state, folded)


def hubert_to_ours(state: State) -> State:
    """HuBERT's weights from fairseq's or transformers' layout, the positional convolution folded."""
    state = {name.removeprefix("hubert."): value.float() for name, value in state.items()}
    fairseq = "post_extract_proj.weight" in state
    conv = "encoder.pos_conv.0" if fairseq else "encoder.pos_conv_embed.conv"
    for g, v in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        if f"{conv}.{g}" in state and f"{conv}.{v}" in state:
            gain, direction = state.pop(f"{conv}.{g}"), state.pop(f"{conv}.{v}")
            state[f"{conv}.weight"] = torch._weight_norm(direction, gain, 2)  # over all axes but the last
    return (FAIRSEQ if fairseq else TRANSFORMERS).to_ours(state)


def hubert_to_fairseq(ours: State) -> State:
    """HuBERT's weights under fairseq's names, without what only its training needs."""
    state = FAIRSEQ.to_published(ours)
    weight = state.pop("encoder.pos_conv.0.weight")
    state["encoder.pos_conv.0.weight_g"] = torch.norm_except_dim(weight, 2, 2)
    state["encoder.pos_conv.0.weight_v"] = weight
    return state
