"""Tar archives of codes and records: for WebDataset, and as a field of lhotse's Shar."""

import gzip
import io
import json
import mmap
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vokens.data.items import CodecInfo, Row
from vokens.data.outputs.output import (
    AGAIN,
    NamedFiles,
    Record,
    Shard,
    code_type,
    dump,
    load_array,
    to_record,
)
from vokens.errors import TokensError

_END = 2 * tarfile.BLOCKSIZE  # an archive ends with two empty blocks


def write_samples(path: Path, samples: Iterable[tuple[str, np.ndarray, Record]], ending: str) -> None:
    """Two members for each sample, NAME + ending with its array and NAME.json with its record, in the given order;
    owner, mode and time are those of an empty `TarInfo` (0, 0644, 0)."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, array, record in samples:
            file = io.BytesIO()
            np.save(file, array, allow_pickle=False)
            members = {name + ending: file.getvalue(), f"{name}.json": dump(record).encode()}
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


class Archive:
    """A memory-mapped tar archive, indexed in one pass over its headers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with tarfile.open(path, "r:") as archive:
                self._places = {m.name: (m.offset_data, m.size) for m in archive.getmembers()}
        except (OSError, ValueError, tarfile.TarError) as error:
            raise TokensError(f"{path} is missing or not a complete tar archive ({error})") from error
        end = max((start + size for start, size in self._places.values()), default=0)
        if len(self._bytes) < end + _END:  # tarfile accepts an archive that is truncated between members
            raise TokensError(f"{path} is truncated: {AGAIN}")

    @property
    def names(self) -> list[str]:
        return list(self._places)

    def read(self, name: str) -> bytes:
        """The content of a member."""
        if name not in self._places:
            raise TokensError(f"{self._path} has no member {name!r}: it is damaged, or of another run")
        start, size = self._places[name]
        return self._bytes[start : start + size]

    def array(self, name: str) -> np.ndarray:
        """The array of a .npy member; nothing is unpickled."""
        return load_array(io.BytesIO(self.read(name)), f"{self._path}: {name}")


class WebDataset(NamedFiles):
    """`shard-000012.tar` for `webdataset.WebDataset(".../shard-{000000..000999}.tar")`.

    Per utterance `<name>.codes.npy` (K, T) and `<name>.json` (key and labels). WebDataset cuts a name at its first dot,
    so `a.b` and `a.c` would become one sample `a`: in the last part of a name dots are written `%2E` (and `%` as
    `%25`). The json has the original key.
    """

    pattern = "shard-*.tar"

    def _write(self, folder: Path, name: str, rows: Sequence[Row], facts: CodecInfo) -> list[str]:
        samples = ((sample_name(row.key), row.codes.astype(code_type(facts)), to_record(row)) for row in rows)
        write_samples(folder / f"{name}.tar", samples, ".codes.npy")
        return [f"{name}.tar"]

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


class Shar(NamedFiles):
    """`shar/codes.000012.tar`, and `shar/cuts.000012.jsonl.gz` with the utterances as cuts, for lhotse's samplers.

    `CutSet.from_shar(in_dir="OUT/shar")` gives cuts whose `load_codes()` is (T, K): time comes first because lhotse
    cuts arrays in memory along their first axis. The subfolder is needed because lhotse takes every other file for a
    field. With cuts of a Shar source, `from_shar(fields={"cuts": …, "codes": …})` attaches the codes where no utterance
    failed.
    """

    pattern = "shar/cuts.*.jsonl.gz"

    def _write(self, folder: Path, name: str, rows: Sequence[Row], facts: CodecInfo) -> list[str]:
        kind = code_type(facts)
        samples = ((row.key, row.codes.T.astype(kind, order="C"), _array(row, facts)) for row in rows)
        number = name.rpartition("-")[2]
        codes, cuts = f"shar/codes.{number}.tar", f"shar/cuts.{number}.jsonl.gz"
        (folder / "shar").mkdir()
        write_samples(folder / codes, samples, ".npy")
        lines = "".join(dump(_cut(row, facts)) + "\n" for row in rows)
        (folder / cuts).write_bytes(_gzip(lines.encode()))
        return [codes, cuts]

    def open(self, folder: Path, file: Path, facts: CodecInfo) -> Shard:
        number = file.name.split(".")[1]
        archive = Archive(folder / file.with_name(f"codes.{number}.tar"))
        try:
            lines = gzip.decompress((folder / file).read_bytes()).split(b"\n")
            records = [json.loads(line)["custom"]["vokens"] for line in lines if line]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise TokensError(f"{folder / file} holds no cuts of vokens ({error}), or is damaged") from error
        return Shard(records, lambda i: archive.array(f"{records[i]['key']}.npy").T)


def _array(row: Row, facts: CodecInfo) -> Record:
    """lhotse's TemporalArray. Its frame shift is duration / T and not 1 / frame_rate: `load_codes()` takes
    round(duration / shift) frames, and codecs that round T up would lose their last frame at every second cut."""
    frames = row.codes.shape[1]
    place = {"storage_type": "shar", "storage_path": "", "storage_key": ""}
    shape = [frames, len(row.codes)]
    shift = _seconds(row, facts) / frames if frames else 1 / facts.frame_rate
    return {"array": {**place, "shape": shape}, "temporal_dim": 0, "frame_shift": shift, "start": 0.0}


def _cut(row: Row, facts: CodecInfo) -> Record:
    """lhotse's MonoCut, without a recording: the text is a supervision, the whole record is under `vokens`."""
    span = {"start": 0.0, "duration": _seconds(row, facts), "channel": 0}
    spoken = {name: getattr(row, name) for name in ("text", "speaker", "language")}
    spoken = {name: value for name, value in spoken.items() if value is not None}
    supervision = {"id": row.key, "recording_id": row.key, **span, **spoken}
    return {
        "id": row.key,
        **span,
        "supervisions": [supervision] if spoken else [],
        # without a recording, `truncate` reads the sampling rate here
        "custom": {"vokens": to_record(row), "sampling_rate": facts.sample_rate},
        "type": "MonoCut",
    }


def _seconds(row: Row, facts: CodecInfo) -> float:
    """The duration; where the row has none, that of its frames, at least one, since lhotse needs a positive one."""
    return float(row.duration) or max(row.codes.shape[1], 1) / facts.frame_rate


def _gzip(content: bytes) -> bytes:
    file = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        packed.write(content)
    return file.getvalue()
