"""Files of evaluator models, one folder for each.

None is downloaded automatically. docs/jobs/metrics.md describes each one, its licence and the download commands.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vokens.errors import CheckpointError, ConfigError, DownloadError, NotInstalled, needs_extra

FILES = {
    "moonshine-tiny-en": ("encoder_model.onnx", "decoder_model_merged.onnx", "tokenizer.json"),
    "moonshine-base-en": ("encoder_model.onnx", "decoder_model_merged.onnx", "tokenizer.json"),
    "whisper-base": ("model.safetensors", "tokenizer.json", "config.json"),
    "campplus-zh-en": ("campplus_cn_en_common.pt",),
    "dnsmos": ("sig_bak_ovr.onnx",),
    "distillmos": ("distill_mos_v7.pt",),
    "lyra-v2": ("soundstream_encoder.tflite", "quantizer.tflite", "lyragan.tflite"),
}


def models_folder(folder: str | Path | None = None) -> Path:
    """The folder of all evaluators: `folder`, else $VOKENS_EVAL_MODELS, else ~/.cache/vokens-eval."""
    return Path(folder or os.environ.get("VOKENS_EVAL_MODELS") or "~/.cache/vokens-eval").expanduser()


def find_evaluator(name: str, folder: str | Path | None = None) -> Path:
    """The folder of one evaluator, e.g. "moonshine-tiny-en", with every file it needs.

    Raises NotInstalled when a file is missing; the message names it and its source.
    """
    return check_files(models_folder(folder) / name, name)


def find_model(source: str | Path) -> Path:
    """A path, or the folder of an evaluator model by its name (docs/jobs/metrics.md), such as "campplus-zh-en".

    Raises NotInstalled with the remedy, and ConfigError for a path that does not exist.
    """
    if str(source) in FILES:
        return find_evaluator(str(source))
    path = Path(source).expanduser()
    if not path.exists():
        raise ConfigError(
            f"{source} does not exist: give a folder, or a name ({', '.join(FILES)}) that is looked for in "
            f"{models_folder()} (docs/jobs/metrics.md has the commands that fetch them)"
        )
    return path


def check_files(folder: str | Path, name: str) -> Path:
    """The folder, with every file of this evaluator. Raises NotInstalled for one that is missing."""
    home = Path(folder).expanduser()
    missing = [file for file in FILES[name] if not (home / file).is_file()]
    if missing:
        raise NotInstalled(f"{home} lacks {', '.join(missing)}: {_REMEDY}")
    return home


_REMEDY = (
    "docs/jobs/metrics.md, 'The evaluator models', has the commands that fetch them; "
    "VOKENS_EVAL_MODELS names another folder"
)


def lacking(names: Iterable[str], folder: str | Path | None = None) -> str:
    """The evaluators of FILES that are not on this machine, in one sentence with the remedy; "" where all are."""
    home = models_folder(folder)
    missing = [name for name in names if not all((home / name / file).is_file() for file in FILES[name])]
    return f"{home} lacks {', '.join(missing)}: {_REMEDY}" if missing else ""


def open_pretrained(source: str | Path, *classes: str, purpose: str) -> list[Any]:
    """Open parts of a folder or hub id by their classes in transformers. A model in the cache is not sought anew.

    Raises MissingExtra, and DownloadError, at once where the hub is unreachable.
    """
    with needs_extra("transformers", "hf", purpose):
        import transformers
    from huggingface_hub import HfApi

    source = str(Path(source).expanduser())

    def opened(**options: Any) -> list[Any]:
        return [getattr(transformers, name).from_pretrained(source, **options) for name in classes]

    try:
        return opened(local_files_only=True)
    except (OSError, ValueError) as error:
        reason: Exception = error
    if not Path(source).exists():
        try:
            HfApi().model_info(source, timeout=10)  # transformers itself would try again for a minute
            return opened()
        except Exception as error:  # each version of its http client has classes of its own
            reason = error
    raise DownloadError(
        f"{purpose} {source} does not open ({' '.join(str(reason).split())[:200]}): give a folder with its files, or "
        "the id of a model on the hub, and check the network"
    ) from reason


def open_tokenizer(path: Path, purpose: str) -> Any:
    """The tokenizer of a tokenizer.json. Raises MissingExtra, and CheckpointError for another file."""
    with needs_extra("tokenizers", "eval", purpose):
        from tokenizers import Tokenizer
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise CheckpointError(f"{path} is damaged ({error}): fetch it again") from error


def open_graph(path: Path, threads: int, purpose: str) -> Any:
    """The onnxruntime session of a file, on the CPU. Raises MissingExtra, and CheckpointError for a damaged file."""
    with needs_extra("onnxruntime", "eval", purpose):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors derive directly from Exception
        raise CheckpointError(f"{path} cannot be opened by onnxruntime ({error}): {_REMEDY}") from error
