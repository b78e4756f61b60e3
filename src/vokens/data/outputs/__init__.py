"""The forms in which extracted tokens are stored, by name: `get_output("parquet")`.

A run writes each shard into an empty folder, makes it safe and renames its files to their places; see `Output`.
"""

import os

from vokens.data.outputs.cosyvoice import CosyVoice
from vokens.data.outputs.jsonl import Jsonl
from vokens.data.outputs.megatron import Megatron
from vokens.data.outputs.npy import Npy
from vokens.data.outputs.output import Output, Shard, Written
from vokens.data.outputs.parquet import Parquet
from vokens.data.outputs.shar import Shar
from vokens.data.outputs.sidecar import Sidecar
from vokens.data.outputs.webdataset import WebDataset
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
    """The form called `name`. audio_root: of sidecar, see there. Raises ConfigError for any other name."""
    if name not in OUTPUTS:
        raise ConfigError(f"there is no output {name!r}: {', '.join(OUTPUTS)} are known")
    if name == "sidecar":
        return Sidecar(audio_root)
    if audio_root is not None:
        raise ConfigError(f"audio_root says where sidecar files lie, the output {name!r} has none")
    return OUTPUTS[name]()
