"""Sources whose unit is a line of a text file: jsonl manifests, Kaldi's wav.scp, lists of paths.

A span is a byte offset and a number of utterances: planning is one pass over the file, and reading a span seeks.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.data.items import Source, Span, Utterance
from vokens.data.sources.addresses import parent, resolve, stem
from vokens.data.sources.options import SourceOptions
from vokens.data.sources.records import key_of, labels_of, parse_line, utterance_of
from vokens.errors import ConfigError
from vokens.text.files import BOM, decode

_ARCHIVE = re.compile(rb"\.ark:\d+$")
# Lists of VITS, Tacotron and others: a path, a separator, optionally a speaker, and a text.
_COLUMNS = re.compile(rf"(.*?({'|'.join(map(re.escape, AUDIO_SUFFIXES))}))\s*[|\t,;]", re.IGNORECASE)


class LineSource(Source):
    """A source with one utterance per line.

    files: the readable (unpacked) file of each list, and the user's own, which errors name and relative paths begin at.
    """

    def __init__(self, files: Mapping[Path, str], options: SourceOptions) -> None:
        self._given = {str(file): given for file, given in files.items()}
        self.files, self.options = list(self._given), options

    @abstractmethod
    def key(self, line: bytes) -> str | None:
        """The key of a non-blank line, None where the options exclude it. Raises ConfigError."""

    @abstractmethod
    def utterance(self, line: bytes, given: str) -> Utterance:
        """The utterance of a line. given: the list that it is in."""

    def given(self, where: str) -> str:
        return self._given.get(where, where)

    def follow(self, span: Span) -> Iterator[Utterance]:
        given = self.given(span.where)
        with open(span.where, "rb") as lines:
            lines.seek(span.offset)
            for line in lines:
                decode(line, given)  # raises with the line if it is no longer UTF-8
                line = line.removeprefix(BOM)
                if not line.isspace() and self.key(line) is not None:
                    yield self.utterance(line, given)

    def entries(self, where: str) -> Iterator[tuple[int, str]]:
        offset, number = 0, 0
        try:
            with open(where, "rb") as lines:
                for number, line in enumerate(lines, start=1):
                    size = len(line)
                    line.decode()  # refuse lines that are not UTF-8 here, by number
                    if number == 1:
                        line = line.removeprefix(BOM)
                    if not line.isspace():
                        key = self.key(line)
                        if key is not None:
                            yield offset, key
                    offset += size
        except OSError as error:
            raise ConfigError(f"{where} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            decode(error.object, self._given[where], number)  # raises with the line and the byte
        except ConfigError as error:
            raise ConfigError(f"{self._given[where]}, line {number}: {error}") from error


class ManifestSource(LineSource):
    """jsonl manifests: ours, NeMo's, lhotse's cuts."""

    def key(self, line: bytes) -> str | None:
        parsed = parse_line(line)
        key = key_of(parsed, self.options.key)
        return key if not self.options.choosy or self.options.keeps(labels_of(parsed)) else None

    def utterance(self, line: bytes, given: str) -> Utterance:
        return utterance_of(parse_line(line), given, self.options.key)


class ScpSource(LineSource):
    """Kaldi's wav.scp: a key, then a path that may contain blanks. Commands (`… |`) are never executed."""

    def key(self, line: bytes) -> str | None:
        words = line.split(None, 1)
        if len(words) < 2:
            raise ConfigError(f"{line.strip().decode()!r} has no path: a line is a key, a blank, a path")
        key, path = words[0].decode(), words[1].rstrip()
        if path.endswith(b"|"):
            raise ConfigError(
                f"{key!r} is a command ({path.decode()[:60]!r}), and commands are never executed: "
                "run it once into audio files (Kaldi's wav-copy scp:wav.scp) and list those"
            )
        if _ARCHIVE.search(path):
            raise ConfigError(f"{key!r} is a place in a Kaldi archive: copy it into audio files (wav-copy)")
        return None if self.options.choosy else key

    def utterance(self, line: bytes, given: str) -> Utterance:
        key, path = line.split(None, 1)
        return Utterance(key.decode(), resolve(path.strip().decode(), parent(given), from_cwd=True))


class PathSource(LineSource):
    """A list of paths, one per line; a key is the path below `folder`, without suffix."""

    def __init__(self, files: Mapping[Path, str], options: SourceOptions, folder: str) -> None:
        super().__init__(files, options)
        self.folder = folder

    def key(self, line: bytes) -> str | None:
        path = line.strip().decode()
        if (columns := _COLUMNS.match(path)) and stem(path) == path:
            raise ConfigError(
                f"{path[:60]!r} is more than a path: a list has a path per line; with texts, give a jsonl manifest, "
                f'whose lines are {{"path": "{columns[1]}", "text": "..."}}'
            )
        return None if self.options.choosy else stem(path.removeprefix(self.folder).lstrip("/"))

    def utterance(self, line: bytes, given: str) -> Utterance:
        path = line.strip().decode()
        key = stem(path.removeprefix(self.folder).lstrip("/"))
        return Utterance(key, resolve(path, parent(given), from_cwd=True))
