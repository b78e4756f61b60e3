"""A corpus run as a folder: its identity (run.json), its shards (plan.jsonl), and the finished ones (receipts/).

A receipt is the commit point of its shard: all its files were flushed and renamed before. The folder's content does
not depend on time, machine or number of workers.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from vokens._version import __version__
from vokens.corpus.plan import plan_shards
from vokens.corpus.speaker import SpeakerEncoder
from vokens.data.items import CodecInfo, Span, Utterance
from vokens.data.lease import Leases
from vokens.data.outputs import Output, get_output
from vokens.data.sources import SourceOptions, open_source
from vokens.data.sources.addresses import is_url
from vokens.errors import ConfigError
from vokens.models.codec import Codec
from vokens.text.files import read_json

SHARD_SIZE = 1000
BATCH_SECONDS = 60.0
Summary = dict[str, Any]
_OUT = "{out}/"  # placeholder of the run's folder, which may move, in addresses of its listing
_ANEW = "the plan of a run cannot be repaired; give a new --out"
_POLL = 0.2  # seconds between checks of a plan that another process is making


@dataclass(frozen=True)
class Settings:
    """Identity of a run: reopening its folder with another value of any field but `batch_seconds` is refused."""

    source: str  # as on the command line
    out: Path
    options: SourceOptions = field(default_factory=SourceOptions)
    format: str = "jsonl"
    shard_size: int = SHARD_SIZE
    audio_root: Path | None = None  # of sidecar files
    num_codebooks: int | None = None
    dtype: str = "float32"  # of the network
    speaker: Path | None = None  # weights of CAM++, for speaker embeddings
    sinc: bool = False  # resample like torchaudio instead of soxr
    batch_seconds: float = BATCH_SECONDS  # bounds memory; in half precision another one changes a few tokens

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ConfigError(f"--shard-size {self.shard_size}: give utterances per shard, 1 or more")
        if not self.batch_seconds > 0:
            raise ConfigError(f"--batch-seconds {self.batch_seconds}: give seconds of audio, above 0")
        get_output(self.format, self.audio_root)  # raises for unknown formats


@dataclass(frozen=True)
class Receipt:
    """Record of a finished shard."""

    shard: int
    utterances: int  # encoded
    failures: int  # in quarantine
    samples: int  # of the audio at the codec's rate
    frames: int  # of the codes
    files: list[dict[str, Any]]  # path (relative to the run's folder if inside), bytes and sha256 of each
    health: dict[str, Any]  # `vokens.corpus.health.Tally.facts`

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error}): remove it, its shard is made again") from error


class Plan:
    """The shards of a run, read from plan.jsonl one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, counts, position = [], [], 0
        with open(path, "rb") as file:
            for line in file:
                starts.append(position)
                try:
                    span = Span(**json.loads(line))
                    if not (0 <= span.offset < 2**63 and 0 <= span.count < 2**31):
                        raise ValueError(f"{span} is no part of a source")
                    counts.append(span.count)
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(f"{path}, line {len(starts)}, is damaged ({error}): {_ANEW}") from error
                position += len(line)
        if not starts:
            raise ConfigError(f"{path} is empty: {_ANEW}")
        self._starts = np.array(starts, dtype=np.int64)
        self.counts = np.array(counts, dtype=np.int64)  # utterances of each shard

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, shard: int) -> Span:
        with open(self.path, "rb") as file:
            file.seek(int(self._starts[shard]))
            span = Span(**json.loads(file.readline()))
        if span.where.startswith(_OUT):
            return replace(span, where=f"{self.path.parent}/{span.where.removeprefix(_OUT)}")
        return span


