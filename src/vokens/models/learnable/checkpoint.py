"""Published weights: Learnable-Speech's, CosyVoice 2's and 3's llm.pt, and Qwen2 as transformers saves it.

Names tell the release: CosyVoice 3's has no `llm_embedding`. Shapes tell all sizes but the number of heads, which
must be given for networks of other than the released sizes.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vokens.checkpoint import NameTable, State, count_of, read_state_dict
from vokens.errors import CheckpointError
from vokens.models.learnable.config import TOKENS, LearnableLMConfig, Qwen2Sizes, SpeakerConfig
from vokens.models.pretrained import layout_of
from vokens.text.files import read_json

_EMBEDDING, _TIED = "llm.model.model.embed_tokens.weight", "llm.model.lm_head.weight"
SPEAKER_ROWS = [
    ("speaker_encoder.init.*", "speaker_encoder.first.*"),
    ("speaker_encoder.attn.{i}.norm.*", "speaker_encoder.attention.{i}.norm.*"),
    ("speaker_encoder.attn.{i}.qkv.*", "speaker_encoder.attention.{i}.qkv.*"),
    ("speaker_encoder.attn.{i}.proj_out.*", "speaker_encoder.attention.{i}.out.*"),
    ("speaker_encoder.output_proj.*", "speaker_encoder.project.*"),
]
TABLE = NameTable(
    [
        ("llm.model.model.*", "backbone.*"),
        ("llm_embedding.weight", "marks.weight"),
        ("speech_embedding.weight", "speech_embedding.weight"),
        ("llm_decoder.*", "head.*"),
        *SPEAKER_ROWS,
        ("spk_embed_affine_layer.*", "speaker_project.*"),
    ],
    dropped={_TIED: "the head over text, tied to its embedding, is not used"},
)


def settings_beside(path: Path) -> dict[str, Any]:
    """Settings in the folder of an llm.pt: sizes of CosyVoice-BlankEN's network, and its text tokenizer."""
    folder = path.parent / "CosyVoice-BlankEN"
    if not folder.is_dir():
        return {}
    described = folder / "config.json"
    return (read_json(described) if described.is_file() else {}) | {"text_tokenizer": str(folder.absolute())}


