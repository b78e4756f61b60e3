"""Models that can be saved and loaded, as one folder of config.json, model.safetensors and a card, and `load`, which
opens any of them from a name, folder, file or hub id.

Codecs, autoencoders, token-to-wave models and language models are all `Pretrained`. Files are recognised by their
content: our folders name their system, published checkpoints have known tensor names (`LAYOUTS`). A system is imported
only when it has matched.
"""

import dataclasses
import json
import re
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from vokens import checkpoint, registry
from vokens.atomic import atomic_write
from vokens.config import build_config
from vokens.device import usable_device
from vokens.errors import CheckpointError, ConfigError
from vokens.nn.product import warn_where_slow
from vokens.onnx_file import is_onnx, read_onnx
from vokens.packed import pack
from vokens.text.files import read_json

# system -> (module, class). A new system joins here.
SYSTEMS = {
    "mini": ("vokens.models.mini", "Mini"),
    "speechtokenizer": ("vokens.models.speechtokenizer", "SpeechTokenizer"),
    "s3tokenizer": ("vokens.models.s3tokenizer", "S3Tokenizer"),
    "socodec": ("vokens.models.socodec", "SoCodec"),
    "dacvae": ("vokens.models.dacvae", "DACVAE"),
    "flowae": ("vokens.models.flowae", "FlowAE"),
    "learnable": ("vokens.models.learnable.voice", "LearnableSpeech"),
    "learnable_lm": ("vokens.models.learnable", "LearnableLM"),
    "learnable_flow": ("vokens.models.learnable.flow", "LearnableFlow"),
    "s3gen": ("vokens.models.s3gen.model", "S3GenModel"),
    "s3gen_flow": ("vokens.models.s3gen.flow", "TokenToMel"),
    "token_lm": ("vokens.models.socodec.lm", "TokenLM"),
    "hiftnet": ("vokens.models.s3gen.hift", "HiFTNetModel"),
    "uslm": ("vokens.models.uslm", "USLM"),
    "encodec": ("vokens.models.adapters", "EnCodec"),
    "dac": ("vokens.models.adapters", "DAC"),
    "mimi": ("vokens.models.adapters", "Mimi"),
    "xcodec": ("vokens.models.adapters", "XCodec"),
    "xcodec2": ("vokens.models.adapters", "XCodec2"),
    "neucodec": ("vokens.models.adapters", "NeuCodec"),
    "higgs_audio_v2_tokenizer": ("vokens.models.adapters", "HiggsV2"),
    "opus": ("vokens.models.adapters", "Opus"),
    "codec2": ("vokens.models.adapters", "Codec2"),
    "lyra": ("vokens.models.adapters", "Lyra"),
}
# system -> names of tensors, each of which a published state dict of it has; regular expressions.
LAYOUTS = (
    (
        "speechtokenizer",
        r"quantizer\.vq\.layers\.0\._codebook\.embed",
        r"encoder\.model\.0\.conv\.conv\.bias",
    ),
    ("s3tokenizer", r"encoder\.blocks\.0\.attn_ln\.weight", r"quantizer\._codebook\..*"),
    ("socodec", r"quantizer\.quantizers\.0\._codebook\.codebooks\.0\.embed"),  # its analyzer, its vocoder
    ("socodec", r"resblocks\.0\.activations\.0\.act\.alpha", r"conv_pre\.bias"),
    ("dacvae", r"en_conv_post\.0\.bias", r"encoder\.block\.0\.0\.bias"),
    (
        "learnable_lm",
        r"llm\.model\.model\.embed_tokens\.weight",
        r"speech_embedding\.weight",
        r"llm_decoder\.weight",
    ),
    ("learnable_flow", r"input_embedding\.weight", r"encoder_proj\.weight", r"speaker_encoder\.init\.weight"),
    ("s3gen", r"flow\.input_embedding\.weight", r"mel2wav\.conv_pre\.bias"),
    ("hiftnet", r"(mel2wav\.|generator\.)?m_source\.l_linear\.weight"),
    ("uslm", r"ar_predict_layer\.weight", r"nar_stage_embeddings\.0\.word_embeddings\.weight"),
)
_SPEECHTOKENIZER = {"n_q", "n_filters", "semantic_dimension", "dilation_base"}  # settings of its config.json
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".dev", ".onnx")


