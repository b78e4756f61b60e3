"""Published S3Gens, told apart by content: Chatterbox in one file, base or turbo, CosyVoice 2 and 3 in folders.

Sizes follow from shapes, and every tensor must have its place.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vokens.checkpoint import State, load_strict, read_state_dict
from vokens.config import build_config
from vokens.errors import CheckpointError, ConfigError
from vokens.models.pretrained import layout_of, load
from vokens.models.s3gen.checkpoint import RATES, flow_from_published, is_dit
from vokens.models.s3gen.config import DIALECTS, S3GenConfig
from vokens.models.s3gen.flow import TokenToMel
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3gen.model_config import TOKENS_OF, S3GenModelConfig
from vokens.models.s3tokenizer import S3Tokenizer
from vokens.models.s3tokenizer import checkpoint as tokenizer_layout
from vokens.nn.campplus import CAMPPlus, open_campplus
from vokens.nn.campplus_onnx import campplus_state
from vokens.onnx_file import is_onnx, read_onnx
from vokens.text.files import read_json

PARTS = ("tokenizer", "speaker_encoder", "flow", "mel2wav")
# One file of a whole model, the one that its publisher's program loads first: Turbo's and Nano's snapshots also hold
# Chatterbox's s3gen, and Chatterbox's a v3 that its multilingual program leaves out.
SINGLE = (
    "s3gen_meanflow.safetensors",
    "s3gen.safetensors",
    "s3gen.pt",
    "s3gen_v3.safetensors",
    "s3gen_v3.pt",
)
_MIXER = "decoder.estimator.time_embed_mixer.weight"
_SUFFIXES = (".safetensors", ".pt", ".bin", ".pth", ".onnx")


def from_chatterbox(cls: type, state: Mapping[str, Tensor], config: Any) -> Any:
    """The model of one published file; cls is S3GenModel."""
    parts: dict[str, State] = {part: {} for part in PARTS}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part not in parts or not rest:
            raise CheckpointError(f"{name} is in none of {PARTS}: the file is of another model")
        parts[part][rest] = tensor
    meanflow = _MIXER in parts["flow"]
    name = "chatterbox-turbo" if meanflow else "chatterbox"
    flow = open_flow(parts["flow"], DIALECTS[name], config)
    tokenizer = S3Tokenizer.from_published(parts["tokenizer"], _heads(parts["tokenizer"]))
    speaker = CAMPPlus()
    load_strict(speaker, parts["speaker_encoder"], "of the speaker encoder")
    model = join(
        cls,
        flow,
        HiFTNetModel.from_published(parts["mel2wav"], {"source": flow.config.source}),
        speaker,
        tokenizer,
        published=True,
    )
    return model.named(name)


def from_folder(cls: type, folder: Path, config: Any) -> Any | None:
    """The model of Chatterbox's or CosyVoice's folder, whatever else is in it; None where it holds neither."""
    single = [folder / name for name in SINGLE if (folder / name).exists()]
    if not single and _transformers(folder):
        single = [folder / "model.safetensors"]
    if single:
        state = read_state_dict(single[0])
        return from_chatterbox(cls, state, config) if layout_of(state) == "s3gen" else None
    flow, vocoder = find_part(folder, "flow"), find_part(folder, "hift")
    if flow is None or vocoder is None:
        return None
    return _from_cosyvoice(cls, folder, flow, vocoder, config)


def _transformers(folder: Path) -> bool:
    """Whether a folder is S3Gen's as transformers writes one: sizes follow from the tensors there too."""
    described = folder / "config.json"
    if not described.exists() or not (folder / "model.safetensors").exists():
        return False
    settings = read_json(described)
    return isinstance(settings, dict) and settings.get("model_type") == "s3gen"


