"""Models: one folder per system, and `load`, which opens any of them from whatever the user has.

What a file is follows from its content: our folders name their system, published checkpoints are recognised by
their tensors' names.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from vokens import checkpoint, registry
from vokens.device import usable_device
from vokens.errors import CheckpointError, ConfigError
from vokens.models.codec import Codec, build_config
from vokens.onnx_file import is_onnx, read_onnx
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
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".dev", ".onnx")


def system(name: str) -> type[Codec]:
    """The class of a system."""
    if name not in SYSTEMS:
        raise ConfigError(f"unknown system {name!r}: vokens has {', '.join(sorted(SYSTEMS))}")
    module, attribute = SYSTEMS[name]
    return getattr(import_module(module), attribute)


def system_of(name: str | Path) -> type[Codec] | None:
    """The class of a model of `vokens models`, told without a download; None for folders, files and other names."""
    entry = registry.MODELS.get(str(name)) or registry.published(str(name))
    return None if entry is None else system(entry.system)


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
) -> Codec:
    """Open a codec, in evaluation mode.

    Args:
        source: a name of `vokens models`, a folder written by `save_pretrained` or by training, a published
            checkpoint file (with its config.json beside it, or given by `config`), or a Hugging Face hub id, ours
            or its authors' (`registry.PUBLISHED`).
        config: for published files: the published config, as a path or a dict, or the name of the release where
            the weights leave it open.
        device: where the network lives: "cpu", "cuda", "cuda:1", "mps", or "auto", CUDA where there is one.
        dtype: what it computes in: "float32", "bfloat16" (on CPUs that have it, see `vokens doctor`, several times
            as fast), "float16", and S3Tokenizer on the CPU also "int8". Ids that are encoded change with it.
        cache_dir: where downloads are kept.
        local_files_only: never download.
        revision: of a hub id.
        variant: of a folder or hub id with several S3Gens, the stem of the file, such as "s3gen". Without it the one
            that its publisher's program loads: s3gen_meanflow, else s3gen, else s3gen_v3.
        backend: "onnxruntime" lets ONNX Runtime compute an S3Tokenizer's .onnx file, a released one or ours.

    Raises:
        CheckpointError: weights that are damaged, of no known system, or that do not fit.
        DownloadError: files that cannot be had.
        ConfigError: a device that is not here.
    """
    device = usable_device(device)
    path, name = _find(source, cache_dir, local_files_only, revision, variant)
    if backend == "onnxruntime":
        codec, device = _open_session(path, config, device), "cpu"
    elif backend == "torch":
        codec = _open_setting(name, path) or (_open_folder if path.is_dir() else _open_file)(path, config)
    else:
        raise ConfigError(f"backend={backend!r} was given: 'torch' and 'onnxruntime' are accepted")
    if name:
        codec.name = name
    codec.eval().requires_grad_(False)
    codec.to(device=device)
    precision = _dtype(dtype) if isinstance(dtype, str) else dtype
    if precision is not None and precision != torch.float32:
        codec.set_dtype(precision)
    return codec


def _find(
    source: str | Path, cache_dir: Any, local_files_only: bool, revision: str | None, variant: str | None
) -> tuple[Path, str]:
    """Where the files are, and the model id when the source gives one."""
    path = Path(source).expanduser()
    if variant is not None and str(source) not in registry.PUBLISHED:
        file = path / f"{variant}.safetensors"
        if not file.is_file():
            there = ", ".join(sorted(one.stem for one in path.glob("*.safetensors"))) or "none"
            raise ConfigError(
                f"variant={variant!r} of {source}: a folder with {variant}.safetensors or the id of a published "
                f"Chatterbox is accepted; variants here: {there}"
            )
        return file, ""
    if str(source) in registry.MODELS and (revision is None or "/" not in str(source)):
        entry = registry.get(str(source))
        return registry.fetch(entry, cache_dir=cache_dir, local_files_only=local_files_only), entry.name
    if path.exists():
        return path, ""
    if entry := registry.published(str(source), revision, variant):
        return registry.fetch(entry, cache_dir=cache_dir, local_files_only=local_files_only), entry.name
    if (
        isinstance(source, str)
        and source.count("/") == 1
        and not source.startswith((".", "/", "~"))
        and not path.suffix
    ):
        options = {"cache_dir": cache_dir, "local_files_only": local_files_only, "revision": revision}
        return registry.hub_snapshot(source, **options), source
    registry.get(str(source))  # raises, with the nearest names
    raise CheckpointError(f"{source} was not found")


def _open_setting(name: str, folder: Path) -> Codec | None:
    """A codec whose name says its config ("opus-6"); its files, if it has any, are in the folder."""
    entry = registry.MODELS.get(name)
    if entry is None or entry.settings is None:
        return None
    cls = system(entry.system)
    return cls.from_folder(folder, build_config(cls.Config, dict(entry.settings), name))


def _open_folder(folder: Path, config: Any) -> Codec:
    """A folder of ours (config.json names the system), or one that holds a published checkpoint."""
    settings = _read_config(folder / "config.json") if (folder / "config.json").exists() else None
    if settings is not None and "system" in settings:
        cls = system(settings["system"])
        if not (folder / "model.safetensors").exists():  # a model of several folders
            whole = cls.from_folder(folder, config)
            if whole is not None:
                return whole
        codec = cls(build_config(cls.Config, settings["config"], str(folder / "config.json")))
        codec.name = settings.get("name", codec.system)
        state = checkpoint.read_state_dict(folder / "model.safetensors")
        state = cls.fold({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        checkpoint.load_strict(codec, state, str(folder))
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
            f"{folder} holds several checkpoints ({', '.join(path.name for path in files)}): give the file of the "
            f"one that you want, such as {files[0]}"
        )
    return _open_file(files[0], config)


def _open_file(path: Path, config: Any) -> Codec:
    """A published checkpoint file; the tensors' names say which system it is."""
    if is_onnx(path):
        return _open_onnx(path, config)
    own = checkpoint.read_config(path) if config is None else None
    if own is not None:
        return _open_described(path, own)
    state = checkpoint.read_state_dict(path)
    beside = path.with_name("config.json")
    if (
        config is None
        and path.name == "model.safetensors"
        and beside.exists()
        and "system" in _read_config(beside)
    ):
        return _open_folder(path.parent, None)
    if isinstance(config, (str, Path)) and str(config) not in registry.MODELS:
        config = _read_config(Path(config))
    for name in SYSTEMS:
        if system(name).recognises(state.keys()):
            config = _config_beside(path, name) if config is None else config
            codec = system(name).from_published(state, config)
            codec.name = path.stem if codec.name == codec.system else codec.name
            return codec
    examples = ", ".join(sorted(state)[:3])
    raise CheckpointError(
        f"{path} is not a checkpoint of {', '.join(SYSTEMS)}: its tensors are named {examples}, …; "
        "a file saved by save_pretrained is opened by its folder"
    )


