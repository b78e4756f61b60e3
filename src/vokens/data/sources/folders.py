"""Audio files of a folder or a glob, frozen as a manifest, so that the run's list stays.

A key is the path below the folder without suffix; files that differ only in the suffix keep it.
"""

import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, takewhile

from vokens.audio_files import has_suffix, walk
from vokens.data.sources.addresses import filesystem, is_url, note, stem


def folder_lines(folder: str) -> Iterator[str]:
    """The audio files below a folder as lines of a manifest, folder by folder, in the order of names."""
    if is_url(folder):
        system, path = filesystem(folder)
        paths = (system.unstrip_protocol(name) for name in system.find(path))
        return file_lines(paths, folder)
    return _manifest(walk(os.path.abspath(folder)), os.path.abspath(folder))


def file_lines(paths: Iterable[str], top: str) -> Iterator[str]:
    """The audio files among `paths` as lines of a manifest. top: the folder that keys are relative to."""
    by_folder = groupby(sorted(paths, key=os.path.split), key=os.path.dirname)
    return _manifest(((folder, list(map(os.path.basename, files))) for folder, files in by_folder), top)


def fixed_part(pattern: str) -> str:
    """The folder of a glob: its parts before the first wildcard."""
    *parts, _ = pattern.split("/")
    folder = "/".join(takewhile(lambda part: not glob.has_magic(part) and "{" not in part, parts))
    return folder if is_url(folder) else os.path.abspath(folder or ("/" if pattern.startswith("/") else "."))


def _manifest(folders: Iterable[tuple[str, list[str]]], top: str) -> Iterator[str]:
    """Lines for the audio files of folders; reports at the end how many other, not hidden, files there are."""
    others: Counter[str] = Counter()
    for folder, names in folders:
        sounds = list(filter(has_suffix, names))
        others.update(os.path.splitext(name)[1] or name for name in names if name[0] != ".")
        others.subtract(os.path.splitext(name)[1] for name in sounds)
        uses = Counter(map(stem, sounds))
        for name in sounds:
            path = f"{folder}/{name}"
            key = (stem(path) if uses[stem(name)] == 1 else path).removeprefix(top).lstrip("/")
            yield json.dumps({"id": key, "audio_filepath": path}, ensure_ascii=False)
    if others := +others:
        most = ", ".join(f"{count} {kind}" for kind, count in others.most_common(4))
        note(f"{top}: left out {others.total()} files of other kinds: {most}{', …' * (len(others) > 4)}")
