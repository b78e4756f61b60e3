"""Where the models lie that judge a resynthesis: one folder for each, never downloaded unasked.

docs/metrics.md says what each one is, its licence, and the commands that fetch it.
"""

import os
from pathlib import Path

from vokens.errors import ConfigError


class NotInstalled(ConfigError):
    """A program or a model's files are not on this machine; the message says how to get them."""


FILES = {
    "moonshine-tiny-en": ("encoder_model.onnx", "decoder_model_merged.onnx", "tokenizer.json"),
    "moonshine-base-en": ("encoder_model.onnx", "decoder_model_merged.onnx", "tokenizer.json"),
    "campplus-zh-en": ("campplus_cn_en_common.pt",),
    "dnsmos": ("sig_bak_ovr.onnx",),
    "distillmos": ("distill_mos_v7.pt",),
    "lyra-v2": ("soundstream_encoder.tflite", "quantizer.tflite", "lyragan.tflite"),
}


def models_folder(folder: str | Path | None = None) -> Path:
    """The folder of all judges: `folder`, else $VOKENS_EVAL_MODELS, else ~/.cache/vokens-eval."""
    return Path(folder or os.environ.get("VOKENS_EVAL_MODELS") or "~/.cache/vokens-eval").expanduser()


def find_judge(name: str, folder: str | Path | None = None) -> Path:
    """The folder of one judge, e.g. "moonshine-tiny-en", with every file it needs.

    Raises NotInstalled when a file is missing; the message names it and says where to get it.
    """
    home = models_folder(folder) / name
    check_files(home, FILES[name])
    return home


def check_files(home: Path, names: tuple[str, ...]) -> None:
    """Raise NotInstalled unless `home` holds all files `names`."""
    missing = [name for name in names if not (home / name).is_file()]
    if missing:
        raise NotInstalled(
            f"{home} lacks {', '.join(missing)}. docs/metrics.md, 'The models that judge', has the commands "
            "that fetch them; another folder is named by --judges or VOKENS_EVAL_MODELS."
        )
