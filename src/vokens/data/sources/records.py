"""Lines of jsonl manifests: ours, NeMo's (`audio_filepath`) and lhotse's cuts, read as utterances.

Every line is parsed as JSON in full, also where only its key is needed: 1.6 µs for 230 bytes, so ten million lines
take half a minute, and a malformed one is reported before any work begins.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from vokens.data.items import Clip, Utterance
from vokens.data.sources.addresses import is_url, open_unpacked, parent, resolve, stem
from vokens.data.sources.options import Labels, known
from vokens.errors import ConfigError
from vokens.text.files import BOM

_Read = TypeVar("_Read")
_decode = json.JSONDecoder().raw_decode
_WHOLE = 1e-3  # seconds: a cut that ends this close to the end of its recording is the whole recording
# Fields of manifests that change the audio; they are refused.
_CHANGES = ("speed", "speed_perturb", "transforms", "augmentations", "sox_effects")
_CHANNEL = ("channel", "channel_selector")


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


def utterance_of(line: dict[str, Any], manifest: str | Path, key: str | None = None) -> Utterance:
    """The utterance of a parsed line.

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
    return Utterance(
        key_of(line, key),
        resolve(_audio(line), parent(str(manifest)), from_cwd="path" not in line),
        start,
        duration if piece else None,
        listed=None if piece else duration,
        channel=None if "recording" in line else _channel(line),
        **labels_of(line)._asdict(),
    )


def read_lines(manifest: str | Path, read: Callable[[bytes], _Read]) -> Iterator[_Read]:
    """Results of `read` for each line of a jsonl file, gz or not, but for blank ones.

    Raises ConfigError that names the file and the line, also where the file is truncated.
    """
    number, where = 1, str(manifest)
    try:
        with open_unpacked(where) as lines:
            for line in lines:
                if not line.isspace():
                    yield read(line)
                number += 1
    except (ConfigError, EOFError, zlib.error, OSError) as error:
        raise ConfigError(f"{where}, line {number}: {error}") from error


def read_manifest(manifest: str | Path) -> Iterator[Utterance]:
    """All utterances of a jsonl or jsonl.gz file. Raises ConfigError that names the file and the line."""
    return read_lines(manifest, lambda line: utterance_of(parse_line(line), manifest))


def clip_of(utterance: Utterance, manifest: str | Path) -> Clip:
    """The whole recording of a manifest's utterance. Raises ConfigError for a piece, a channel and a URL."""
    part = utterance.start > 0 or utterance.duration is not None or utterance.channel is not None
    if part or is_url(str(utterance.audio)):
        raise ConfigError(
            f"{manifest}: {utterance.key} is {'a piece of a file' if part else 'not on this machine'}, and only whole "
            "files on this machine are taken: save it as one"
        )
    audio = Path(str(utterance.audio))
    return Clip(utterance.key, audio, utterance.text, utterance.language, utterance.speaker)


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
        raise ConfigError(f"no audio: neither path, audio_filepath nor recording, only {sorted(line)}")
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
