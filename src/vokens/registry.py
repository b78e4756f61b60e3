"""Names and the files behind them: the codecs that `vokens.load` knows, their sources and licences.

A new codec is one `Entry`. Files are kept in one folder per name, under VOKENS_CACHE or ~/.cache/vokens.
"""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vokens.download import download, hub_endpoint, hub_url
from vokens.errors import ConfigError, DownloadError

_MODELS_FOLDER = Path(__file__).parent / "models"


@dataclass(frozen=True)
class File:
    """One file of a codec.

    path: its name in the codec's folder. repo, filename: its place on the Hugging Face hub; None when it is
    part of this package. sha256: None when its publisher states none. size: bytes, for information.
    """

    path: str
    repo: str | None = None
    filename: str | None = None
    sha256: str | None = None
    size: int | None = None

    @property
    def url(self) -> str | None:
        """Its address, on the mirror that HF_ENDPOINT names if there is one."""
        return None if self.repo is None else hub_url(self.repo, self.filename or self.path)


@dataclass(frozen=True)
class Entry:
    """A codec that can be loaded by name."""

    name: str
    system: str
    description: str
    sample_rate: int
    frame_rate: float
    num_codebooks: int
    codebook_size: int
    licence: str
    source: str
    files: tuple[File, ...]

    @property
    def size_bytes(self) -> int:
        """What it takes on the disk, about."""
        return sum(file.size or 0 for file in self.files)

    @property
    def embedded(self) -> bool:
        """Whether it comes with this package."""
        return all(file.repo is None for file in self.files)


def _embedded_files(name: str, *paths: str) -> tuple[File, ...]:
    folder = _MODELS_FOLDER / name / "weights"
    sizes = [(folder / path).stat().st_size if (folder / path).exists() else None for path in paths]
    return tuple(File(path, size=size) for path, size in zip(paths, sizes, strict=True))


_ENTRIES = (
    Entry(
        name="mini",
        system="mini",
        description="small codec that comes with the package: works offline, fast on a CPU",
        sample_rate=16000,
        frame_rate=50.0,
        num_codebooks=8,
        codebook_size=1024,
        licence="Apache-2.0",
        source="vokens",
        files=_embedded_files("mini", "config.json", "model.safetensors"),
    ),
    Entry(
        name="speechtokenizer_hubert_avg",
        system="speechtokenizer",
        description="first codebook semantic (HuBERT), trained on LibriSpeech",
        sample_rate=16000,
        frame_rate=50.0,
        num_codebooks=8,
        codebook_size=1024,
        licence="Apache-2.0",
        source="fnlp/SpeechTokenizer",
        files=(
            File(
                "config.json",
                "fnlp/SpeechTokenizer",
                "speechtokenizer_hubert_avg/config.json",
                sha256="ea343ad69ca7e70c8febf8fc4cda683b1c4b1c36709e5e577936ffb05d62e6eb",
            ),
            File(
                "SpeechTokenizer.pt",
                "fnlp/SpeechTokenizer",
                "speechtokenizer_hubert_avg/SpeechTokenizer.pt",
                sha256="d04593b6c9a4b475f91ca481141a6ef5b23e6ac112f347dd2b2717f193c1c728",
                size=481_844_008,  # its 120 461 002 numbers in float32
            ),
        ),
    ),
    Entry(
        name="speechtokenizer_snake",
        system="speechtokenizer",
        description="the same with Snake activations, trained on LibriSpeech and Common Voice (AnyGPT)",
        sample_rate=16000,
        frame_rate=50.0,
        num_codebooks=8,
        codebook_size=1024,
        licence="Apache-2.0",
        source="fnlp/AnyGPT-speech-modules",
        files=(
            File("config.json", "fnlp/AnyGPT-speech-modules", "speechtokenizer/config.json"),
            File("ckpt.dev", "fnlp/AnyGPT-speech-modules", "speechtokenizer/ckpt.dev", size=481_875_496),
        ),
    ),
)

MODELS: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def entries() -> list[Entry]:
    """All codecs that can be loaded by name."""
    return list(MODELS.values())


def get(name: str) -> Entry:
    """The codec of this name. ConfigError with the nearest names for any other."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4)
        meant = f"did you mean {' or '.join(near)}?" if near else f"the names are {', '.join(MODELS)}"
        raise ConfigError(
            f"no codec is called {name!r}, and no such file or folder exists: {meant} "
            "(also accepted: a folder, a checkpoint file, a hub id such as org/name)"
        )
    return MODELS[name]


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where downloads are kept: `cache_dir`, else VOKENS_CACHE, else ~/.cache/vokens."""
    return Path(cache_dir or os.environ.get("VOKENS_CACHE") or "~/.cache/vokens").expanduser()


def folder(entry: Entry, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the files of a codec are, or will be."""
    return _MODELS_FOLDER / entry.name / "weights" if entry.embedded else cache_folder(cache_dir) / entry.name


def is_cached(entry: Entry, cache_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether it opens without a download. (Files get their names only when whole and verified.)"""
    return all((folder(entry, cache_dir) / file.path).exists() for file in entry.files)


def fetch(
    entry: Entry,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Path:
    """The folder with all files of a codec, downloaded where missing. Raises DownloadError."""
    place = folder(entry, cache_dir)
    for file in entry.files:
        if file.url is not None:
            download(
                file.url,
                place / file.path,
                sha256=file.sha256,
                progress=progress,
                local_files_only=local_files_only,
            )
        elif not (place / file.path).exists():
            raise DownloadError(
                f"{place / file.path}, a part of vokens, is missing: install vokens again "
                "(pip install --force-reinstall vokens)"
            )
    return place


def hub_snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    progress: bool = True,
    files: Iterable[str] = ("config.json", "model.safetensors"),
) -> Path:
    """The folder with `files` of a Hugging Face model repository, downloaded where missing.

    A branch, such as main, is kept as it was when first fetched; delete the folder to follow it.
    Raises DownloadError, also for repositories that do not hold these files.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise DownloadError(f"{repo_id!r} is not a hub id: give org/name")
    place = (
        cache_folder(cache_dir) / "hub" / repo_id.replace("/", "--") / (revision or "main").replace("/", "--")
    )
    files = tuple(files)
    for name in files:
        try:
            url = hub_url(repo_id, name, revision)
            download(url, place / name, progress=progress, local_files_only=local_files_only)
        except DownloadError as error:
            raise DownloadError(
                f"{error}. (As a codec, {hub_endpoint()}/{repo_id} must hold {' and '.join(files)}, "
                "written by save_pretrained)"
            ) from error
    return place