def configure(state: State, config: LearnableLMConfig | Mapping[str, Any] | None = None) -> LearnableLMConfig:
    """Sizes of published weights. config: a LearnableLMConfig, or Qwen2's config.json
    ("num_attention_heads", "rope_theta", ...), with "speaker_heads" and "text_tokenizer", a folder, beside it.

    Raises CheckpointError where heads are neither given nor those of a release.
    """
    if isinstance(config, LearnableLMConfig):
        return config
    settings, first = config or {}, "llm.model.model.layers.0."
    width, released = state["speech_embedding.weight"].shape[1], Qwen2Sizes()
    release = "cosyvoice2" if "llm_embedding.weight" in state else "cosyvoice3"
    layers = count_of(state, "llm.model.model.layers.{}.input_layernorm.weight")
    if not layers:
        raise CheckpointError("the backbone has no layers: the file is damaged or of another model")
    hidden = state[first + "mlp.up_proj.weight"].shape[0]
    keys = state[first + "self_attn.k_proj.weight"].shape[0]
    heads = int(settings.get("num_attention_heads", 0))
    if (width, hidden, layers, keys) == (released.width, released.hidden, released.layers, 128):
        heads = heads or released.heads
    if heads < 1 or width % heads or keys % (width // heads):
        raise CheckpointError(
            f"a backbone {width} wide with {layers} layers and {heads or 'unknown'} heads: weights do not say them; "
            "give config={'num_attention_heads': n}, put CosyVoice-BlankEN/config.json beside llm.pt, or open the "
            "folder that training wrote"
        )
    rope = settings.get("rope_parameters") or {}
    backbone = Qwen2Sizes(
        vocab_size=state[_EMBEDDING].shape[0],
        width=width,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=keys // (width // heads),
        max_positions=int(settings.get("max_position_embeddings", Qwen2Sizes.max_positions)),
        rope_theta=float(settings.get("rope_theta", rope.get("rope_theta", Qwen2Sizes.rope_theta))),
        norm_eps=float(settings.get("rms_norm_eps", Qwen2Sizes.norm_eps)),
    )
    speaker = None
    if "speaker_encoder.init.weight" in state:
        speaker = speaker_sizes(state, settings.get("speaker_heads"))
    tokenizer = settings.get("text_tokenizer", "")
    config = LearnableLMConfig(
        backbone,
        speaker,
        front_end=tokenizer and f"{'bpe' if release == 'cosyvoice2' else release}:{tokenizer}",
        tokens=TOKENS[release],
        release=release,
    )
    rows = state["llm_decoder.weight"].shape[0]
    return replace(config, speech_tokens=rows - (config.outputs - config.speech_tokens))


def speaker_sizes(state: Mapping[str, Tensor], heads: int | None) -> SpeakerConfig:
    """Sizes of a published speaker encoder. Raises CheckpointError where heads are neither given nor the release's."""
    width, n_mels = state["speaker_encoder.init.weight"].shape[:2]
    released = SpeakerConfig(published=True)
    sizes = {
        "n_mels": n_mels,
        "width": width,
        "layers": count_of(state, "speaker_encoder.attn.{}.norm.weight"),
        "embed_dim": state["speaker_encoder.output_proj.weight"].shape[0],
    }
    if heads is None and replace(released, **sizes) != released:
        raise CheckpointError(
            f"a speaker encoder {width} wide is not the released one, and its weights do not say its heads: give "
            "config={'speaker_heads': n}, or open the folder that training wrote"
        )
    return replace(released, **sizes, heads=released.heads if heads is None else int(heads))


def to_published(state: State) -> State:
    """Our names to the published ones, the tied head of text included."""
    published = TABLE.to_published(state)
    return published | {_TIED: published[_EMBEDDING]}


def read_start(source: str | Path) -> State:
    """Weights to start from, under our names: a published llm.pt, a transformers folder or file of Qwen2, or a
    folder of ours.

    Raises CheckpointError where it is neither.
    """
    path = Path(source).expanduser()
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    state = {name: value for file in files for name, value in read_state_dict(file).items()}
    if layout_of(state) == "learnable_lm":
        return TABLE.to_ours(state)
    if {"speech_embedding.weight", "head.weight"} <= set(state):
        return state
    if "model.embed_tokens.weight" in state:
        table = NameTable([("model.*", "backbone.*")], dropped={"lm_head.weight": "the head over text"})
        return table.to_ours(state)
    raise CheckpointError(
        f"{source} is no start for this model: a published llm.pt, a transformers folder of Qwen2 with "
        "*.safetensors, or a trained folder of ours is accepted"
    )


def started(own: State, source: str | Path, config: LearnableLMConfig) -> State:
    """A model's state with weights of `read_start` in it. Raises CheckpointError for sizes or releases that differ."""
    state = read_start(source)
    whole = "head.weight" in state
    release = "cosyvoice2" if "marks.weight" in state else "cosyvoice3"
    others = set(TOKENS.values()) - {TOKENS[release]} if Path(source).expanduser().is_file() else set()
    if whole and (release != config.release or config.tokens in others):
        raise CheckpointError(
            f"{source} is of {release}, which speaks tokens of {TOKENS[release]}; this model is of "
            f"{config.release} and learns those of {config.tokens}: give weights of the tokens' release "
            "and set model.release"
        )
    missing = [name for name in own if name not in state and (whole or name.startswith("backbone."))]
    missing = [name for name in missing if not name.startswith("speaker_")]
    if missing:
        raise CheckpointError(f"{source} lacks {len(missing)} tensors, {missing[0]} the first")
    return own | state
