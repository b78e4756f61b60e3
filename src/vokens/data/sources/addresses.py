"""Addresses of files: local paths, and URLs that fsspec opens (s3://, gs://, hf://, memory://, http://, …).

Local paths stay paths; only addresses with a scheme go through fsspec.
"""

import glob
import gzip
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vokens.atomic import atomic_write
from vokens.audio_files import match_files
from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.errors import ConfigError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_url(address: str) -> bool:
    """True if an address has a scheme (s3://…), so that fsspec opens it."""
    return _SCHEME.match(address) is not None


def parent(address: str) -> str:
    """The folder of an address."""
    return address.rpartition("/")[0] if is_url(address) else os.path.dirname(os.path.abspath(address))


def resolve(path: str, home: str, from_cwd: bool) -> str:
    """The address of a line of a list.

    home: the folder of the list, base of relative paths. from_cwd: a relative path that exists in the working
    directory takes precedence, as in Kaldi, NeMo and lhotse.
    """
    if is_url(path) or os.path.isabs(path):
        return path
    if from_cwd and os.path.exists(path):
        return os.path.abspath(path)
    return f"{home}/{path}" if is_url(home) else os.path.join(home, path)


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem of a URL, and the path within it. Raises ConfigError where its package is missing."""
    import fsspec.core

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url} cannot be opened by fsspec: {error}") from error


def open_binary(address: str) -> BinaryIO:
    """Open a seekable binary file for reading. Raises ConfigError where it cannot be read."""
    try:
        if not is_url(address):
            return open(address, "rb")
        system, path = filesystem(address)
        return system.open(path, "rb")
    except OSError as error:
        raise ConfigError(f"{address} cannot be read: {error.strerror or error}") from error


@contextmanager
def open_unpacked(address: str) -> Iterator[BinaryIO | gzip.GzipFile]:
    """Open a file for reading as `open_binary` does, and unpack it where its content is gz."""
    with open_binary(address) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield gzip.GzipFile(fileobj=file) if packed else file


def stem(path: str) -> str:
    """A path without its audio suffix; other dots are part of the name."""
    root, suffix = os.path.splitext(path)
    return root if suffix.lower() in AUDIO_SUFFIXES else path


def expand(pattern: str) -> list[str]:
    """All addresses of a pattern, sorted; `{000..010}` and `{a,b}` keep their order and need not exist."""
    addresses: list[str] = []
    for one in _braced(pattern):
        if not glob.has_magic(one):
            addresses.append(one)
        elif is_url(one):
            system, path = filesystem(one)
            addresses += sorted(system.unstrip_protocol(name) for name in system.glob(path))
        else:
            addresses += sorted(map(os.path.abspath, match_files(one)))
    return addresses


def is_pattern(spec: str) -> bool:
    """True for a pattern, False for an existing file with such characters in its name."""
    if os.path.exists(spec) or spec.startswith(("http://", "https://")):  # there ? begins a query
        return False
    return glob.has_magic(spec) or next(_braced(spec)) != spec


def _braced(pattern: str) -> Iterator[str]:
    for match in _BRACES.finditer(pattern):
        low, dots, high = match[1].partition("..")
        if dots and low.isdigit() and high.isdigit():
            choices = [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
        elif "," in match[1]:
            choices = match[1].split(",")
        else:
            continue
        for choice in choices:
            yield from _braced(pattern[: match.start()] + choice + pattern[match.end() :])
        return
    yield pattern


def common_folder(paths: Iterable[str]) -> str:
    """The deepest common folder of all paths, in one pass; "" where there is none."""
    folder: str | None = None
    for path in paths:
        folder = os.path.dirname(path) if folder is None else folder
        while folder and not path.startswith(folder.rstrip("/") + "/"):
            folder = os.path.dirname(folder) if folder.strip("/") else ""
    return folder or ""


def note(text: str) -> None:
    """Report on standard error what is left out of a source."""
    print(f"vokens: {text}", file=sys.stderr)


def frozen(listing: Path, name: str, lines: Callable[[], Iterable[str]]) -> Path:
    """The file `name` of the run, written from `lines` the first time and then reused."""
    path = listing / name
    if not path.exists():
        listing.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as out:
                out.writelines(f"{line}\n" for line in lines())
        except UnicodeEncodeError as error:
            name = error.object[max(0, error.start - 60) : error.end + 20]
            raise ConfigError(f"a file name is not UTF-8: {name!r}; rename it (convmv)") from error
    return path
