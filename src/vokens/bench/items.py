"""Which recordings are measured: lines of a manifest or files of a folder, filtered, ordered by id."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from vokens.bench.options import Reconstruct
from vokens.errors import ConfigError

_AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")


@dataclass(frozen=True)
class Item:
    """One recording; text and language are None where they are not known."""

    id: str
    path: Path
    text: str | None = None
    language: str | None = None


def find_items(options: Reconstruct) -> list[Item]:
    """The recordings that `options` asks for. Raises ConfigError when there are none."""
    if options.data.is_dir() and not (options.data / "manifest.jsonl").is_file():
        lines, home = _folder_lines(options.data), options.data
    else:
        manifest = options.data / "manifest.jsonl" if options.data.is_dir() else options.data
        lines, home = _manifest_lines(manifest), manifest.parent
    chosen: list[Item] = []
    for line in sorted(lines, key=lambda line: line["id"]):
        path = home / line["path"]
        if _labels_fit(line, options) and _length_fits(line, path, options):
            chosen.append(Item(line["id"], path, line.get("text") or None, line.get("language")))
    if options.limit and options.limit < len(chosen):
        # The middles of equal stretches: every speaker is heard.
        chosen = [chosen[int((i + 0.5) * len(chosen) / options.limit)] for i in range(options.limit)]
    if not chosen:
        raise ConfigError(
            f"{options.data} has {len(lines)} recordings, none of them with split={options.split}, "
            f"language={options.language}, {options.min_seconds:g} to {options.max_seconds:g} s"
            f"{', with text' if options.with_text else ''}: widen the filters"
        )
    return chosen


def _labels_fit(line: dict[str, Any], options: Reconstruct) -> bool:
    return (
        (options.split is None or line.get("split") == options.split)
        and (options.language is None or line.get("language") == options.language)
        and (not options.with_text or bool(line.get("text")))
    )


def _length_fits(line: dict[str, Any], path: Path, options: Reconstruct) -> bool:
    seconds = line.get("duration") or soundfile.info(str(path)).duration
    return options.min_seconds <= seconds <= options.max_seconds


def _folder_lines(folder: Path) -> list[dict[str, Any]]:
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in _AUDIO]
    return [{"id": path.as_posix(), "path": path} for path in paths]


def _manifest_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: --data takes a manifest (.jsonl) or a folder of audio")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(line, dict) or not {"id", "path"} <= line.keys():
            raise ConfigError(f"{path}, line {number} has no id and path: each line is an object with both")
        lines.append(line)
    if len({line["id"] for line in lines}) < len(lines):
        raise ConfigError(f"{path} gives an id to several lines: results are kept by id, so ids must differ")
    return lines