def layout_of(keys: Iterable[str]) -> str | None:
    """The system whose published checkpoints name their tensors so."""
    names = list(keys)
    for name, *patterns in LAYOUTS:
        if all(any(re.fullmatch(pattern, key) for key in names) for pattern in patterns):
            return name
    return None


def system(name: str) -> type[Any]:
    """The class of a system."""
    if name not in SYSTEMS:
        raise ConfigError(f"unknown system {name!r}: vokens has {', '.join(sorted(SYSTEMS))}")
    module, attribute = SYSTEMS[name]
    return getattr(import_module(module), attribute)


def system_of(name: str | Path) -> type[Any] | None:
    """Class of a model of `vokens models`, without a download; None for folders, files and other names."""
    entry = registry.MODELS.get(str(name)) or registry.published(str(name))
    return None if entry is None else system(entry.system)


class Pretrained(nn.Module):
    """A network with a frozen config, a name and a fingerprint.

    system: name of the implementation, e.g. "speechtokenizer"; config.json carries it.
    Config: its frozen dataclass of sizes. name: model id, e.g. "speechtokenizer_hubert_avg".
    """

    system: ClassVar[str]
    Config: ClassVar[type]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.name = self.system
        self._fingerprint = ""

    # What a system implements ------------------------------------------------------------------------------

    @classmethod
    def settings_beside(cls, path: Path) -> dict[str, Any]:
        """Settings of a published file in other files of its folder; empty where there are none."""
        return {}

    @classmethod
    def from_published(cls, state: dict[str, Tensor], config: Any) -> Self:
        """The model with published weights.

        config: this system's Config, the content of a published config file, or None, which is enough for weights of
        exactly a release's sizes. Raises CheckpointError for settings that neither tells.
        """
        raise NotImplementedError

    @classmethod
    def from_folder(cls, folder: Path, config: Any) -> Self | None:
        """The model of a folder, for systems published as several files; None where it holds none of them."""
        return None

    @classmethod
    def remove_weight_norm(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Remove weight norm from a training state dict, for systems that train with it."""
        return state

    @classmethod
    def fold(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Deprecated: `remove_weight_norm`."""
        return cls.remove_weight_norm(state)

    def card(self) -> str:
        """The model card that `save_pretrained` writes where none is given."""
        return (
            f"---\nlibrary_name: vokens\ntags: [audio, {self.system}]\n---\n# {self.name}\n\n"
            f'A `{self.system}` model.\n\n```python\nimport vokens\nmodel = vokens.load("THIS_FOLDER")\n```\n'
        )

    # What users call ---------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name these weights; tokens carry them."""
        if not self._fingerprint:
            self._fingerprint = checkpoint.fingerprint(self.state_dict(), checkpoint.settings(self.config))
        return self._fingerprint

    def set_dtype(self, dtype: torch.dtype) -> Self:
        """Compute in this floating-point type. Tokens keep the name of the float32 weights and decode under any.

        Raises ConfigError for integers, which S3Tokenizer alone computes in.
        """
        if not dtype.is_floating_point:
            raise ConfigError(f"{dtype} was given: {self.system} computes in float32, bfloat16 and float16")
        _ = self.fingerprint
        warn_where_slow(dtype, self.device)
        return self.to(dtype=dtype)

    def description(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "system": self.system,
            "model_type": self.system,  # where transformers looks for the kind of a model
            "name": self.name,
            "config": dataclasses.asdict(self.config),
        }

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, card: str = ""
    ) -> Path:
        """Write config.json, model.safetensors and README.md, which `vokens.load` and `from_pretrained` open.

        dtype: of the stored weights, such as torch.float16; torch.int8 stores matrices at 8 bits with a scale for each
            row (`vokens.packed`). Such models compute in float32, and have a fingerprint of their own.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        if dtype == torch.int8:
            state = pack(state)
        elif dtype is not None:
            state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        checkpoint.save_safetensors(folder / "model.safetensors", state)
        self.write_texts(folder, self.description(), card)
        return folder

    def write_texts(self, folder: Path, description: dict[str, Any], card: str = "") -> None:
        """Write README.md and config.json, each whole or not at all."""
        texts = {"README.md": card or self.card(), "config.json": json.dumps(description, indent=2) + "\n"}
        for name, text in texts.items():
            with atomic_write(folder / name) as partial:
                partial.write_text(text)

    @classmethod
    def with_weights(
        cls, config: Any, state: dict[str, Tensor], where: str = "in the published layout"
    ) -> Self:
        """The model of a config with weights by our names. Raises CheckpointError where they do not fit it."""
        with torch.device("meta"):  # up to 370 million random weights would be overwritten
            model = cls(config)
        model.to_empty(device="cpu")
        checkpoint.load_strict(model, state, where)
        return model.freeze()

    def freeze(self) -> Self:
        """Switch to evaluation mode without gradients, as `load` does."""
        return self.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, source: "str | Path | Pretrained", **options: Any) -> Self:
        """As `vokens.load`, and an error where the source holds another system. A model is returned as it is."""
        model = source if isinstance(source, Pretrained) else load(source, **options)
        if not isinstance(model, cls):
            needed = getattr(cls, "system", cls.__name__)
            name = model.name if model is source else source
            raise CheckpointError(f"{name} holds system {model.system!r}, not {needed!r}: give one")
        return model

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns the commit's address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder))


def load(
    source: str | Path,
    *,
    config: str | Path | dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    backend: Literal["torch", "onnxruntime"] = "torch",
) -> Pretrained:
    """Open a model, in evaluation mode.

    Args:
        source: a name of `vokens models`, a folder written by `save_pretrained` or by training, a published
            checkpoint file (with its config.json beside it, or given by `config`), or a Hugging Face hub id, ours
            or its authors' (`registry.PUBLISHED`).
        config: for published files: the published config, as a path or a dict, or the name of the release where
            the weights leave it open.
        device: where the network lives: "cpu", "cuda", "cuda:1", "mps", or "auto", CUDA where there is one.
        dtype: what it computes in: "float32", "bfloat16" (on CPUs that have it, see `vokens doctor`, several times
            as fast), "float16", and S3Tokenizer on the CPU also "int8". Encoded ids change with it.
        cache_dir: where downloads are kept.
        local_files_only: never download.
        revision: of a hub id.
        variant: of a folder or hub id with several models, the stem of the file: "s3gen", or "llm", the language model
            of CosyVoice. Without it the S3Gen that its publisher loads: s3gen_meanflow, else s3gen, else s3gen_v3.
        backend: "onnxruntime" lets ONNX Runtime compute an S3Tokenizer's .onnx file, a released one or ours.

    Raises CheckpointError for damaged weights, of an unknown system, or of other sizes; DownloadError for files that
    cannot be downloaded; ConfigError for a device that is not available.
    """
    device = usable_device(device)
    path, name = registry.find(source, cache_dir, local_files_only, revision, variant)
    if backend == "onnxruntime":
        codec, device = _open_session(path, config, device), "cpu"
    elif backend == "torch":
        with checkpoint.ZeroWeights():
            codec = _open_setting(name, path) or (_open_folder if path.is_dir() else _open_file)(path, config)
    else:
        raise ConfigError(f"backend={backend!r} was given: 'torch' and 'onnxruntime' are accepted")
    if name:
        codec.name = name
    codec.freeze().to(device=device)
    precision = _dtype(dtype) if isinstance(dtype, str) else dtype
    if precision is not None and precision != torch.float32:
        codec.set_dtype(precision)
    return codec


def _open_setting(name: str, folder: Path) -> Pretrained | None:
    """Open a codec with its config in its name ("opus-6"); its files, if it has any, are in the folder."""
    entry = registry.MODELS.get(name)
    if entry is None or entry.settings is None:
        return None
    cls = system(entry.system)
    return cls.from_folder(folder, build_config(cls.Config, dict(entry.settings), name))


def _open_folder(folder: Path, config: Any) -> Pretrained:
    """Open a folder of ours (config.json names the system), or one with a published checkpoint."""
    settings = _described(folder)
    if "system" in settings:
        cls = system(settings["system"])
        if not (folder / "model.safetensors").exists():  # a model of several folders
            model = cls.from_folder(folder, config)
            if model is not None:
                return model
        codec = cls(build_config(cls.Config, settings["config"], str(folder / "config.json")))
        codec.name = settings.get("name", codec.system)
        state = checkpoint.read_state_dict(folder / "model.safetensors")
        state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
        checkpoint.load_strict(codec, cls.remove_weight_norm(state), str(folder))
        return codec
    for name in SYSTEMS:
        codec = system(name).from_folder(folder, config)
        if codec is not None:
            return codec
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
    if not files:
        raise CheckpointError(
            f"{folder} holds no model: a config.json that names its system with model.safetensors, or a published "
            "checkpoint file is accepted"
        )
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} holds several checkpoints ({', '.join(path.name for path in files)}): give one of them, "
            f"such as {files[0]}"
        )
    return _open_file(files[0], config)


def _open_file(path: Path, config: Any) -> Pretrained:
    """Open a published checkpoint file, its system recognised by the tensors' names."""
    if is_onnx(path):
        return _open_onnx(path, config)
    own = checkpoint.read_config(path) if config is None else None
    if own is not None:
        return _open_described(path, own)
    if config is None and path.name == "model.safetensors" and "system" in _described(path.parent):
        return _open_folder(path.parent, None)
    state = checkpoint.read_state_dict(path)
    if isinstance(config, (str, Path)) and str(config) not in registry.MODELS:
        config = _read_config(Path(config))
    name = layout_of(state)
    if name is not None:
        config = _config_beside(path, name) if config is None else config
        codec = system(name).from_published(state, config)
        codec.name = path.stem if codec.name == codec.system else codec.name
        return codec
    examples = ", ".join(sorted(state)[:3])
    raise CheckpointError(
        f"{path} is not a checkpoint of {', '.join(SYSTEMS)}: its tensors are named {examples}, …; "
        "a file saved by save_pretrained is opened by its folder"
    )


