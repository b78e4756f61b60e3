"""All kinds of corpus listings as a Source: `open_source` decides by content, then by suffix."""

import glob
import gzip
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vokens.atomic import atomic_write
from vokens.audio_files import has_suffix, walk
from vokens.audio_suffixes import AUDIO_SUFFIXES
from vokens.data.items import Source
from vokens.data.sources import folders, kaldi, tables
from vokens.data.sources.addresses import (
    common_folder,
    expand,
    filesystem,
    frozen,
    is_pattern,
    is_url,
    open_unpacked,
)
from vokens.data.sources.lines import ManifestSource, PathSource, ScpSource
from vokens.data.sources.options import SourceOptions
from vokens.data.sources.tables import TableSource
from vokens.data.sources.tars import Shar, WebDataset
from vokens.errors import ConfigError
from vokens.text.files import BOM, iter_lines, read_json

__all__ = ["SourceOptions", "open_source"]

_ACCEPTED = (
    "a folder of audio or a glob, wav.scp or a Kaldi folder, a list of paths (.txt, .lst), a jsonl manifest "
    "(ours, NeMo, lhotse; .gz too), a Shar folder, WebDataset tars, parquet, a datasets folder, hf://datasets/<id>"
)
_LISTS = {".txt", ".lst", ".list", ".scp"}
_MANIFESTS = {".jsonl", ".json", ".gz"}
_CONTAINERS = {".tar", ".tgz", ".parquet", ".arrow"}
_SHARD = re.compile(r"cuts\.\d+\.jsonl(\.gz)?")


def open_source(spec: str, *, listing: Path, options: SourceOptions | None = None) -> Source:
    """The source that `spec` names.

    Args:
        spec: a local path, a URL that fsspec opens, or a pattern (`*`, `**`, `{000..010}`) of either.
        listing: a folder of the run, where lists that could change (folders, globs) or are not seekable (gz, URLs,
            Kaldi's side files) are saved once, and reused by later calls with the same spec.
        options: selection of utterances, and files of labels.
    Raises ConfigError for anything else, MissingExtra where pyarrow is needed, DownloadError for the hub.
    An audio file that is missing is no error here.
    """
    options, spec = options or SourceOptions(), os.fspath(spec)
    if spec.startswith("hf://datasets/") and not spec.endswith(".parquet"):
        return _tables(_frozen_paths(listing, lambda: tables.hub_files(spec)), options)
    if is_pattern(spec):
        return _pattern(spec, listing, options)
    if _is_folder(spec):
        return _folder(spec if is_url(spec) else os.path.abspath(spec), listing, options)
    return _files([spec if is_url(spec) else os.path.abspath(spec)], listing, options)


def _pattern(spec: str, listing: Path, options: SourceOptions) -> Source:
    """Files of a pattern: by its suffix, lists or containers; without one, audio."""
    suffix = os.path.splitext(spec)[1].lower()
    if suffix not in _LISTS | _MANIFESTS | _CONTAINERS:
        top = folders.fixed_part(spec)
        return _audio(listing, lambda: folders.file_lines(expand(spec), top), options)
    files = _frozen_paths(listing, lambda: expand(spec))
    if not files:
        raise ConfigError(f"{spec} matches no file")
    return _files(files, listing, options)


def _folder(folder: str, listing: Path, options: SourceOptions) -> Source:
    """The source of a folder: by the kind of its files, else all audio below it."""
    names = set() if is_url(folder) else set(os.listdir(folder))
    if "wav.scp" in names:
        there = kaldi.side_files(folder).items()
        missing: dict[str, Any] = {name: path for name, path in there if getattr(options, name) is None}
        options = replace(options, **missing)
        return _files([f"{folder}/wav.scp"], listing, options)
    if names & {"dataset_dict.json", "state.json"}:
        return TableSource(tables.saved_files(folder, options.split), replace(options, split=None))
    if "manifest.jsonl" in names:
        return _files([f"{folder}/manifest.jsonl"], listing, options)
    if cuts := sorted(name for name in names if _SHARD.fullmatch(name)):
        return Shar([_shard(folder, name) for name in cuts], options)
    for below in () if is_url(folder) else ("*.tar", "*.parquet", "*/*.parquet"):
        pattern = f"{glob.escape(folder)}/{below}"
        if next(glob.iglob(pattern), None) is not None:
            _refuse_both(folder, pattern)
            return _pattern(pattern, listing, options)
    return _audio(listing, lambda: folders.folder_lines(folder), options)


