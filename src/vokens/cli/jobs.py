"""Pairs of files: inputs (files, folders, globs, stdin) are paired with outputs before any work.

Folders and globs keep their structure below the output folder. Two inputs for one output, an existing output and an
unknown suffix are errors here, before a long run.
"""

import glob
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vokens.audio_files import fixed_part, has_suffix, match_files, walk
from vokens.errors import ConfigError

STREAM = "-"


@dataclass(frozen=True)
class Source:
    """One input: a path, or None for standard input, and its path below its folder or glob."""

    path: Path | None
    place: Path
    name: str = "standard input"  # in errors, where there is no path

    def __str__(self) -> str:
        return self.name if self.path is None else str(self.path)


@dataclass(frozen=True)
class Job:
    """One input and its target: a file, or standard output (None), in the format of the suffix."""

    source: Source
    target: Path | None
    suffix: str


def plan(arguments: Any, suffixes: Sequence[str], outputs: Sequence[str]) -> list[Job]:
    """Pair all inputs with their outputs. Raises ConfigError before anything is written.

    arguments: inputs, output, format and overwrite of a verb. suffixes: of inputs inside folders. outputs: accepted
    suffixes of output files; the first one is that of outputs without a name or a format.
    """
    sources = find_sources(arguments.inputs, suffixes)
    suffix = arguments.format and f".{arguments.format}"
    target = target_rule(arguments.output, sources, outputs, suffix)
    jobs = [make_job(source, target(source), suffix or outputs[0]) for source in sources]
    refuse_collisions(((job.source, job.target) for job in jobs), "give them different output folders")
    refuse_overwrite([job.target for job in jobs], arguments.overwrite)
    return jobs


def find_sources(inputs: Sequence[str], suffixes: Sequence[str]) -> list[Source]:
    """All inputs in the order given, folders and globs sorted. Raises ConfigError where one is empty."""
    if not inputs:
        raise ConfigError("no input: give files, folders, globs, or - for standard input")
    if list(inputs).count(STREAM) > 1:
        raise ConfigError("standard input (-) was given twice: it can be read once")
    sources = [source for text in inputs for source in _expand(text, suffixes)]
    return list(dict.fromkeys(sources))


def _expand(text: str, suffixes: Sequence[str]) -> list[Source]:
    if text == STREAM:
        return [Source(None, Path("stdin"))]
    path = Path(text)
    if path.is_dir():
        return _folder(path, suffixes)
    if path.exists() or not glob.has_magic(text):
        return [Source(path, Path(path.name))]
    files = [Source(file, file.relative_to(fixed_part(path))) for file in map(Path, match_files(text))]
    if not files:
        raise ConfigError(f"no file matches {text!r}: check the pattern (** crosses folders)")
    if "**" not in text and (folders := sum(map(os.path.isdir, glob.iglob(text)))):
        _note(f"{text}: left out {folders} folders (** goes into folders)")
    return files


def _folder(folder: Path, suffixes: Sequence[str]) -> list[Source]:
    files = sorted(Path(below, name) for below, names in walk(folder) for name in names)
    kept = [file for file in files if has_suffix(file.name, suffixes)]
    if not kept:
        raise ConfigError(f"no file below {folder} ends in {', '.join(suffixes)}: name the files themselves")
    if len(kept) < len(files):
        _note(f"{folder}: left out {len(files) - len(kept)} files of other kinds")
    return [Source(file, file.relative_to(folder)) for file in kept]


def _note(text: str) -> None:
    print(f"vokens: {text}", file=sys.stderr)


def make_job(source: Source, target: Path | None, suffix: str) -> Job:
    """A job in the format of its target's name, or of `suffix` on standard output."""
    if target is None and suffix != ".json" and sys.stdout.isatty():
        raise ConfigError("binary data cannot go to a terminal: redirect it, or give a file with -o")
    return Job(source, target, suffix if target is None else target.suffix.lower())


def target_rule(
    output: str | None, sources: list[Source], outputs: Sequence[str], suffix: str | None
) -> Callable[[Source], Path | None]:
    """The function from a source to its target. suffix: as chosen; None is the first of `outputs`."""
    chosen = suffix or outputs[0]
    paths = (source.path or source.place if output is None else source.place for source in sources)
    uses = Counter(path.with_suffix("") for path in paths)

    def named(path: Path) -> Path:
        """The output's name: a.vok, or a.wav.vok where there is also an a.flac, as in `vokens extract`."""
        unique = uses[path.with_suffix("")] == 1
        return path.with_suffix(chosen) if unique else path.with_name(path.name + chosen)

    if output is None:
        return lambda source: None if source.path is None else named(source.path)
    if output == STREAM:
        if len(sources) > 1:
            raise ConfigError(f"{len(sources)} inputs cannot share standard output: give a folder with -o")
        return lambda source: None
    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)) or not (path.suffix or path.exists()):
        return lambda source: path / named(source.place)
    path = output_file(output, outputs)
    if suffix is not None and path.suffix.lower() != suffix:
        raise ConfigError(f"-o {output} and --format {suffix[1:]} disagree: leave one of them out")
    if len(sources) > 1:
        raise ConfigError(f"{len(sources)} inputs cannot become one file, {output}: give a folder with -o")
    return lambda source: path


def output_file(name: str, outputs: Sequence[str]) -> Path:
    """The path of an output file. Raises ConfigError unless its name ends in one of the accepted suffixes."""
    path = Path(name)
    if path.suffix.lower() not in outputs:
        has = f"ends in {path.suffix}" if path.suffix else "has no suffix"
        raise ConfigError(f"{path} {has}: use {', '.join(outputs)}, or end the name of a folder with /")
    return path


def refuse_collisions(pairs: Iterable[tuple[object, Path | None]], remedy: str) -> None:
    """Raise ConfigError for two different sources of one target."""
    seen: dict[Path | None, object] = {}
    for source, target in pairs:
        other = seen.setdefault(target, source)
        if target is not None and other != source:
            raise ConfigError(f"{other} and {source} would both become {target}: {remedy}")


def refuse_overwrite(targets: Iterable[Path | None], overwrite: bool) -> None:
    """Raise ConfigError for existing targets, unless they may be overwritten."""
    existing = [target for target in targets if target is not None and target.exists()]
    if existing and not overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ConfigError(f"{existing[0]} exists{more}: --overwrite replaces, -o writes elsewhere")


def opened(source: Source) -> Path | BinaryIO:
    """The path of a source, or standard input in binary mode."""
    return sys.stdin.buffer if source.path is None else source.path


def write(job: Job, writer: Callable[[Path], None]) -> None:
    """Call `writer` with the target's path, after making its folder; for standard output, with a temporary file."""
    if job.target is not None:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        writer(job.target)
        return
    with tempfile.TemporaryDirectory(prefix="vokens-") as folder:
        path = Path(folder) / f"stdout{job.suffix}"
        writer(path)
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
