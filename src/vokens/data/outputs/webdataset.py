"""`shard-000012.tar` for WebDataset: `<name>.codes.npy` (K, T) and `<name>.json` (key and labels) per utterance.

WebDataset cuts a name at its first dot, so `a.b` and `a.c` would become one sample `a`: in the last part of a name
dots are written `%2E` (and `%` as `%25`). The json has the original key.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from vokens.data.items import CodecInfo, Row
from vokens.data.outputs.output import NamedFiles, Shard, Written, code_type, shard_name, to_record
from vokens.data.outputs.tar import Archive, write_samples


class WebDataset(NamedFiles):
    """Tar archives for sequential reading by `webdataset.WebDataset(".../shard-{000000..000999}.tar")`."""

    pattern = "shard-*.tar"

    def write(self, folder: Path, shard: int, rows: Sequence[Row], facts: CodecInfo) -> list[Written]:
        self.check_all(rows, facts)
        samples = ((sample_name(row.key), row.codes.astype(code_type(facts)), to_record(row)) for row in rows)
        file = Path(f"{shard_name(shard)}.tar")
        write_samples(folder / file, samples, ".codes.npy")
        return [Written(file, file)]

    def open(self, folder: Path, file: Path, facts: CodecInfo) -> Shard:
        archive = Archive(folder / file)
        names = [name.removesuffix(".json") for name in archive.names if name.endswith(".json")]
        records = [json.loads(archive.read(f"{name}.json")) for name in names]
        return Shard(records, lambda i: archive.array(f"{names[i]}.codes.npy"))


def sample_name(key: str) -> str:
    """The key as WebDataset's `__key__`: no dot in its last part, no reserved folder name."""
    *folders, last = key.replace("%", "%25").split("/")
    # WebDataset reserves names that begin with a part __x__, and skips them
    folders = [f"%5F{part[1:]}" if part.startswith("__") else part for part in folders]
    return "/".join([*folders, last.replace(".", "%2E")])
