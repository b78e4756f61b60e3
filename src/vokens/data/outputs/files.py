"""A file for each utterance, and `shard-000012.jsonl` that lists those of a shard with their labels."""

import io
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vokens.data.items import CodecInfo, Row
from vokens.data.outputs.output import (
    AGAIN,
    NamedFiles,
    Output,
    Shard,
    Written,
    code_type,
    load_array,
    read_lines,
    refuse_twice,
    to_record,
    write_lines,
)
from vokens.errors import TokensError


class Npy(NamedFiles):
    """`shard-000012/<key>.npy`: codes (K, T) of one utterance per file, opened by `numpy.load`.

    A slash in a key is a subfolder. One file per utterance is easy to open and hard on file systems: for
    millions of utterances use parquet, webdataset or megatron.
    """

    pattern = "shard-*.jsonl"

    def _write(self, folder: Path, name: str, rows: Sequence[Row], facts: CodecInfo) -> list[str]:
        files = [f"{name}/{row.key}.npy" for row in rows]
        for row, file in zip(rows, files, strict=True):
            try:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                np.save(folder / file, row.codes.astype(code_type(facts)))
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise TokensError(
                    f"the key {row.key!r} needs a folder where another key has its file: rename one of them"
                ) from error
        return [*files, write_lines(folder, name, map(to_record, rows))]

    def open(self, folder: Path, file: Path, facts: CodecInfo) -> Shard:
        records = read_lines(folder / file)
        paths = [folder / file.stem / f"{record['key']}.npy" for record in records]
        return Shard(records, lambda i: load_array(paths[i], paths[i]))


class Sidecar(Output):
    """`<name>_fsq.pt` next to each recording, as Learnable-Speech reads it.

    One codebook: ids (T,) int64 in `_fsq.pt`; K codebooks: (K, T) int64 in `_codes.pt`. Each file holds only its own
    tokens: the published writer saved a view of a padded batch, and with it the whole batch (385 kB for 100 tokens).

    Args:
        audio_root: if given, files are written below the output folder, at the path of the audio relative to this.
    """

    pattern = "shard-*.jsonl"

    def __init__(self, audio_root: str | os.PathLike[str] | None = None) -> None:
        self._root = None if audio_root is None else Path(os.path.abspath(audio_root))

    def check(self, row: Row, facts: CodecInfo) -> None:
        super().check(row, facts)
        self._target(row)

    def _write(self, folder: Path, name: str, rows: Sequence[Row], facts: CodecInfo) -> list[str | Written]:
        targets = [self._target(row) for row in rows]
        refuse_twice("sidecar needs one whole recording per utterance, but", [str(t) for t in targets])
        parts = Path(f"{name}.parts")
        (folder / parts).mkdir()
        files = [Written(parts / f"{i:06d}.pt", target) for i, target in enumerate(targets)]
        for row, file in zip(rows, files, strict=True):
            (folder / file.path).write_bytes(_tensor_bytes(row.codes))
        records = ({**to_record(row), "file": str(file)} for row, file in zip(rows, targets, strict=True))
        return [*files, write_lines(folder, name, records)]

    def open(self, folder: Path, file: Path, facts: CodecInfo) -> Shard:
        records = read_lines(folder / file)
        return Shard(records, lambda i: np.atleast_2d(_load(folder / records[i]["file"])))

    def _target(self, row: Row) -> Path:
        if row.audio is None or "://" in row.audio:
            raise TokensError(
                f"{row.key!r} comes from {row.audio or 'an archive'}: sidecar needs local audio files, "
                "choose another output"
            )
        path = Path(os.path.abspath(row.audio))
        name = f"{path.stem}{'_fsq' if len(row.codes) == 1 else '_codes'}.pt"
        if self._root is None:
            return path.with_name(name)
        if not path.is_relative_to(self._root):
            raise TokensError(f"{row.audio} is not below {self._root}, the audio_root: give a folder above")
        return path.relative_to(self._root).with_name(name)


def _tensor_bytes(codes: np.ndarray) -> bytes:
    import torch

    file = io.BytesIO()  # torch.save to a path would put the file name into the bytes
    tensor = torch.from_numpy(codes.astype(np.int64))  # a copy: torch.save writes the whole storage of a view
    torch.save(tensor[0].clone() if len(tensor) == 1 else tensor, file)
    return file.getvalue()


def _load(path: Path) -> np.ndarray:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True).numpy()
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise TokensError(f"{path} is damaged or missing ({error}): {AGAIN}") from error
