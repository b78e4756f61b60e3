"""Rewrite published weights as a folder of ours: config.json, model.safetensors and a card.

Any file or folder that vokens loads, recognised by content: Chatterbox's s3gen.safetensors, a folder of CosyVoice 2
or 3 (flow.pt, hift.pt, campplus.onnx, speech_tokenizer_v2.onnx or _v3), codecs. Every tensor must be used.

vokens convert s3gen.safetensors -o s3gen/    vokens convert CosyVoice2-0.5B/ -o cosyvoice2/ --store float16
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vokens.cli.jobs import refuse_overwrite
from vokens.cli.options import unset


@dataclass(frozen=True)
class Arguments:
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A published file or folder, a name of `vokens models`, or a hub id."""
    output: Annotated[str, tyro.conf.arg(aliases=("-o",), metavar="FOLDER")]
    """The folder to write."""
    config: Annotated[str | None, unset("NAME|JSON", default="from the weights")] = None
    """A published config, or the name of the release, where the weights do not determine it."""
    name: Annotated[str | None, unset("NAME", default="as published")] = None
    """Model id, stored in tokens."""
    store: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights in the file; 16 bits are half as large and change some tokens."""
    overwrite: bool = False
    """Replace an existing model."""


def run(arguments: Arguments) -> int:
    folder = Path(arguments.output)
    files = [folder / name for name in ("config.json", "model.safetensors")]
    refuse_overwrite(files, arguments.overwrite)

    import torch

    import vokens

    model = vokens.load(arguments.source, config=arguments.config)
    if arguments.name:
        model.name = arguments.name
    dtype = None if arguments.store == "float32" else getattr(torch, arguments.store)
    model.save_pretrained(folder, dtype=dtype)
    size = files[1].stat().st_size / 1e6
    print(f"vokens: wrote {folder}: {model.name}, {model.system}, {size:.0f} MB", file=sys.stderr)
    return 0
