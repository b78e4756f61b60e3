"""Audio in tar files: WebDataset (adjacent members with one key) and lhotse's Shar (cuts with tars of audio).

A WebDataset span starts at the byte of its first member's header, a Shar span at a line of the cuts' file.
"""

import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.data.items import Source, Span, Utterance
from vokens.data.sources.addresses import note, open_unpacked
from vokens.data.sources.options import Labels, SourceOptions, known
from vokens.data.sources.records import key_of, labels_of, parse_line, read_lines, utterance_of
from vokens.errors import ConfigError
from vokens.text.files import decode

BY_NAME = "name"


class Member(NamedTuple):
    """A file of a tar: offset of its header, name, and content if requested."""

    offset: int
    name: str
    content: bytes


class _Sample(NamedTuple):
    """The members of one key. audio: None where there is none; its offset is that of the sample's first member."""

    key: str
    labels: Labels
    audio: Member | None
    names: list[str]


def members(where: str, offset: int = 0, load: frozenset[str] = frozenset()) -> Iterator[Member]:
    """The files of a tar or tar.gz from a header on, with content for those whose suffix is in `load`.

    Raises ConfigError for other and truncated files.
    """
    try:
        with open_unpacked(where) as file:
            file.seek(offset)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (info := tar.next()) is not None:
                    vars(tar)["members"].clear()  # else it keeps every member in memory
                    if info.isfile():
                        suffix = os.path.splitext(info.name)[1].lower()
                        content = tar.extractfile(info) if suffix in load else None
                        yield Member(info.offset, info.name, content.read() if content else b"")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ConfigError(f"{where} is not a complete tar file ({error}): write it again") from error


class WebDataset(Source):
    """Tar files with one utterance per key: audio, optionally .txt and .json, as adjacent members."""

    def __init__(self, files: list[str], options: SourceOptions) -> None:
        if options.key not in (None, BY_NAME):
            raise ConfigError(
                f"--key {options.key}: tars name utterances by their members, up to the first dot; "
                f"{BY_NAME!r} takes them up to the last"
            )
        self.files, self.options = files, options

    def follow(self, span: Span) -> Iterator[Utterance]:
        load = frozenset({*AUDIO_SUFFIXES, ".txt", ".json"})
        for key, labels, audio, _ in self._samples(span.where, span.offset, load):
            if audio is not None and self.options.keeps(labels):
                yield Utterance(key, audio.content, **labels._asdict())

    def entries(self, where: str) -> Iterator[tuple[int, str]]:
        load = frozenset({".txt", ".json"}) if self.options.choosy else frozenset()
        count, strays = 0, []
        for key, labels, audio, names in self._samples(where, 0, load):
            if audio is None:
                strays.append(names)
                continue
            count += 1
            if self.options.keeps(labels):
                yield audio.offset, key
        if strays and not count:
            raise ConfigError(
                f"{where}: {_key(strays[0][0])!r} has no audio, only {strays[0]}, and no other has"
            )
        if strays:
            note(f"{where}: left out {len(strays)} keys without audio, the first with {', '.join(strays[0])}")

    def _samples(self, where: str, offset: int, load: frozenset[str]) -> Iterator[_Sample]:
        """Labels, audio and names of each key, from the member whose header is at `offset` on."""
        sample: list[Member] = []
        current = None
        for member in members(where, offset, load):
            if os.path.basename(member.name).startswith("."):  # written by macOS, or unfinished
                continue
            key = _key(member.name, last=self.options.key == BY_NAME)
            if key != current and sample:
                yield self._sample(where, str(current), sample)
                sample = []
            current = key
            rivals = [old.name for old in sample if _suffix(old) in AUDIO_SUFFIXES]
            if rivals and _suffix(member) in AUDIO_SUFFIXES:
                raise ConfigError(
                    f"{where}: {rivals[0]!r} and {member.name!r} are both the audio of {key!r}, since keys end at the "
                    f"first dot: --key {BY_NAME} ends them at the last, or keep one file of each key"
                )
            sample.append(member)
        if sample:
            yield self._sample(where, str(current), sample)

    def _sample(self, where: str, key: str, sample: list[Member]) -> _Sample:
        by_suffix = {_suffix(member): member for member in sample}
        names = [member.name for member in sample]
        audio = next((member for member in sample if _suffix(member) in AUDIO_SUFFIXES), None)
        if audio is None:
            return _Sample(key, Labels(), None, names)
        facts: dict[str, Any] = {}
        if ".json" in by_suffix and by_suffix[".json"].content:
            try:
                facts = parse_line(by_suffix[".json"].content)
            except ConfigError as error:
                raise ConfigError(f"{where}, {by_suffix['.json'].name}: {error}") from error
        labels = labels_of(facts)
        if ".txt" in by_suffix:
            content = by_suffix[".txt"].content
            text = known(decode(content, f"{where}, {by_suffix['.txt'].name}").strip())
            labels = labels._replace(text=text or labels.text)
        return _Sample(key, labels, audio._replace(offset=sample[0].offset), names)


def _key(name: str, last: bool = False) -> str:
    """The key of a member: its name up to the first dot, or up to the last."""
    folder, _, base = name.rpartition("/")
    return os.path.join(folder, os.path.splitext(base)[0] if last else base.partition(".")[0])


def _suffix(member: Member) -> str:
    return os.path.splitext(member.name)[1].lower()


class Shar(Source):
    """lhotse's Shar. shards: the file of cuts (jsonl.gz) and the tar of recordings of each."""

    def __init__(self, shards: list[tuple[str, str]], options: SourceOptions) -> None:
        self._tars = dict(shards)
        self.files, self.options = list(self._tars), options

    def given(self, where: str) -> str:
        return f"{where} with {self._tars[where]}"

    def follow(self, span: Span) -> Iterator[Utterance]:
        where = self._tars[span.where]
        pairs = zip(self._cuts(span.where), self._recordings(where), strict=False)
        for (_, cut), (name, audio) in islice(pairs, span.offset, None):
            if not self.options.keeps(labels_of(cut)):
                continue
            if name != cut["id"]:
                raise ConfigError(f"{where} has {name!r} and {span.where} {cut['id']!r}: write both again")
            yield replace(utterance_of(cut, span.where, self.options.key), audio=audio)

    def entries(self, where: str) -> Iterator[tuple[int, str]]:
        for number, cut in self._cuts(where):
            if self.options.keeps(labels_of(cut)):
                yield number, key_of(cut, self.options.key)

    def _cuts(self, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
        def cut(line: bytes) -> dict[str, Any]:
            parsed = parse_line(line)
            key_of(parsed)  # raises for one without audio
            return parsed

        return enumerate(read_lines(where, cut))

    def _recordings(self, where: str) -> Iterator[tuple[str, bytes]]:
        """Name (that of the cut) and bytes of each recording: a member, followed by its own .json."""
        for member in members(where, load=frozenset({*AUDIO_SUFFIXES, ".original"})):
            name, suffix = os.path.splitext(member.name)
            if suffix not in {".json", ".nometa"}:
                yield name, member.content