def _open_described(path: Path, own: dict[str, Any]) -> Pretrained:
    """Open a file that we wrote in a published layout, with its config inside."""
    if "system" not in own:
        raise CheckpointError(
            f"{path} is a training checkpoint, not a model: open the folder of the model, beside "
            f"{path.parent}"
        )
    cls = system(own["system"])
    config = build_config(cls.Config, own["config"], str(path))
    model = cls.from_published(checkpoint.read_state_dict(path), config)
    model.name = own["name"]
    return model


def _config_beside(path: Path, name: str) -> dict[str, Any] | None:
    """Settings beside a published file: the system's own files, or a config.json that is not another system's."""
    if published := system(name).settings_beside(path):
        return published
    settings = _described(path.parent)
    owner = settings.get("system", "speechtokenizer" if settings.keys() >= _SPEECHTOKENIZER else None)
    return settings if settings and owner in (None, name) else None


def _open_onnx(path: Path, config: Any) -> Pretrained:
    """Open a published ONNX graph: a release of S3Tokenizer."""
    graph, kind = read_onnx(path), system("s3tokenizer")
    if not kind.recognises_graph(graph):
        raise CheckpointError(
            f'{path} is no released S3Tokenizer: one that export_onnx wrote opens with backend="onnxruntime"'
        )
    codec = kind.from_onnx(graph, config)
    codec.name = path.stem if codec.name == codec.system else codec.name
    return codec


def _open_session(path: Path, config: Any, device: str) -> Pretrained:
    """Open an S3Tokenizer's graph, or the only one in a folder, in ONNX Runtime."""
    files = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
    if len(files) != 1 or not is_onnx(files[0]):
        raise CheckpointError(
            f'{path} is no .onnx file, which backend="onnxruntime" needs: leave it out, or export one'
        )
    runtime = import_module("vokens.models.s3tokenizer.runtime")  # beside the system, as in SYSTEMS
    return runtime.open_onnx(files[0], device=device, config=config)


def _described(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json; empty where there is none."""
    path = folder / "config.json"
    return _read_config(path) if path.exists() else {}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ConfigError as error:
        raise CheckpointError(f"not a readable config.json: {error}") from error


def _dtype(name: str) -> torch.dtype:
    dtypes = ("float32", "bfloat16", "float16", "int8")
    if name not in dtypes:
        raise ConfigError(f"dtype {name!r} was given: {', '.join(dtypes)} are accepted")
    return getattr(torch, name)
