"""Lines of jsonl manifests: ours, NeMo's (`audio_filepath`) and lhotse's cuts, read as one kind of record.

Every line is parsed as JSON in full, also where only its key is needed: 1.6 µs for 230 bytes, so ten million lines
take half a minute, and a malformed one is reported before any work begins.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vokens.data.items import Utterance
from vokens.data.sources.addresses import is_url, parent, resolve, stem
from vokens.data.sources.options import Labels, known
from vokens.errors import ConfigError
from vokens.text.files import BOM

_decode = json.JSONDecoder().raw_decode
_WHOLE = 1e-3  # seconds: a cut that ends this close to the end of its recording is the whole recording
# Fields of manifests that change the audio; they are refused.
_CHANGES = ("speed", "speed_perturb", "transforms", "augmentations", "sox_effects")
_CHANNEL = ("channel", "channel_selector")


class Record(NamedTuple):
    """Content of one line: an utterance and its labels.

    path: local path or URL. duration: seconds, if stated. piece: the utterance is a segment of `duration` seconds from
    `start`, not the whole file. channel: the selected one.
    """

    id: str
    path: str
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    split: str | None = None
    start: float = 0.0
    duration: float | None = None
    piece: bool = False
    channel: int | None = None
    instruct: str | None = None

    @property
    def utterance(self) -> Utterance:
        """The utterance to encode."""
        duration, listed = (self.duration, None) if self.piece else (None, self.duration)
        return Utterance(
            self.id, self.path, self.start, duration, *self[2:5], listed, self.channel, self.instruct
        )


def parse_line(line: bytes) -> dict[str, Any]:
    """The object of a line. Raises ConfigError for anything else."""
    try:
        text = line.strip().removeprefix(BOM).decode()
        parsed, end = _decode(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON ({error}): a manifest has one whole JSON object per line") from error
    if end != len(text) or type(parsed) is not dict:
        raise ConfigError(f"not one JSON object: {text[:60]!r}; a manifest has one object per line")
    return parsed


def key_of(line: dict[str, Any], field: str | None = None) -> str:
    """The key of a line: its `field`, else its `id`, else its path without suffix (and the piece, if it is one).

    Raises ConfigError for lines without audio, or with audio that cannot be read as intended.
    """
    path = _audio(line)
    key = line.get(field or "id")
    if key is None or key == "":
        if field is not None:
            raise ConfigError(f"no field {field!r} for the key; there are {sorted(line)}")
        key = stem(path).lstrip("/")
        if "offset" in line:
            key += f"@{_seconds(line['offset']) or 0:g}+{_seconds(line.get('duration')) or 0:g}"
    return str(key)


def labels_of(line: dict[str, Any]) -> Labels:
    """The labels of a line; a lhotse cut has all but the split in its first supervision."""
    spoken = (line.get("supervisions") or [{}])[0] if "recording" in line else line
    return Labels(
        text=known(spoken.get("text")),
        speaker=known(spoken.get("speaker")),
        language=known(spoken.get("language", spoken.get("lang"))),
        split=known(line.get("split")),
        instruct=known(spoken.get("instruct")),
    )


def record_of(line: dict[str, Any], manifest: str | Path, key: str | None = None) -> Record:
    """The record of a parsed line.

    manifest: the file of the line. Our relative paths start from its folder; those of NeMo and lhotse from the
    working directory if they exist there, else from its folder.
    key: the field that names utterances, instead of `id`.
    Raises ConfigError as `key_of` does; the caller adds the line's number.
    """
    start, duration, piece = 0.0, _seconds(line.get("duration")), False
    if "recording" in line:
        start, length = _seconds(line.get("start")) or 0.0, _seconds(line["recording"].get("duration"))
        piece = duration is not None and (start > 0 or length is None or start + duration < length - _WHOLE)
    elif line.get("offset") is not None:
        start, piece = _seconds(line["offset"]) or 0.0, True
    return Record(
        id=key_of(line, key),
        path=resolve(_audio(line), parent(str(manifest)), from_cwd="path" not in line),
        start=start,
        duration=duration,
        piece=piece,
        channel=None if "recording" in line else _channel(line),
        **labels_of(line)._asdict(),
    )


def read_records(manifest: str | Path) -> Iterator[Record]:
    """All records of a jsonl or jsonl.gz file. Raises ConfigError that names the file and the line."""
    opened = gzip.open if str(manifest).endswith(".gz") else open
    with opened(manifest, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.isspace():
                try:
                    yield record_of(parse_line(line), manifest)
                except ConfigError as error:
                    raise ConfigError(f"{manifest}, line {number}: {error}") from error


def _seconds(value: object) -> float | None:
    if value is None or (isinstance(value, int | float) and value >= 0):
        return value
    raise ConfigError(f"{value!r} is no time: give offset, start and duration in seconds")


def _channel(line: dict[str, Any]) -> int | None:
    """The channel that a line selects, None for the mean of all."""
    chosen = next((line[name] for name in _CHANNEL if line.get(name) not in (None, "average")), None)
    if chosen is None or type(chosen) is int:
        return chosen
    raise ConfigError(f"channel {chosen!r}: give the number of one, or save channels as files of one channel")


def _audio(line: dict[str, Any]) -> str:
    """The path or URL of a line, unresolved."""
    path = line.get("path") or line.get("audio_filepath")
    if path is not None:
        for name in _CHANGES:
            if line.get(name) not in (None, 1, [], {}, ""):
                raise ConfigError(
                    f"{name!r} is {line[name]!r}, which changes the audio and is not supported: save the changed audio "
                    "as files, and list those"
                )
        _channel(line)
    if path is None:
        if type(line.get("recording")) is dict:
            return _cut_audio(line)
        if "tracks" in line or line.get("type") in {"MixedCut", "PaddingCut"}:
            raise ConfigError(
                "a mixed or padding cut of lhotse: mixing is not supported, save the mixed audio "
                "(CutSet.save_audios) and give its cuts"
            )
        raise ConfigError(
            f"no audio: there is neither path, audio_filepath nor recording, only {sorted(line)}"
        )
    if type(path) is not str:
        raise ConfigError(f"the path of the audio is {path!r}: it has to be a string")
    return path


def _cut_audio(cut: dict[str, Any]) -> str:
    """The file of a lhotse MonoCut. Raises ConfigError where lhotse would read other audio."""
    recording = cut["recording"]
    sources = recording.get("sources") or []
    if len(sources) != 1 or type(sources[0].get("source")) is not str:
        raise ConfigError(f"a recording with {len(sources)} sources: give recordings of one audio file each")
    source = sources[0]
    if source.get("type") not in {"file", "url", "shar"}:
        raise ConfigError(
            f"a recording of type {source.get('type')!r}: commands are never executed, and bytes in lines are not "
            "supported; save the audio as files (CutSet.save_audios)"
        )
    if len(source.get("channels") or [0]) > 1 or type(cut.get("channel", 0)) is not int:
        raise ConfigError(
            f"channel {cut.get('channel')} of a recording with channels {source['channels']}: channels would be "
            "averaged; save them as files of one channel (CutSet.save_audios)"
        )
    changed = [transform.get("name") for transform in recording.get("transforms") or []]
    if set(changed) - {"Resample"}:
        raise ConfigError(f"a recording changed by {changed}: save the changed audio (CutSet.save_audios)")
    if source["type"] == "url" and not is_url(source["source"]):
        raise ConfigError(f"{source['source']!r} is no URL")
    return source["source"]
