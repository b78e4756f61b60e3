"""Opening S3Gen's published releases, told apart by content: Chatterbox in one file, base or turbo, CosyVoice 2 and 3
in folders. Sizes follow from shapes, and every tensor must have its place.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vokens.checkpoint import State, load_strict, read_state_dict
from vokens.config import build_config
from vokens.errors import CheckpointError, ConfigError
from vokens.models.pretrained import layout_of
from vokens.models.s3gen.checkpoint import MIXER, flow_from_published, flow_sizes, is_dit
from vokens.models.s3gen.config import DIALECTS, TOKENS_OF, S3GenConfig, S3GenModelConfig
from vokens.models.s3gen.flow import TokenToMel
from vokens.models.s3gen.hift import HiFTNetModel
from vokens.models.s3tokenizer import S3Tokenizer
from vokens.models.s3tokenizer import checkpoint as tokenizer_layout
from vokens.nn.campplus import CAMPPlus
from vokens.nn.campplus_onnx import open_campplus
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
_SUFFIXES = (".safetensors", ".pt", ".bin", ".pth", ".onnx")


def from_chatterbox(cls: type, state: Mapping[str, Tensor], config: Any) -> Any:
    """The model of one published file; cls is S3GenModel."""
    parts: dict[str, State] = {part: {} for part in PARTS}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part not in parts or not rest:
            raise CheckpointError(f"{name} is in none of {PARTS}: the file is of another model")
        parts[part][rest] = tensor
    name = "chatterbox-turbo" if MIXER in parts["flow"] else "chatterbox"
    flow = open_flow(parts["flow"], DIALECTS[name], config)
    tokenizer = S3Tokenizer.from_published(parts["tokenizer"], _heads(parts["tokenizer"]))
    speaker = CAMPPlus()
    load_strict(speaker, parts["speaker_encoder"], "of the speaker encoder")
    vocoder = HiFTNetModel.from_published(parts["mel2wav"], {"source": flow.config.source})
    return join(cls, flow, vocoder, speaker, tokenizer, published=True).named(name)


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
        return _refuse_half(folder, flow, vocoder)
    return _from_cosyvoice(cls, folder, flow, vocoder, config)


def _refuse_half(folder: Path, flow: Path | None, vocoder: Path | None) -> None:
    """Raise CheckpointError for a folder of CosyVoice that lacks a part."""
    parts = flow, vocoder, find_part(folder, "llm"), find_part(folder, "campplus")
    there = [part for part in parts if part]
    if len(there) > 1:
        raise CheckpointError(
            f"{folder} holds {' and '.join(part.name for part in there)} and no "
            f"{'flow.pt' if flow is None else 'hift.pt'}: CosyVoice's speech needs flow.pt and hift.pt; download what "
            "is missing, or give one of the files"
        )


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
    hift = HiFTNetModel.from_published(read_state_dict(vocoder), {"source": made.config.source})
    encoder = None if speaker is None else open_campplus(speaker)
    return join(cls, made, hift, encoder, codec, published=True).named(release)


def find_part(folder: Path, stem: str) -> Path | None:
    return next((path for suffix in _SUFFIXES if (path := folder / f"{stem}{suffix}").exists()), None)


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


def open_flow(state: Mapping[str, Tensor], release: S3GenConfig, config: Any) -> TokenToMel:
    """The flow of published weights without prefix."""
    if config is not None and not isinstance(config, S3GenConfig | Mapping):
        raise ConfigError(f"config={config!r} was given: settings of S3GenConfig are accepted")
    settings = asdict(config) if isinstance(config, S3GenConfig) else dict(config or {})
    settings = asdict(release) | flow_sizes(state, settings) | settings
    sizes = build_config(S3GenConfig, settings, "S3Gen's config")
    return TokenToMel.with_weights(sizes, flow_from_published(state), "of the flow")


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