def _refuse_both(folder: str, pattern: str) -> None:
    """Raise ConfigError for a folder with both containers and audio files, which is ambiguous."""
    for below, names in walk(folder):
        if sound := next(filter(has_suffix, names), None):
            suffix = os.path.splitext(sound)[1]
            raise ConfigError(
                f"{folder} holds {os.path.splitext(pattern)[1]} files and audio files ({below}/{sound}): choose one, "
                f"'{pattern}' or '{folder}/**/*{suffix}'"
            )


def _files(files: list[str], listing: Path, options: SourceOptions) -> Source:
    """The source of files, all of the kind of the first one."""
    kind = _kind(files[0])
    if kind == "table":
        return _tables(files, options)
    if kind == "tar":
        return WebDataset(files, options)
    if kind == "audio":
        return _audio(listing, lambda: folders.file_lines(files, common_folder(files)), options)
    plain = {_sought(file, number, listing): file for number, file in enumerate(files)}
    if kind == "manifest":
        return ManifestSource(plain, options)
    if kind == "list":
        return PathSource(plain, options, _shared_folder(plain, listing))
    labels = {"text": options.text, "speaker": options.speakers, "instruct": options.instruct}
    if not any((options.segments, *labels.values())):
        return ScpSource(plain, options)
    if len(plain) > 1 or is_url(files[0]) or files[0].endswith(".gz"):
        raise ConfigError("segments and text belong to one wav.scp on this machine, unpacked")
    lines = frozen(listing, "kaldi.jsonl", lambda: kaldi.joined(files[0], options.segments, **labels))
    return ManifestSource({lines: files[0]}, options)


def _audio(listing: Path, lines: Callable[[], Iterable[str]], options: SourceOptions) -> Source:
    """Audio files as a manifest of the run."""
    file = frozen(listing, "audio.jsonl", lines)
    return ManifestSource({file: str(file)}, options)


def _kind(file: str) -> str:
    """table, tar, audio, manifest, list or scp."""
    try:
        with open_unpacked(file) as opened:
            head = opened.read(512)
    except (ConfigError, OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file} cannot be opened ({error}); a source is {_ACCEPTED}") from error
    suffix = os.path.splitext(file.removesuffix(".gz"))[1].lower()
    if head[:4] == b"PAR1" or head[:6] == b"ARROW1" or suffix == ".arrow":
        return "table"
    if head[257:262] == b"ustar" or suffix in {".tar", ".tgz"}:
        return "tar"
    if suffix == ".scp":
        return "scp"
    if suffix in _MANIFESTS or head.removeprefix(BOM).lstrip().startswith(b"{"):
        return "manifest"
    if suffix in _LISTS:
        return "list"
    if suffix in AUDIO_SUFFIXES:
        return "audio"
    raise ConfigError(f"{file} is of an unknown kind by content and suffix; a source is {_ACCEPTED}")


def _shard(folder: str, cuts: str) -> tuple[str, str]:
    """A Shar shard's file of cuts and its tar of recordings."""
    tar = f"{folder}/recording.{cuts.split('.')[1]}.tar"
    if not os.path.exists(tar):
        raise ConfigError(f"{folder} has {cuts} and no {os.path.basename(tar)}: audio is read from that")
    return f"{folder}/{cuts}", tar


def _sought(file: str, number: int, listing: Path) -> Path:
    """A seekable file: itself, or its copy in `listing` where it is compressed or remote."""
    with open_unpacked(file) as content:
        if not isinstance(content, gzip.GzipFile) and not is_url(file):
            return Path(file)
        copy = listing / f"{number:05d}-{os.path.basename(file.removesuffix('.gz'))}"
        if not copy.exists():
            listing.mkdir(parents=True, exist_ok=True)
            try:
                with atomic_write(copy) as partial, partial.open("wb") as out:
                    shutil.copyfileobj(content, out)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ConfigError(f"{file} is not a complete gz file: {error}") from error
        return copy


def _shared_folder(lists: Iterable[Path], listing: Path) -> str:
    """The common folder of all paths of the lists, which is left out of their keys."""

    def paths() -> Iterable[str]:
        for file in lists:
            yield from (line.strip() for line in iter_lines(file) if line and not line.isspace())

    return read_json(frozen(listing, "shared-folder.json", lambda: [json.dumps(common_folder(paths()))]))


def _frozen_paths(listing: Path, find: Callable[[], list[str]]) -> list[str]:
    lines = frozen(listing, "files.jsonl", lambda: map(json.dumps, find()))
    return [json.loads(line) for line in iter_lines(lines)]


def _tables(files: list[str], options: SourceOptions) -> Source:
    chosen, named = tables.of_split(files, options.split)
    return TableSource(chosen, replace(options, split=None) if named else options)


def _is_folder(spec: str) -> bool:
    if not is_url(spec) or spec.startswith(("http://", "https://")):
        return os.path.isdir(spec)
    system, path = filesystem(spec)
    return system.isdir(path)
