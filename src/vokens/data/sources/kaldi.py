"""Kaldi's side files joined to wav.scp: `segments` (utterance, recording, start, end), `text`, `utt2spk`, and
CosyVoice's `instruct`.

A side file is indexed by two arrays, hashes of its keys and offsets of their lines (16 bytes per line), so that
files in any order are joined in one pass without being in memory.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from vokens.data.sources.lines import ScpSource
from vokens.data.sources.options import SourceOptions
from vokens.errors import ConfigError
from vokens.text.files import BOM, decode, iter_lines

_CHUNK = 10_000  # lines looked up at once
_Item = TypeVar("_Item")


class KeyedLines:
    """A file of lines `key rest`, indexed by key. Raises ConfigError for a duplicate key."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            self._file = open(path, "rb")  # noqa: SIM115  (kept open for the lookups)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        blocks, begin = [np.zeros((0, 2), np.int64)], 0
        for lines in _chunks(enumerate(self._file, start=1)):
            block = []
            for number, line in lines:
                decode(line, self.path, number)
                words = (line.removeprefix(BOM) if number == 1 else line).split(None, 1)
                if words:
                    block.append((hash(words[0]), begin))
                begin += len(line)
            blocks.append(np.array(block, np.int64).reshape(-1, 2))
        table = np.concatenate(blocks)  # (lines, 2): hash of the key, begin of the line
        self._hashes, self._begins = table[np.argsort(table[:, 0], kind="stable")].T.copy()
        for place in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]):
            first, second = (self._words(int(place) + i)[0] for i in (0, 1))
            if first == second:
                raise ConfigError(f"{path} has two lines of {first.decode()!r}: remove one of them")

    def find(self, keys: list[bytes]) -> list[bytes | None]:
        """The rest of each key's line, stripped; None for missing keys."""
        places = np.searchsorted(self._hashes, np.array([hash(key) for key in keys], np.int64))
        return [self._rest(key, int(place)) for key, place in zip(keys, places, strict=True)]

    def _rest(self, key: bytes, place: int) -> bytes | None:
        target = hash(key)
        while place < len(self._hashes) and self._hashes[place] == target:
            words = self._words(place)
            if words[0] == key:
                return words[1].strip() if len(words) > 1 else b""
            place += 1  # another key of the same hash
        return None

    def _words(self, place: int) -> list[bytes]:
        """Key and rest of a line."""
        begin = int(self._begins[place])
        self._file.seek(begin)
        line = self._file.readline()
        return (line if begin else line.removeprefix(BOM)).split(None, 1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def joined(scp: str, segments: Path | None, **labels: Path | None) -> Iterator[str]:
    """wav.scp with its side files as lines of a NeMo manifest with ids, in the order of `segments` or wav.scp.

    labels: a file of lines `utterance label` for text, speaker and instruct; utterances without a line have none.
    Raises ConfigError, with file and line, for commands, for segments whose recording is not in wav.scp, and for
    invalid times.
    """
    files = {name: KeyedLines(path) for name, path in labels.items() if path}
    try:
        for lines in _chunks(_segments(scp, segments) if segments else _recordings(scp)):
            keys = [str(line["id"]).encode() for line in lines]
            for name, rests in [(name, file.find(keys)) for name, file in files.items()]:
                for line, words in zip(lines, rests, strict=True):
                    line |= {name: words.decode()} if words else {}
            yield from (json.dumps(line, ensure_ascii=False) for line in lines)
    finally:
        for file in files.values():
            file.close()


def _recordings(scp: str) -> Iterator[dict[str, object]]:
    source = ScpSource({Path(scp): scp}, SourceOptions())
    for span, _ in source.plan(_CHUNK):
        for utterance in source.read(span):
            yield {"id": utterance.key, "audio_filepath": utterance.audio}


def _segments(scp: str, segments: Path) -> Iterator[dict[str, object]]:
    for _ in ScpSource({Path(scp): scp}, SourceOptions()).plan(_CHUNK):
        pass  # check every line
    recordings, checked = KeyedLines(scp), ScpSource({}, SourceOptions())
    for lines in _chunks(_segment_lines(segments)):
        paths = recordings.find([recording.encode() for _, _, recording, *_ in lines])
        for (number, key, recording, start, end, channel), path in zip(lines, paths, strict=True):
            if path is None:
                raise ConfigError(f"{segments}, line {number}: recording {recording!r} is not in {scp}")
            audio = checked.utterance(b"- " + path, scp).audio
            place = {"offset": start, "duration": end and round(end - start, 6), "channel": channel}
            yield {"id": key, "audio_filepath": audio, **place}
    recordings.close()


def _segment_lines(segments: Path) -> Iterator[tuple[int, str, str, float, float | None, int | None]]:
    """Number, utterance, recording, start, end and channel of each line; an end of -1, the recording's, is None."""
    for number, line in enumerate(iter_lines(segments), start=1):
        words = line.split()
        if not words:
            continue
        try:
            key, recording, start, end = words[:4]
            begin, last = float(start), float(end)
            channel = int(words[4]) if len(words) > 4 else None
        except ValueError:
            raise ConfigError(
                f"{segments}, line {number}: {line.strip()!r} is not an utterance, a recording, a start and an end "
                "in seconds, and optionally a channel"
            ) from None
        if not (0 <= begin < last or (begin >= 0 and last == -1)):
            raise ConfigError(f"{segments}, line {number}: from {start} s to {end} s is no segment")
        yield number, key, recording, begin, None if last == -1 else last, channel


def _chunks(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    while chunk := list(islice(items, _CHUNK)):
        yield chunk


def side_files(folder: str) -> dict[str, Path]:
    """The existing side files of a Kaldi folder, by the options that name them."""
    names = {"segments": "segments", "text": "text", "speakers": "utt2spk", "instruct": "instruct"}
    return {option: path for option, name in names.items() if (path := Path(folder, name)).is_file()}
