"""Kaldi's side files joined to wav.scp: `segments` (utterance, recording, start, end) and `text`.

The trick: a side file is indexed as two arrays, hashes of its keys and where their lines begin (16 bytes per line),
so that files in any order join in one pass without being in memory.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from vokens.corpus.sources.lines import ScpSource
from vokens.corpus.sources.options import SourceOptions
from vokens.errors import ConfigError

_CHUNK = 10_000  # lines whose places are looked up at once
_Item = TypeVar("_Item")


class KeyedLines:
    """A file of lines `key rest`, found by key."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            self._file = open(path, "rb")  # noqa: SIM115  (held for the lookups)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        blocks, begin = [np.zeros((0, 2), np.int64)], 0
        for lines in _chunks(iter(self._file)):
            block = []
            for line in lines:
                words = line.split(None, 1)
                if words:
                    block.append((hash(words[0]), begin))
                begin += len(line)
            blocks.append(np.array(block, np.int64).reshape(-1, 2))
        table = np.concatenate(blocks)  # (lines, 2): hash of the key, begin of the line
        self._hashes, self._begins = table[np.argsort(table[:, 0], kind="stable")].T.copy()

    def find(self, keys: list[bytes]) -> list[bytes | None]:
        """What follows each key in its line, stripped; None for keys that are not there."""
        places = np.searchsorted(self._hashes, np.array([hash(key) for key in keys], np.int64))
        return [self._rest(key, int(place)) for key, place in zip(keys, places, strict=True)]

    def _rest(self, key: bytes, place: int) -> bytes | None:
        wanted = hash(key)
        while place < len(self._hashes) and self._hashes[place] == wanted:
            self._file.seek(int(self._begins[place]))
            words = self._file.readline().split(None, 1)
            if words[0] == key:
                return words[1].strip() if len(words) > 1 else b""
            place += 1  # another key of the same hash
        return None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def joined(scp: str, segments: Path | None, text: Path | None) -> Iterator[str]:
    """wav.scp with its side files as lines of a NeMo manifest with ids, in the order of `segments` or wav.scp.

    Utterances without a line in `text` have no text. Raises ConfigError, with file and line, for commands, for
    segments whose recording is not in wav.scp, and for times that are none.
    """
    texts = KeyedLines(text) if text else None
    try:
        for lines in _chunks(_segments(scp, segments) if segments else _recordings(scp)):
            spoken = (
                texts.find([str(line["id"]).encode() for line in lines]) if texts else [None] * len(lines)
            )
            for line, words in zip(lines, spoken, strict=True):
                yield json.dumps(line | ({"text": words.decode()} if words else {}), ensure_ascii=False)
    finally:
        if texts:
            texts.close()


def _recordings(scp: str) -> Iterator[dict[str, object]]:
    source = ScpSource({Path(scp): scp}, SourceOptions())
    for span, _ in source.plan(_CHUNK):
        for utterance in source.read(span):
            yield {"id": utterance.key, "audio_filepath": utterance.audio}


def _segments(scp: str, segments: Path) -> Iterator[dict[str, object]]:
    for _ in ScpSource({Path(scp): scp}, SourceOptions()).plan(_CHUNK):
        pass  # every line is checked
    recordings, checked = KeyedLines(scp), ScpSource({}, SourceOptions())
    for lines in _chunks(_segment_lines(segments)):
        paths = recordings.find([recording.encode() for _, _, recording, *_ in lines])
        for (number, key, recording, start, end), path in zip(lines, paths, strict=True):
            if path is None:
                raise ConfigError(f"{segments}, line {number}: recording {recording!r} is not in {scp}")
            audio = checked.utterance(b"- " + path, scp).audio
            yield {"id": key, "audio_filepath": audio, "offset": start, "duration": round(end - start, 6)}
    recordings.close()


def _segment_lines(segments: Path) -> Iterator[tuple[int, str, str, float, float]]:
    try:
        with open(segments, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                words = line.split()
                if not words:
                    continue
                try:
                    key, recording, start, end = words[:4]
                    times = float(start), float(end)
                except ValueError:
                    raise ConfigError(
                        f"{segments}, line {number}: {line.strip()!r} is not an utterance, a recording, a start "
                        "and an end in seconds"
                    ) from None
                if not 0 <= times[0] < times[1]:
                    raise ConfigError(f"{segments}, line {number}: from {start} s to {end} s is no segment")
                yield number, key, recording, *times
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{segments} cannot be read: {error}") from error


def _chunks(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    while chunk := list(islice(items, _CHUNK)):
        yield chunk


def side_files(folder: str) -> tuple[Path | None, Path | None]:
    """`segments` and `text` of a Kaldi folder, where they are there."""
    segments, text = Path(folder, "segments"), Path(folder, "text")
    return segments if segments.is_file() else None, text if text.is_file() else None
