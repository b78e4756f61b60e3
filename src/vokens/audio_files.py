"""Audio files below a folder: one walk for every verb, which does without torch."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.errors import ConfigError


def has_suffix(name: str, suffixes: Collection[str] = AUDIO_SUFFIXES) -> bool:
    """Whether a path ends in one of the suffixes and is not hidden: macOS puts a "._a.wav" that is no audio
    beside each a.wav."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in suffixes and not base.startswith(".")


def walk(top: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Folders from `top` down, each with the sorted names of its files. Hidden folders are left out.

    Links are followed and each folder is visited once, so that loops end. A link that leads nowhere counts as a
    file: whoever opens it says so. Raises ConfigError for a folder that cannot be listed, since what is in it would
    be lost without a word.
    """
    seen: set[tuple[int, int]] = set()
    try:
        for folder, below, names in os.walk(top, onerror=_refuse, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                below.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            below[:] = sorted(name for name in below if not name.startswith("."))
            yield folder, sorted(names)
    except OSError as error:
        raise ConfigError(
            f"the folder {error.filename} cannot be listed ({error.strerror}): allow reading it (chmod u+rx), or "
            "give the folders beside it one by one"
        ) from error


def find_files(top: str | Path, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[Path]:
    """The files below a folder that end in one of the suffixes, sorted. Raises ConfigError as `walk` does."""
    return sorted(
        Path(folder, name) for folder, names in walk(top) for name in names if has_suffix(name, suffixes)
    )


def _refuse(error: OSError) -> None:
    raise error