def _open_described(path: Path, own: dict[str, Any]) -> Codec:
    """A file that we wrote in a published layout, with the whole config inside."""
    if "system" not in own:
        raise CheckpointError(
            f"{path} is what a stopped training goes on from, not a model: open the folder of the model, beside "
            f"{path.parent}"
        )
    cls = system(own["system"])
    config = build_config(cls.Config, own["config"], str(path))
    model = cls.from_published(checkpoint.read_state_dict(path), config)
    model.name = own["name"]
    return model


def _config_beside(path: Path, name: str) -> dict[str, Any] | None:
    """What a published layout keeps beside the file, or the content of config.json in its folder, unless that is known
    as another system's."""
    if told := system(name).settings_beside(path):
        return told
    beside = path.with_name("config.json")
    if not beside.exists():
        return None
    settings = _read_config(beside)
    owners = [other for other in SYSTEMS if system(other).owns_config(settings)]
    return settings if not owners or name in owners else None


def _open_onnx(path: Path, config: Any) -> Codec:
    """A published ONNX graph; the codecs that come as such are S3Tokenizer's releases."""
    from vokens.models.s3tokenizer import S3Tokenizer
    from vokens.models.s3tokenizer import checkpoint as layout

    graph = read_onnx(path)
    if not layout.recognises_graph(graph):
        raise CheckpointError(
            f'{path} is no released S3Tokenizer: a file that export_onnx wrote opens with backend="onnxruntime"'
        )
    codec = S3Tokenizer.from_onnx(graph, config)
    codec.name = path.stem if codec.name == codec.system else codec.name
    return codec


def _open_session(path: Path, config: Any, device: str) -> Codec:
    """An S3Tokenizer's graph, or the only one in a folder, computed by ONNX Runtime."""
    from vokens.models.s3tokenizer.runtime import open_onnx

    files = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
    if len(files) != 1 or not is_onnx(files[0]):
        raise CheckpointError(
            f'{path} is no .onnx file, which backend="onnxruntime" needs: leave it out, or export one'
        )
    return open_onnx(files[0], device=device, config=config)


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


__all__ = ["SYSTEMS", "Codec", "load", "system"]
