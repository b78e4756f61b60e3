"""Output formats of extracted tokens by name: `get_output("parquet")`.

A run writes each shard into an empty folder, syncs it and renames its files into place; see `Output`.
"""

import os

from vokens.data.outputs.cosyvoice import CosyVoice
from vokens.data.outputs.files import Npy, Sidecar
from vokens.data.outputs.jsonl import Jsonl
from vokens.data.outputs.megatron import Megatron
from vokens.data.outputs.output import Output, Shard, Written
from vokens.data.outputs.parquet import Parquet
from vokens.data.outputs.tars import Shar, WebDataset
from vokens.errors import ConfigError

__all__ = ["OUTPUTS", "Output", "Shard", "Written", "get_output"]

OUTPUTS: dict[str, type[Output]] = {
    "jsonl": Jsonl,
    "parquet": Parquet,
    "sidecar": Sidecar,
    "npy": Npy,
    "webdataset": WebDataset,
    "shar": Shar,
    "megatron": Megatron,
    "cosyvoice": CosyVoice,
}


def get_output(name: str, audio_root: str | os.PathLike[str] | None = None) -> Output:
    """The format called `name`. audio_root: see `Sidecar`. Raises ConfigError for any other name."""
    if name not in OUTPUTS:
        raise ConfigError(f"there is no output {name!r}: give {', '.join(OUTPUTS)}")
    if name == "sidecar":
        return Sidecar(audio_root)
    if audio_root is not None:
        raise ConfigError(f"audio_root={audio_root!r} with {name!r}: only sidecar takes it, leave it out")
    return OUTPUTS[name]()
