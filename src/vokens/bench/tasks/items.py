"""Recordings to measure: lines of a manifest or files of a folder, filtered, ordered by id."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from vokens import audio
from vokens.audio_files import find_files
from vokens.bench.options import Measure
from vokens.data.items import Clip
from vokens.data.sources.addresses import is_url
from vokens.data.sources.records import Record, read_records
from vokens.errors import ConfigError, VokensError

Item = TypeVar("Item")


class NoRecordings(ConfigError):
    """The data have no recordings for a part of the benchmark."""


def find_items(options: Measure) -> list[Clip]:
    """The recordings selected by `options`. Raises NoRecordings where there are none."""
    data = Path(str(files("vokens") / "samples")) if options.data is None else options.data
    if data.is_dir() and not (data / "manifest.jsonl").is_file():
        records = _folder_records(data)
    else:
        records = _manifest_records(data / "manifest.jsonl" if data.is_dir() else data)
    chosen = [
        Clip(record.id, Path(record.path), record.text, record.language, record.speaker)
        for record in sorted(records, key=lambda record: record.id)
        if _labels_fit(record, options) and _length_fits(record, options)
    ]
    if options.limit:
        chosen = spaced(chosen, options.limit)
    if not chosen:
        raise NoRecordings(
            f"{data} has {len(records)} recordings, none of them with split={options.split}, "
            f"language={options.language}, {options.min_seconds:g} to {options.max_seconds:g} s"
            f"{', with text' if options.with_text else ''}: widen the filters"
        )
    return chosen


def spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items: the middles of equal intervals, so that every speaker is covered."""
    count = min(count, len(items))
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


def _labels_fit(record: Record, options: Measure) -> bool:
    return (
        (options.split is None or record.split == options.split)
        and (options.language is None or record.language == options.language)
        and not (options.with_text and record.text is None)
    )


def _length_fits(record: Record, options: Measure) -> bool:
    try:
        seconds = record.duration or audio.duration(record.path)
    except VokensError:
        return True  # reported by the part that opens it
    return options.min_seconds <= seconds <= options.max_seconds


def _folder_records(folder: Path) -> list[Record]:
    return [Record(path.relative_to(folder).as_posix(), str(path)) for path in find_files(folder)]


def _manifest_records(path: Path) -> list[Record]:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: --data takes a manifest (.jsonl) or a folder of audio")
    records = list(read_records(path))
    for record in records:
        part = record.piece or record.channel is not None
        if part or is_url(record.path):
            raise ConfigError(
                f"{path}: {record.id} is {'a part of a file' if part else 'not on this machine'}: "
                "only whole local files are measured, save it as one"
            )
    if len({record.id for record in records}) < len(records):
        raise ConfigError(
            f"{path} has an id on several lines: give each line its own, since results are stored by id"
        )
    return records