def _from_cosyvoice(cls: type, folder: Path, flow: Path, vocoder: Path, config: Any) -> Any:
    state = read_state_dict(flow)
    release = "cosyvoice3" if is_dit(state) else "cosyvoice2"
    made = open_flow(state, DIALECTS[release], config)
    tokens = TOKENS_OF[made.config.network]
    speaker, tokenizer = find_part(folder, "campplus"), find_part(folder, tokens.removesuffix("_25hz"))
    codec = None if tokenizer is None else _open_tokenizer(tokenizer)
    if codec is not None and codec.name in TOKENS_OF.values() and codec.name != tokens:
        raise CheckpointError(
            f"{tokenizer} is {codec.name} and the flow beside it has learnt {tokens}, whose ids mean other sounds: put "
            "the tokenizer of the flow's release there"
        )
    model = join(
        cls,
        made,
        HiFTNetModel.from_published(read_state_dict(vocoder), {"source": made.config.source}),
        None if speaker is None else open_speaker(speaker),
        codec,
        published=True,
    )
    return model.named(release)


def find_part(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in _SUFFIXES if (path := folder / f"{stem}{suffix}").exists()), None)


# Parts -----------------------------------------------------------------------------------------------------


def open_parts(flow: Any, mel2wav: Any, speaker: Any, tokenizer: Any) -> tuple[Any, Any, Any, Any]:
    """Parts that are given as themselves, folders, files or names."""
    return (
        _opened(flow, TokenToMel, "flow"),
        _opened(mel2wav, HiFTNetModel, "mel2wav"),
        speaker if speaker is None or isinstance(speaker, CAMPPlus) else open_speaker(Path(speaker)),
        None if tokenizer is None else _opened(tokenizer, S3Tokenizer, "tokenizer"),
    )


def _opened(source: Any, kind: Any, role: str) -> Any:
    part = source if isinstance(source, kind) else load(source)
    if not isinstance(part, kind):
        raise CheckpointError(f"{role}={source} holds {part.system!r}: {kind.__name__} is accepted")
    return part


def join(
    cls: type,
    flow: TokenToMel,
    mel2wav: HiFTNetModel,
    speaker: CAMPPlus | None,
    tokenizer: S3Tokenizer | None,
    published: bool = False,
) -> Any:
    """The whole model of its parts. published: the tokenizer's name alone says whose tokens are spoken."""
    config = replace(
        S3GenModelConfig.of_flow(replace(flow.config, vocab_size=max(flow.config.vocab_size, 6561))),
        flow=flow.config,
        mel2wav=mel2wav.config,
        tokenizer=None if tokenizer is None else tokenizer.config,
        speaker_encoder=speaker is not None,
    )
    if tokenizer is not None and not published:
        config = replace(config, tokens=tokenizer.name, tokens_fingerprint=tokenizer.fingerprint)
    return cls(config, tokenizer=tokenizer, speaker_encoder=speaker, flow=flow, mel2wav=mel2wav)


def open_flow(state: Mapping[str, Tensor], dialect: S3GenConfig, config: Any) -> TokenToMel:
    """The flow of published weights without prefix."""
    settings = _settings(config)
    settings = flow_sizes(state, settings) | settings
    if _MIXER in state and not dialect.meanflow:
        turbo = DIALECTS["chatterbox-turbo"]
        fields = ("meanflow", "cfm_steps", "cfm_t_scheduler", "cfm_inference_cfg_rate")
        dialect = replace(dialect, **{name: getattr(turbo, name) for name in fields})
    with torch.device("meta"):  # CosyVoice 3's has 332 million numbers, which would be drawn for nothing
        flow = TokenToMel(build_config(S3GenConfig, asdict(dialect) | settings, "S3Gen's config"))
    flow.to_empty(device="cpu")
    load_strict(flow, flow_from_published(state), "of the flow")
    return flow


