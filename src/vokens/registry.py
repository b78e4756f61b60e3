"""Registry of the models that `vokens.load` knows by name: files, sources and licences (registry.toml).

The files of a name are in a folder under VOKENS_CACHE or ~/.cache/vokens; those of the Hugging Face hub are links into
huggingface_hub's shared cache.
"""

import difflib
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import Any

from vokens import needs
from vokens.atomic import atomic_write
from vokens.download import cache_errors, download, hub_endpoint, hub_file, hub_url
from vokens.errors import ConfigError, DownloadError
from vokens.evaluator_files import models_folder
from vokens.install import install_line

PathLike = str | os.PathLike[str]
WEIGHTS = Path(__file__).parent / "weights"  # embedded models, a folder for each name


@dataclass(frozen=True)
class File:
    """One file of a codec. Those of this package have neither a repository nor an address."""

    path: str  # its name in the codec's folder
    repo: str | None = None  # on the Hugging Face hub, as filename and revision are
    filename: str | None = None
    sha256: str | None = None  # None where its publisher states none
    size: int | None = None  # bytes of the released file, None where unknown; never an estimate
    address: str | None = None  # URL of other sources
    revision: str | None = None

    @property
    def url(self) -> str | None:
        """Its URL; hub files use the mirror of HF_ENDPOINT, if set."""
        if self.address is not None:
            return self.address
        return None if self.repo is None else hub_url(self.repo, self.filename or self.path, self.revision)


@dataclass(frozen=True)
class Entry:
    """A model that can be loaded by name.

    settings: its config, where no file has one. shared: the folder of its files, where several names share it.
    bits_per_second: for codecs whose codebooks differ in size. former: fingerprints of its earlier editions in this
    package, the first one first.
    """

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
    settings: Mapping[str, Any] | None = None
    shared: str = ""
    bits_per_second: float | None = None
    former: Sequence[str] = ()

    @property
    def bitrate(self) -> float:
        """Bits per second of audio."""
        if self.bits_per_second is not None:
            return self.bits_per_second
        return self.frame_rate * self.num_codebooks * log2(self.codebook_size)

    @property
    def size_bytes(self) -> int | None:
        """Bytes on disk, without configs and vocabularies; None where a file's size is unknown."""
        sizes = [file.size for file in self.files if not file.path.endswith((".json", ".txt"))]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def size(self) -> str:
        """`size_bytes` as text."""
        return "size not known" if self.size_bytes is None else f"{self.size_bytes / 1e6:.0f} MB"

    @property
    def embedded(self) -> bool:
        """True if its files are part of this package."""
        return all(file.url is None for file in self.files)


# Models that a build may embed besides mini: name -> (system, description, config of its tokens, licence).
_TOKENS = "semantic tokens at 25 Hz, comes with the package; encodes only"
_SPEECH = "text to speech in any voice, comes with the package: vokens say"
EMBEDDABLE = {
    "s3_mini": ("s3tokenizer", _TOKENS, "s3_mini", "MIT"),
    "say": ("learnable", _SPEECH, "s3_mini", "Apache-2.0"),
}
VOICE = "say"  # the default text-to-speech model


def _embedded_files(name: str, paths: Iterable[str]) -> tuple[File, ...]:
    places = [WEIGHTS / name / path for path in paths]
    sizes = [place.stat().st_size if place.exists() else None for place in places]
    return tuple(File(path, size=size) for path, size in zip(paths, sizes, strict=True))


def embedded(name: str) -> Entry | None:
    """The entry of one of `EMBEDDABLE` in this copy of the package; None where it is missing.

    Frame rate and codebook size come from its config.
    """
    if not (WEIGHTS / name / "config.json").is_file():
        return None
    system, description, part, licence = EMBEDDABLE[name]
    try:
        config = json.loads((WEIGHTS / part / "config.json").read_text())["config"]
        size, stride = config["codebook_size"], config["first_stride"]
    except (OSError, ValueError, LookupError, TypeError):  # its entry would be wrong
        return None
    rate = 100 / (2 * stride * config.get("merge", 1))  # of 100 mel frames a second
    home = WEIGHTS / name
    paths = sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
    files = _embedded_files(name, [path for path in paths if path.endswith((".json", ".safetensors"))])
    sample_rate = 24000 if system == "learnable" else 16000
    return Entry(name, system, description, sample_rate, rate, 1, size, licence, "vokens", files)


def _read() -> tuple[dict[str, Entry], dict[str, str], dict[str, str], tuple[File, ...]]:
    """The content of registry.toml: entries by name, names by repository, language models by their S3Gen, and other
    files."""
    table = tomllib.loads((Path(__file__).parent / "registry.toml").read_text(encoding="utf-8"))
    entries = []
    for values in table["model"]:
        entry = Entry(**values | {"files": tuple(File(**file) for file in values["files"])})
        if entry.embedded:
            entry = replace(entry, files=_embedded_files(entry.name, [file.path for file in entry.files]))
        entries.append(entry)
    entries[1:1] = [entry for entry in map(embedded, EMBEDDABLE) if entry is not None]
    models = {entry.name: entry for entry in entries}
    others = tuple(File(**file) for file in table["other"])
    return models, table["published"], table["language_models"], others