class Run:
    """An open run. Made by `open_run`."""

    def __init__(
        self, settings: Settings, facts: CodecInfo, leases: Leases, speaker: SpeakerEncoder | None = None
    ) -> None:
        self.folder = settings.out
        self.source_address = _address(settings.source)
        self.speaker = speaker
        self.settings = settings
        self.facts = facts
        self.leases = leases
        self.plan = Plan(self.folder / "plan.jsonl")
        self.source = open_source(settings.source, listing=self.folder / "listing", options=settings.options)
        self.output: Output = get_output(settings.format, settings.audio_root)

    def __len__(self) -> int:
        """Number of shards."""
        return len(self.plan)

    def utterances(self, shard: int) -> Iterator[Utterance]:
        for utterance in self.source.read(self.plan[shard]):
            yield replace(utterance, sinc=True) if self.settings.sinc else utterance

    def done(self, shard: int) -> bool:
        return receipt_path(self.folder, shard).exists()

    def receipt(self, shard: int) -> Receipt:
        return Receipt.read(receipt_path(self.folder, shard))

    def publish(self, files: Iterable[tuple[Path, Path]]) -> None:
        """Flush files and rename them to their final names (relative to the run's folder)."""
        publish([(draft, self.folder / final) for draft, final in files])

    def take_back_damaged(self) -> None:
        """Remove receipts that are unreadable or whose files are missing or of another size.

        Only sizes are checked; `vokens inspect` compares checksums.
        """
        self._take_back([shard for shard in finished(self.folder) if not self._whole(shard)])

    def _whole(self, shard: int) -> bool:
        try:
            files = self.receipt(shard).files
            return all(os.stat(self.folder / file["path"]).st_size == file["bytes"] for file in files)
        except (OSError, ConfigError):
            return False

    def retry_failed(self) -> None:
        """Remove the receipts of shards with failures, so that they are encoded again."""
        self._take_back([int(path.stem) for path in (self.folder / "failures").glob("*.jsonl")])

    def _take_back(self, shards: list[int]) -> None:
        for shard in shards:
            receipt_path(self.folder, shard).unlink(missing_ok=True)
            (self.folder / "summary.json").unlink(missing_ok=True)

    def summarise(self) -> Summary:
        """Write summary.json, once every shard is done, and return it."""
        totals = dict.fromkeys(("utterances", "failures", "samples", "frames"), 0)
        for shard in range(len(self)):
            receipt = self.receipt(shard)
            for name in totals:
                totals[name] += int(getattr(receipt, name))
        hours = totals["samples"] / self.facts.sample_rate / 3600
        tokens = totals["frames"] * len(self.facts.codebook_sizes)
        summary = {"shards": len(self), **totals, "tokens": tokens, "hours": round(hours, 6)}
        with self.leases.scratch("summary") as scratch:
            (scratch / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
            self.publish([(scratch / "summary.json", Path("summary.json"))])
        return summary


def open_run(settings: Settings, codec: Codec, leases: Leases) -> Run:
    """Begin a run, or resume the one in the folder.

    leases: of `settings.out / "leases"`, entered. The first process plans, the others wait. Raises ConfigError for a
    folder that holds a run with another source, codec or format, or something else.
    """
    speaker = SpeakerEncoder(settings.speaker, codec.device) if settings.speaker else None
    identity = _identity(settings, codec)
    if speaker is not None:
        identity["speaker"] = speaker.fingerprint
    facts = CodecInfo(
        **{name: identity[name] for name in ("model", "fingerprint", "sample_rate", "frame_rate")},
        codebook_sizes=tuple(identity["codebook_sizes"]),
    )
    get_output(settings.format, settings.audio_root).check_codec(facts)
    plan = settings.out / "plan.jsonl"
    while not plan.exists():
        with leases.held("plan") as mine:
            if not mine:
                time.sleep(_POLL)
            elif not plan.exists():
                _begin(settings, identity, leases)
    _refuse_other(settings.out, identity)
    return Run(settings, facts, leases, speaker)


def receipt_path(folder: Path, shard: int) -> Path:
    return folder / "receipts" / f"{shard:06d}.json"


def finished(folder: Path) -> set[int]:
    """Numbers of the shards of a run's folder that have receipts."""
    with suppress(FileNotFoundError):
        return {int(name[:-5]) for name in os.listdir(folder / "receipts") if name.endswith(".json")}
    return set()


def publish(files: Iterable[tuple[Path, Path]]) -> None:
    """Flush each draft to disk and rename it to its final path; on return the names are durable too."""
    folders = set()
    for draft, final in files:
        _flush(draft)
        if final.parent not in folders:
            final.parent.mkdir(parents=True, exist_ok=True)
            folders.add(final.parent)
        try:
            os.replace(draft, final)
        except OSError as error:
            if error.errno != errno.EXDEV:  # sidecar files on another file system
                raise
            near = final.with_name(f".{final.name}.partial")
            shutil.copyfile(draft, near)
            _flush(near)
            os.replace(near, final)
            draft.unlink()
    for folder in folders:
        _flush(folder)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(settings: Settings, codec: Codec) -> dict[str, Any]:
    count = codec.num_codebooks if settings.num_codebooks is None else settings.num_codebooks
    if not 1 <= count <= codec.num_codebooks:
        raise ConfigError(f"--num-codebooks {count}: {codec.name} has 1 to {codec.num_codebooks}")
    options = {name: value for name, value in asdict(settings.options).items() if value is not None}
    identity = {
        "vokens": __version__,
        "source": _address(settings.source),
        "options": options,
        "model": codec.name,
        "fingerprint": codec.fingerprint,
        "dtype": settings.dtype,
        "long_audio": getattr(codec.config, "long_audio", "whole"),
        "sample_rate": codec.sample_rate,
        "frame_rate": codec.frame_rate,
        "codebook_sizes": list(codec.codebook_sizes[:count]),
        "format": settings.format,
        "audio_root": settings.audio_root,
        "shard_size": settings.shard_size,
        **({"sinc": True} if settings.sinc else {}),
    }
    return json.loads(json.dumps(identity, default=str))


def _address(source: str) -> str:
    """Normalised address of a source: c, c/, ./c and /path/to/c are one folder."""
    return source if is_url(source) else os.path.abspath(source)


def _begin(settings: Settings, identity: dict[str, Any], leases: Leases) -> None:
    """Write the plan as drafts; plan.jsonl is renamed last and makes the folder a run."""
    folder = settings.out
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    foreign = [name for name in names if name not in _FIRST]
    if foreign:
        raise ConfigError(
            f"{folder} is not empty (it holds {foreign[0]}) and no run of vokens extract: give a new --out"
        )
    for path in folder.iterdir():  # left by a killed attempt
        if path != leases.folder:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        with leases.scratch("plan") as scratch:
            source = open_source(settings.source, listing=folder / "listing", options=settings.options)
            with open(scratch / "plan.jsonl", "w") as file:
                for span in plan_shards(source, settings.shard_size):
                    where = span.where
                    if where.startswith(f"{folder}/"):
                        where = _OUT + where.removeprefix(f"{folder}/")
                    file.write(json.dumps({**asdict(span), "where": where}) + "\n")
            (scratch / "run.json").write_text(json.dumps(identity, indent=2) + "\n")
            publish([(scratch / name, folder / name) for name in ("run.json", "plan.jsonl")])
    except BaseException:
        shutil.rmtree(folder / "listing", ignore_errors=True)
        raise


_FIRST = ("leases", "run.json", "listing")  # names that may exist before the plan


def _refuse_other(folder: Path, identity: dict[str, Any]) -> None:
    try:
        there = dict(read_json(folder / "run.json"))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{folder / 'run.json'} holds no run ({error}): give a new --out") from error
    there["source"] = _address(str(there.get("source")))
    for name in identity.keys() | there.keys():
        if there.get(name) != identity.get(name):
            raise ConfigError(
                f"{folder} was begun with {name} {_short(there.get(name))}, and this run has "
                f"{_short(identity.get(name))}: mixing two in one folder is refused; give a new --out"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