def _settings(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    if isinstance(config, S3GenConfig):
        return asdict(config)
    if not isinstance(config, Mapping):
        raise ConfigError(f"config={config!r} was given: settings of S3GenConfig are accepted")
    return dict(config)


def flow_sizes(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that the shapes of published weights give, and the estimator's heads, which are given or the release's.

    Raises CheckpointError where they are neither.
    """
    estimator, released = "decoder.estimator", S3GenConfig()
    try:
        if is_dit(state):
            return _dit_sizes(state)
        width = state[f"{estimator}.final_proj.weight"].shape[1]
        queries = state[f"{estimator}.down_blocks.0.1.0.attn1.to_q.weight"].shape[0]
        heads = int(given.get("decoder_num_heads", 0))
        if (width, queries) == (256, 512):
            heads = heads or released.decoder_num_heads
        if heads < 1 or queries % heads:
            raise CheckpointError(
                f"attention over {queries} channels with {heads or 'unknown'} heads: weights do not say them; give "
                "config={'decoder_num_heads': n}, or open the folder that training wrote"
            )
        return {
            "vocab_size": state["input_embedding.weight"].shape[0],
            "token_embed_dim": state["input_embedding.weight"].shape[1],
            "speaker_embed_dim": state["spk_embed_affine_layer.weight"].shape[1],
            "mel_bins": state["encoder_proj.weight"].shape[0],
            "encoder_attention_heads": state["encoder.encoders.0.self_attn.pos_bias_u"].shape[0],
            "encoder_linear_units": state["encoder.encoders.0.feed_forward.w_1.weight"].shape[0],
            "encoder_num_blocks": _count(state, r"encoder\.encoders\.(\d+)\."),
            "encoder_num_up_blocks": _count(state, r"encoder\.up_encoders\.(\d+)\."),
            "token_mel_ratio": state["encoder.up_layer.conv.weight"].shape[2] // 2,
            "pre_lookahead_len": state["encoder.pre_lookahead_layer.conv1.weight"].shape[2] - 1,
            "decoder_channels": width,
            "decoder_n_blocks": _count(state, rf"{estimator}\.down_blocks\.0\.1\.(\d+)\."),
            "decoder_num_mid_blocks": _count(state, rf"{estimator}\.mid_blocks\.(\d+)\."),
            "decoder_num_heads": heads,
            "decoder_attention_head_dim": queries // heads,
        }
    except KeyError as error:
        raise CheckpointError(f"the flow lacks {error}: the file is damaged or of another model") from error


def _dit_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    estimator = "decoder.estimator"
    width = state[f"{estimator}.input_embed.proj.weight"].shape[0]
    head_width = 2 * len(state[RATES])
    block, lookahead = f"{estimator}.transformer_blocks.0", state["pre_lookahead_layer.conv1.weight"].shape
    return {
        "network": "dit",
        "vocab_size": state["input_embedding.weight"].shape[0],
        "token_embed_dim": state["input_embedding.weight"].shape[1],
        "speaker_embed_dim": state["spk_embed_affine_layer.weight"].shape[1],
        "mel_bins": state[f"{estimator}.proj_out.weight"].shape[0],
        "pre_lookahead_len": lookahead[2] - 1,
        "pre_lookahead_channels": lookahead[0],
        "decoder_channels": width,
        "decoder_num_mid_blocks": _count(state, rf"{estimator}\.transformer_blocks\.(\d+)\."),
        "decoder_num_heads": state[f"{block}.attn.to_q.weight"].shape[0] // head_width,
        "decoder_attention_head_dim": head_width,
        "decoder_ff_mult": state[f"{block}.ff.ff.0.0.weight"].shape[0] // width,
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.match(pattern, name))})


def open_speaker(path: Path) -> CAMPPlus:
    if path.is_dir() or not is_onnx(path):
        return open_campplus(path)
    model = CAMPPlus()
    load_strict(model, campplus_state(read_onnx(path), model), path)
    return model.eval().requires_grad_(False)


def _open_tokenizer(path: Path) -> S3Tokenizer:
    if is_onnx(path):
        graph = read_onnx(path)
        return S3Tokenizer.from_onnx(graph, _heads(tokenizer_layout.from_graph(graph)[0]))
    state = read_state_dict(path)
    return S3Tokenizer.from_published(state, _heads(state))


def _heads(tokenizer: Mapping[str, Tensor]) -> dict[str, int]:
    """Of the tokenizer inside a whole S3Gen, which is S3Tokenizer v2 or v3: 64 channels wide."""
    conv = tokenizer.get("encoder.conv1.weight")
    return {} if conv is None else {"heads": max(1, conv.shape[0] // 64)}
