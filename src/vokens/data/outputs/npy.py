"""`shard-000012/<key>.npy`: codes (K, T) of one utterance per file; `shard-000012.jsonl` lists them with their labels.

A slash in a key is a subfolder. One file per utterance is easy to open and hard on file systems: for
millions of utterances use parquet, webdataset or megatron.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vokens.data.items import CodecInfo, Row
from vokens.data.outputs.output import (
    AGAIN,
    NamedFiles,
    Shard,
    Written,
    code_type,
    read_lines,
    shard_name,
    to_record,
    write_lines,
)
from vokens.errors import TokensError


class Npy(NamedFiles):
    """A numpy file per utterance, opened by `numpy.load`."""

    pattern = "shard-*.jsonl"

    def write(self, folder: Path, shard: int, rows: Sequence[Row], facts: CodecInfo) -> list[Written]:
        self.check_all(rows, facts)
        for row in rows:
            try:
                file = folder / _file(shard_name(shard), row.key)
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, row.codes.astype(code_type(facts)))
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise TokensError(
                    f"the key {row.key!r} needs a folder where another key has its file: rename one of them"
                ) from error
        index = Path(f"{shard_name(shard)}.jsonl")
        write_lines(folder / index, [to_record(row) for row in rows])
        files = [*(_file(shard_name(shard), row.key) for row in rows), index]
        return [Written(file, file) for file in files]

    def open(self, folder: Path, file: Path, facts: CodecInfo) -> Shard:
        records = read_lines(folder / file)
        return Shard(records, lambda i: load_array(folder / _file(file.stem, records[i]["key"])))


def _file(shard: str, key: str) -> Path:
    return Path(shard, f"{key}.npy")


def load_array(path: Path) -> np.ndarray:
    """The array of a .npy file; nothing is unpickled."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TokensError(f"{path} is damaged or missing ({error}): {AGAIN}") from error