MODELS, PUBLISHED, LANGUAGE_MODELS, OTHERS = _read()


def converter() -> str:
    """The default model of voice conversion: the embedded one, else chatterbox's."""
    return VOICE if VOICE in MODELS else speaker_of("")


def speaker_of(tokenizer: str) -> str:
    """The default model that speaks the tokens of a tokenizer: chatterbox's S3Gen for all but these two."""
    own = {"speech_tokenizer_v3_25hz": "cosyvoice3_s3gen", "s3_mini": VOICE}
    return own.get(tokenizer, "chatterbox_s3gen")


def offline() -> tuple[str, ...]:
    """Names of the embedded models, which server and page offer by default."""
    return tuple(name for name in ("mini", VOICE) if name in MODELS)


def entries() -> list[Entry]:
    """All codecs that can be loaded by name."""
    return list(MODELS.values())


def get(name: str) -> Entry:
    """The model of this name. Raises ConfigError with the nearest names or paths."""
    if name not in MODELS:
        raise ConfigError(_unknown(name))
    return MODELS[name]


def other_weights(name: str, fingerprint: str) -> str:
    """The weights of a model that have this fingerprint and not the present one, in words: "edition 1 of 'mini'"."""
    former = list(MODELS[name].former) if name in MODELS else []
    edition = f"edition {former.index(fingerprint) + 1}" if fingerprint in former else "other weights"
    return f"{edition} of {name!r}"


def published(repo_id: str, revision: str | None = None, variant: str | None = None) -> Entry | None:
    """The model of a repository of the original authors, with its files; None for other names.

    revision: of the repository; its files then have their own folder and are checked against the hub's hashes.
    variant: the stem of another file of the repository: an S3Gen of Chatterbox, such as "s3gen_v3", or "llm", the
    language model of CosyVoice.
    """
    if repo_id not in PUBLISHED:
        return None
    name, modelscope = PUBLISHED[repo_id], repo_id.startswith("iic/")
    if variant == "llm" and name in LANGUAGE_MODELS:
        name, variant = LANGUAGE_MODELS[name], None
    entry = MODELS[name]
    if modelscope and revision:
        raise ConfigError(f"revision={revision!r} was given for {repo_id} of ModelScope: leave it out")
    if variant:
        return _variant(entry, repo_id, revision, variant)
    if modelscope:
        return entry
    files = tuple(
        replace(file, repo=repo_id, address=None, revision=revision, sha256=None if revision else file.sha256)
        if file.repo in (None, entry.source)
        else file  # a file of another repository
        for file in entry.files
    )
    return replace(entry, files=files, shared=_hub_folder(repo_id, revision) if revision else entry.shared)


def _variant(entry: Entry, repo_id: str, revision: str | None, variant: str) -> Entry:
    path = f"{variant}.safetensors"
    known = [e for e in MODELS.values() if e.source == repo_id and e.files[0].path == path and not revision]
    if known:
        return known[0]
    if entry.system != "s3gen" or len(entry.files) > 1 or not re.fullmatch(r"s3gen\w*", variant):
        raise ConfigError(
            f"variant={variant!r} was given for {repo_id}: of Chatterbox's repositories the name of an S3Gen file "
            "without its suffix is accepted, such as 's3gen' or 's3gen_meanflow', of CosyVoice 2's and 3's 'llm'; "
            "leave it out for others"
        )
    files = (File(path, repo_id, revision=revision),)
    return replace(entry, name=variant, files=files, shared=_hub_folder(repo_id, revision))


def _unknown(name: str) -> str:
    if name in EMBEDDABLE:
        return (
            f"{name} is not in this copy of vokens ({WEIGHTS / name} is missing or incomplete): install a release that "
            "has it, embed a trained one with recipes/say/embed_voice.py, or give a model of your own"
        )
    path = Path(name).expanduser()
    if "/" in name or re.fullmatch(r"\.[A-Za-z]\w*", path.suffix):
        there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, n=3)
        if not path.parent.is_dir():
            return f"there is no file or folder {name!r}: there is no folder {str(path.parent)!r}: check the path"
        meant = f"did you mean {' or '.join(near)}?" if near else "check the path"
        return f"there is no file or folder {name!r}: {meant}"
    near = difflib.get_close_matches(name, MODELS, n=3)
    meant = f"did you mean {' or '.join(near)}?" if near else "vokens models lists the names"
    return (
        f"no model is called {name!r}, and no such file or folder exists: {meant} "
        "(also accepted: a folder, a checkpoint file, a hub id such as org/name)"
    )


def source_of(model: str) -> str | None:
    """The `vokens.load` source of the model named in tokens; None for a user's own model."""
    return model if model in MODELS or "/" in model else None


def cache_folder(cache_dir: PathLike | None = None) -> Path:
    """The download folder: `cache_dir`, else VOKENS_CACHE, else ~/.cache/vokens."""
    return Path(cache_dir or os.environ.get("VOKENS_CACHE") or "~/.cache/vokens").expanduser()


