"""Recordings to measure: lines of a manifest or files of a folder, filtered, ordered by id."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from vokens import audio
from vokens.audio_files import find_files
from vokens.bench.options import Measure
from vokens.data.items import Clip, Utterance
from vokens.data.sources.options import SourceOptions
from vokens.data.sources.records import clip_of, read_manifest
from vokens.errors import ConfigError, VokensError

Item = TypeVar("Item")


class NoRecordings(ConfigError):
    """The data have no recordings for a part of the benchmark."""


def find_items(options: Measure) -> list[Clip]:
    """The recordings selected by `options`. Raises NoRecordings where there are none."""
    data = Path(str(files("vokens") / "samples")) if options.data is None else options.data
    if data.is_dir() and not (data / "manifest.jsonl").is_file():
        known = [Utterance(path.relative_to(data).as_posix(), str(path)) for path in find_files(data)]
    else:
        known = _manifest(data / "manifest.jsonl" if data.is_dir() else data)
    labels = SourceOptions(options.split, options.language, options.with_text)
    chosen = [
        clip_of(utterance, data)
        for utterance in sorted(known, key=lambda utterance: utterance.key)
        if labels.keeps(utterance) and _length_fits(utterance, options)
    ]
    if options.limit:
        chosen = spaced(chosen, options.limit)
    if not chosen:
        raise NoRecordings(
            f"{data} has {len(known)} recordings, none of them with split={options.split}, "
            f"language={options.language}, {options.min_seconds:g} to {options.max_seconds:g} s"
            f"{', with text' if options.with_text else ''}: widen the filters"
        )
    return chosen


def spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items: the middles of equal intervals, so that every speaker is covered."""
    count = min(count, len(items))
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


def _length_fits(utterance: Utterance, options: Measure) -> bool:
    try:
        seconds = utterance.listed or audio.duration(str(utterance.audio))
    except VokensError:
        return True  # reported by the part that opens it
    return options.min_seconds <= seconds <= options.max_seconds


def _manifest(path: Path) -> list[Utterance]:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: --data takes a manifest (.jsonl) or a folder of audio")
    utterances = list(read_manifest(path))
    if len({utterance.key for utterance in utterances}) < len(utterances):
        raise ConfigError(f"{path} has an id on several lines: give each its own, results are stored by id")
    return utterances
