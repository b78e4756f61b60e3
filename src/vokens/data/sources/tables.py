"""Audio in tables: parquet, the arrow files of datasets' save_to_disk, and parquet on the Hugging Face hub.

A span is a row of a file. Columns are found by their types and usual names; audio is read 32 rows at a time.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vokens.data.items import Source, Span, Utterance
from vokens.data.sources.addresses import common_folder, filesystem, is_url, open_binary, parent
from vokens.data.sources.options import Labels, SourceOptions, known
from vokens.download import offline
from vokens.errors import ConfigError, DownloadError, needs_extra
from vokens.text.files import read_json

ROWS = 32  # with audio, in memory at once: 32 clips of 30 s are 30 MB of 16 kHz wav
_LIGHT_ROWS = 65536  # without audio
# The first that a table has is used. Names as on the hub's speech datasets; utt and spk as CosyVoice writes.
_NAMES = {
    "key": ("id", "key", "__key__", "utt", "utt_id", "utterance_id", "segment_id"),
    "text": ("text", "transcription", "transcript", "sentence", "raw_text", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "spk", "spk_id", "client_id", "speaker_name"),
    "language": ("language", "lang", "locale"),
    "split": ("split",),
    "instruct": ("instruct",),
}
_AUDIO_NAMES = ("audio", "wav", "flac", "mp3", "opus", "speech", "path", "audio_filepath", "file")
# With a path: a segment of that file.
_PIECES = ("offset", "start", "start_time", "begin_time", "channel")
BY_ROW = "row"


class TableSource(Source):
    """Rows of parquet or arrow files. Keys are a column (`id`, `key`, …), else file and row."""

    def __init__(self, files: list[str], options: SourceOptions) -> None:
        self.files, self.options = files, options
        self.top = common_folder(files)

    def follow(self, span: Span) -> Iterator[Utterance]:
        with _opened(span.where) as table:
            chosen = self._columns(span.where, table.schema)
            rows = table.rows(sorted(set(chosen.values())), span.offset, ROWS)
            facts = ((number, {name: row[column] for name, column in chosen.items()}) for number, row in rows)
            kept = ((number, fact) for number, fact in facts if self.options.keeps(_labels(fact)))
            for number, fact in kept:
                audio, labels = _audio(fact["audio"], span.where), _labels(fact)
                key = self._key(span.where, number, fact)
                yield Utterance(key, audio, **labels._asdict())

    def entries(self, where: str) -> Iterator[tuple[int, str]]:
        with _opened(where) as table:
            chosen = self._columns(where, table.schema)
            needed = {"key"} | ({"text", "language", "split"} if self.options.choosy else set())
            light = {name: column for name, column in chosen.items() if name in needed}
            for number, row in table.rows(sorted(set(light.values())), 0, _LIGHT_ROWS):
                fact = {name: row[column] for name, column in light.items()}
                if self.options.keeps(_labels(fact)):
                    yield number, self._key(where, number, fact)

    def _key(self, where: str, number: int, fact: dict[str, Any]) -> str:
        if "key" in fact:
            return "" if fact["key"] is None else str(fact["key"])
        file = os.path.splitext(where.removeprefix(self.top).lstrip("/"))[0]
        return f"{file}-{number:08d}"

    def _columns(self, where: str, schema: Any) -> dict[str, str]:
        """The column of a table for each label."""
        chosen = {"audio": self._audio_column(where, schema)}
        pieces = [name for name in _PIECES if name in schema.names]
        if pieces and str(schema.field(chosen["audio"]).type) in _STRINGS:
            raise ConfigError(
                f"{where} names files in {chosen['audio']!r} and parts of them in {pieces}: tables are read as whole "
                "files; write a jsonl manifest with audio_filepath, offset and duration"
            )
        for what, names in _NAMES.items():
            column = next((name for name in names if name in schema.names), None)
            if column is not None:
                chosen[what] = column
        if self.options.key == BY_ROW:
            chosen.pop("key", None)
        elif self.options.key is not None:
            if self.options.key not in schema.names:
                raise ConfigError(
                    f"{where} has no column {self.options.key!r} for the key; "
                    f"there are {schema.names}, or 'row' names them by file and row"
                )
            chosen["key"] = self.options.key
        return chosen

    def _audio_column(self, where: str, schema: Any) -> str:
        fitting = {field.name: rank for field in schema if (rank := _audio_rank(field)) is not None}
        column = self.options.column
        if column is not None:
            if column in fitting or (column in schema.names and str(schema.field(column).type) in _STRINGS):
                return column
            raise ConfigError(
                f"{where} has no column {column!r} of audio: there are "
                f"{', '.join(f'{field.name} ({field.type})' for field in schema)}; audio is bytes, a path, "
                "or a struct of both"
            )
        best = [name for name, rank in fitting.items() if rank == min(fitting.values())]
        named = [name for name in _AUDIO_NAMES if name in best]
        if len(best) != 1 and not named:
            raise ConfigError(
                f"{where} has {len(best) or 'no'} columns that may be its audio among {schema.names}: "
                "name it (column)"
            )
        return named[0] if named else best[0]


_STRINGS = {"string", "large_string", "string_view"}
_BINARIES = {"binary", "large_binary", "binary_view"}


def _audio_rank(field: Any) -> int | None:
    """Rank of a column as audio: 0 a struct of bytes and path, 1 bytes, 2 a path by its name; None: no audio."""
    kind = str(field.type)
    if kind.startswith("struct<"):
        parts = {str(part.name): str(part.type) for part in field.type}
        return 0 if parts.get("bytes") in _BINARIES else None
    if kind in _BINARIES:
        return 1
    return 2 if kind in _STRINGS and field.name in _AUDIO_NAMES else None


def _labels(fact: dict[str, Any]) -> Labels:
    return Labels(**{name: known(fact.get(name)) for name in Labels._fields})


def _audio(value: Any, where: str) -> str | bytes:
    """Bytes, else an address; a row without either becomes an empty file, an error of that row only."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str):
        return value or b""
    if is_url(value) or os.path.isabs(value):
        return value
    return f"{parent(where)}/{value}"


