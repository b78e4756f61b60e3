"""Audio files below a folder: one walk for all commands, without torch."""

import glob
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.errors import ConfigError


def has_suffix(name: str, suffixes: Collection[str] = AUDIO_SUFFIXES) -> bool:
    """True if a path ends in one of the suffixes and is not hidden: macOS writes a "._a.wav", which is no
    audio, next to each a.wav."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in suffixes and not base.startswith(".")


def walk(
    top: str | Path, enter: Callable[[str], bool] = lambda folder: True
) -> Iterator[tuple[str, list[str]]]:
    """Folders from `top` down, each with the sorted names of its files. Hidden folders are left out.

    Links are followed and each folder is visited once, so that loops end. A broken link counts as a file, and opening
    it raises. enter: predicate of the folders to descend into.
    Raises ConfigError for a folder that cannot be listed, whose files would be lost silently.
    """
    seen: set[tuple[int, int]] = set()
    try:
        for folder, below, names in os.walk(top, onerror=_refuse, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                below.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            entered = (name for name in below if enter(os.path.join(folder, name)))
            below[:] = sorted(name for name in entered if not name.startswith("."))
            yield folder, sorted(names)
    except OSError as error:
        raise ConfigError(
            f"the folder {error.filename} cannot be listed ({error.strerror}): allow reading it (chmod u+rx), or "
            "give its sibling folders one by one"
        ) from error


def find_files(top: str | Path, suffixes: Collection[str] = AUDIO_SUFFIXES) -> list[Path]:
    """The files below a folder that end in one of the suffixes, sorted. Raises ConfigError as `walk` does."""
    return sorted(
        Path(folder, name) for folder, names in walk(top) for name in names if has_suffix(name, suffixes)
    )


def match_files(pattern: str) -> list[str]:
    """The files that a glob pattern matches, sorted; `**` is any number of folders, as in glob.

    Raises ConfigError as `walk` does, where glob skips folders that cannot be listed, and follows loops 40 times.
    """
    top = fixed_part(Path(pattern))
    wild = Path(pattern).parts[len(top.parts) :]
    if not top.is_dir():
        return []
    hidden = wild[-1:] and wild[-1].startswith(".")

    def parts_of(folder: str) -> tuple[str, ...]:
        return Path(folder).relative_to(top).parts

    return sorted(
        os.path.join(folder, name)
        for folder, names in walk(top, lambda below: _matches(parts_of(below), wild, folder=True))
        for name in names
        if (hidden or not name.startswith(".")) and _matches((*parts_of(folder), name), wild)
    )


def fixed_part(pattern: Path) -> Path:
    """The folder above the first wildcard of a glob pattern."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _matches(parts: Sequence[str], wild: Sequence[str], folder: bool = False) -> bool:
    """True if the parts of a path match those of a pattern; for a folder, if files below it may."""
    if not wild:
        return not parts and not folder
    if wild[0] == "**":
        return folder or any(_matches(parts[i:], wild[1:]) for i in range(len(parts) + 1))
    if not parts:
        return folder
    return fnmatchcase(parts[0], wild[0]) and _matches(parts[1:], wild[1:], folder)


def _refuse(error: OSError) -> None:
    raise error
