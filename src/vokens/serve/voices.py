"""The folder of voices, read anew for every request: what is put there or replaced is heard at once."""

from dataclasses import dataclass
from pathlib import Path

from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.errors import ConfigError
from vokens.serve.errors import ServerFault
from vokens.text.files import read_text


@dataclass(frozen=True)
class Voice:
    """A voice that clients may name, equal to another only while its files are the same.

    Attributes:
        path: of the recording; None for a voice that came with a model. text: what it says, "" where not known.
        stamp: times and size of the recording.
    """

    name: str
    path: Path | None
    text: str = ""
    stamp: tuple[int, ...] = ()


class Voices:
    """The recordings NAME.wav (or flac, mp3, …) of a folder, each with NAME.txt of what it says where known."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        return list(self._paths())

    def get(self, name: str) -> Voice | None:
        """The voice of that name. Raises ServerFault when its files cannot be read."""
        path = self._paths().get(name)  # looked up, never put together from a client's words
        if path is None:
            return None
        said = path.with_suffix(".txt")
        try:
            text = read_text(said).strip() if said.exists() else ""
            stat = path.stat()
        except (OSError, ConfigError) as error:
            raise ServerFault(
                f"the files of the voice {name!r} cannot be read: name another voice"
            ) from error
        return Voice(name, path, text, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size))

    def _paths(self) -> dict[str, Path]:
        if self.folder is None or not self.folder.is_dir():
            return {}
        found = (path for path in sorted(self.folder.iterdir()) if path.suffix.lower() in AUDIO_SUFFIXES)
        return {path.stem: path for path in found}