class _Parquet:
    """An open parquet file."""

    def __init__(self, file: Any) -> None:
        from pyarrow import parquet

        # Without a buffer a whole row group would be read at once: a gigabyte of audio in pandas' files.
        self._file = parquet.ParquetFile(file, buffer_size=1 << 20)
        self.schema = self._file.schema_arrow

    def rows(self, columns: list[str], first: int, batch: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Numbers and values of the rows from `first` on."""
        begin = 0
        for group in range(self._file.metadata.num_row_groups):
            end = begin + self._file.metadata.row_group(group).num_rows
            if end > first and not columns:
                yield from ((number, {}) for number in range(max(begin, first), end))
            elif end > first:
                batches = self._file.iter_batches(batch, row_groups=[group], columns=columns)
                yield from _numbered(batches, begin, first, batch)
            begin = end


class _Arrow:
    """An open arrow file, of the stream kind (as datasets writes) or of the file kind."""

    def __init__(self, file: Any, magic: bytes) -> None:
        import pyarrow

        if magic == b"ARROW1":
            reader = pyarrow.ipc.open_file(file)
            self._batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            reader = pyarrow.ipc.open_stream(file)
            self._batches = iter(reader)
        self.schema = reader.schema

    def rows(self, columns: list[str], first: int, batch: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Numbers and values of the rows from `first` on."""
        if columns:
            return _numbered((whole.select(columns) for whole in self._batches), 0, first, batch)
        return ((number, {}) for number in range(first, sum(whole.num_rows for whole in self._batches)))


def _numbered(
    batches: Iterable[Any], begin: int, first: int, size: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows from number `first` on of batches that begin with row `begin`, converted `size` at a time."""
    for batch in batches:
        for low in range(max(0, first - begin), batch.num_rows, size):
            yield from enumerate(batch.slice(low, size).to_pylist(), start=begin + low)
        begin += batch.num_rows


@contextmanager
def _opened(where: str) -> Iterator[_Parquet | _Arrow]:
    """A table, recognised by its magic bytes. Raises ConfigError for other and damaged files."""
    with needs_extra("pyarrow", "parquet", f"reading {where}"):
        import pyarrow
    try:
        with open_binary(where) as probe:
            magic = probe.read(6)
            probe.seek(0)
            with probe if is_url(where) else pyarrow.memory_map(where) as file:
                yield _Parquet(file) if magic[:4] == b"PAR1" else _Arrow(file, magic)
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{where} is not a complete parquet or arrow file: {error}") from error


def saved_files(folder: str, split: str | None) -> list[str]:
    """The arrow files of a folder that datasets' save_to_disk wrote; all splits where `split` is None."""
    whole = Path(folder, "dataset_dict.json")
    if whole.is_file():
        splits = read_json(whole)["splits"]
        if split is not None and split not in splits:
            raise ConfigError(f"{folder} has no split {split!r}: there are {', '.join(splits)}")
        chosen = splits if split is None else [split]
        return [file for name in chosen for file in saved_files(f"{folder}/{name}", None)]
    state = read_json(Path(folder, "state.json"))
    return [f"{folder}/{file['filename']}" for file in state["_data_files"]]


def of_split(files: list[str], split: str | None) -> tuple[list[str], bool]:
    """The files with the split in their names (data/train-00000-of-00010.parquet), and True if there are any."""
    top = common_folder(files)
    named = re.compile(rf"(^|[/_.-]){re.escape(split or '')}([/_.-]|$)")
    chosen = [file for file in files if split is not None and named.search(file.removeprefix(top))]
    return chosen or files, bool(chosen)


def hub_files(spec: str) -> list[str]:
    """The parquet files of hf://datasets/<id>[/folder]: its own, else those that the hub converted."""
    if offline():
        raise DownloadError(f"{spec} is on the hub and HF_HUB_OFFLINE is set: download it, give its folder")
    system, path = filesystem(spec.rstrip("/"))
    try:
        matches = system.glob(f"{path}/**/*.parquet") or system.glob(f"{path}@~parquet/**/*.parquet")
    except Exception as error:  # its HTTP errors have no common base class
        raise DownloadError(f"{spec} cannot be listed: {error}; check the id and the network") from error
    files = sorted(system.unstrip_protocol(name) for name in matches)
    if any("/partial-" in file for file in files):
        raise ConfigError(
            f"the hub converted only the first gigabytes of {spec}: download its files, and give their folder"
        )
    if not files:
        raise ConfigError(f"{spec} has no parquet files: download its files, and give their folder")
    return files