def folder(entry: Entry, cache_dir: PathLike | None = None) -> Path:
    """The folder of a model's files, also before they are downloaded."""
    if entry.embedded:
        return WEIGHTS / entry.name
    place = cache_folder(cache_dir) / (entry.shared or entry.name)
    # The benchmark keeps evaluators, and models that they share, in a folder of its own.
    evaluators = models_folder() / entry.shared
    if entry.shared and cache_dir is None and all((evaluators / file.path).exists() for file in entry.files):
        return evaluators
    return place


def is_cached(entry: Entry, cache_dir: PathLike | None = None) -> bool:
    """True if it opens without a download. (Files get their final names only when complete and verified.)"""
    return all((folder(entry, cache_dir) / file.path).exists() for file in entry.files)


def lacking(entry: Entry) -> str:
    """The reason why a model does not open on this machine, with the remedy; "" where it does."""
    if sentence := needs.lacking(entry.system):
        return sentence
    missing = f"its files are not on this machine: vokens.load({entry.name!r}) fetches them"
    return "" if is_cached(entry) else missing


def fetch(entry: Entry, cache_dir: PathLike | None = None, local_files_only: bool = False) -> Path:
    """The folder with all files of a model, downloaded where missing. Raises DownloadError."""
    place = folder(entry, cache_dir)
    for file in entry.files:
        if file.url is not None:
            _obtain(file, place / file.path, local_files_only, cache_dir)
        elif not (place / file.path).exists():
            raise DownloadError(
                f"{place / file.path}, a part of vokens, is missing: install vokens again "
                f"({install_line(options='--force-reinstall --no-deps')})"
            )
    return place


def _obtain(file: File, target: Path, local_files_only: bool, cache_dir: PathLike | None) -> None:
    """Download a file to its place; hub files become links into huggingface_hub's shared cache."""
    options: dict[str, Any] = {"sha256": file.sha256, "local_files_only": local_files_only}
    if file.repo is None or file.address is not None:
        download(str(file.url), target, **options)
    elif not target.exists():
        name = file.filename or file.path
        kept = hub_file(file.repo, name, revision=file.revision, cache_dir=cache_dir, **options)
        with cache_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # a broken link
            try:
                target.symlink_to(kept)
            except OSError:  # no symlinks on this system
                with atomic_write(target) as partial:
                    shutil.copyfile(kept, partial)


def find(
    source: str | Path,
    cache_dir: PathLike | None = None,
    local_files_only: bool = False,
    revision: str | None = None,
    variant: str | None = None,
) -> tuple[Path, str]:
    """The files of a `vokens.load` source, downloaded where missing, and the model id where the source has one."""
    path = Path(source).expanduser()
    if variant is not None and (path.is_dir() or str(source) not in PUBLISHED):
        there = {file.stem: file for kind in ("pt", "safetensors") for file in sorted(path.glob(f"*.{kind}"))}
        if variant not in there:
            raise ConfigError(
                f"variant={variant!r} of {source}: a folder with {variant}.safetensors or {variant}.pt, or the id of a "
                f"published Chatterbox or CosyVoice is accepted; variants here: {', '.join(sorted(there)) or 'none'}"
            )
        return there[variant], ""
    if revision is not None and (path.exists() or (str(source) in MODELS and "/" not in str(source))):
        raise ConfigError(
            f"revision={revision!r} was given for {source}: of hub ids, org/name, there are revisions, of names and "
            "paths there are none; leave it out"
        )
    if str(source) in MODELS and revision is None:
        entry = get(str(source))
        return fetch(entry, cache_dir=cache_dir, local_files_only=local_files_only), entry.name
    if path.exists():
        return path, ""
    if entry := published(str(source), revision, variant):
        place = fetch(entry, cache_dir=cache_dir, local_files_only=local_files_only)
        return place / entry.files[0].path if variant else place, entry.name
    if isinstance(source, str) and re.fullmatch(r"[^./~][^/]*/[^/]+", source) and not path.suffix:
        options: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only}
        return hub_snapshot(source, revision=revision, **options), source
    raise ConfigError(_unknown(str(source)))


def _hub_folder(repo_id: str, revision: str | None) -> str:
    return f"hub/{repo_id.replace('/', '--')}/{(revision or 'main').replace('/', '--')}"


def hub_snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    cache_dir: PathLike | None = None,
    local_files_only: bool = False,
    files: Iterable[str] = ("config.json", "model.safetensors"),
) -> Path:
    """The folder with `files` of a Hugging Face model repository, downloaded where missing.

    A branch, such as main, stays as first downloaded; delete the folder to update it.
    Raises DownloadError, also for repositories that do not hold these files.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise DownloadError(f"{repo_id!r} is not a hub id: give org/name")
    place = cache_folder(cache_dir) / _hub_folder(repo_id, revision)
    files = tuple(files)
    for name in files:
        try:
            file = File(name, repo_id, revision=revision)
            _obtain(file, place / name, local_files_only, cache_dir)
        except DownloadError as error:
            raise DownloadError(
                f"{error}. (As a codec, {hub_endpoint()}/{repo_id} must hold {' and '.join(files)}, "
                "written by save_pretrained)"
            ) from None
    return place
