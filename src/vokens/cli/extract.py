"""Turn a corpus into tokens, exactly once.

Run the same command again to resume, or at the same time in any number of processes on any number of machines, which
share the work. torchrun --nproc-per-node 8 -m vokens extract ... gives each process its own GPU.

vokens extract corpus/ --model speech_tokenizer_v2_25hz --out tokens/
"""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from vokens.cli.options import BatchSeconds, Compute, Model, load_codec, unset
from vokens.data.sources.options import SourceOptions
from vokens.errors import ConfigError
from vokens.text.files import iter_lines

Form = Literal["jsonl", "parquet", "sidecar", "npy", "webdataset", "shar", "megatron", "cosyvoice"]
Count = Annotated[int, tyro.conf.arg(metavar="N")]


@dataclass(frozen=True)
class Arguments:
    source: Annotated[Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Folder, glob, list of files, wav.scp, jsonl manifest, lhotse cuts or Shar, WebDataset tars, parquet, dataset."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",), metavar="DIR")]
    """Folder of the run, new or to be resumed; one with another source or codec is refused."""
    model: Model = "mini"
    format: Annotated[Form, tyro.conf.arg(metavar="FORM")] = "jsonl"
    """jsonl (needs no other package), parquet, sidecar, npy, webdataset, shar, megatron, or
    cosyvoice (for CosyVoice's train.py)."""
    speaker: Annotated[Path | None, unset("CAMPPLUS")] = None
    """Add a speaker embedding of each utterance: weights of CAM++ (campplus.onnx), or their folder."""
    audio_root: Annotated[Path | None, unset("PATH", default="next to the audio")] = None
    """For sidecar: put its files below --out, at the audio's path below this folder."""
    shard_size: Count = 1000
    """Utterances per shard. An interruption loses at most the current shard."""
    batch_seconds: BatchSeconds = 60.0
    num_codebooks: Annotated[int | None, unset("N", default="all")] = None
    """Keep the first N codebooks."""
    workers: Annotated[int | None, unset("N", default="automatic")] = None
    """Processes that decode audio; 0 decodes inline."""
    retry_failed: bool = False
    """Encode shards with failures again."""
    strict: bool = False
    """Exit with 1 if an utterance failed; all others are still encoded."""
    metrics: Annotated[Path | None, unset("FILE")] = None
    """Write metrics of the run to this file, .json or .prom (Prometheus)."""
    engine: Literal["auto", "local", "torchrun", "ray"] = "auto"
    """Scheduler of shards; auto is torchrun where it has set RANK."""
    ray_address: Annotated[str | None, unset("IP:PORT")] = None
    """Of a Ray cluster, or auto on one of its machines (default: only this machine)."""
    encoders: Annotated[int | None, unset("N")] = None
    """For ray: maximum number (default: one per GPU, or per machine without any)."""
    choice: SourceOptions = field(default_factory=SourceOptions)
    compute: Compute = field(default_factory=Compute)


def run(arguments: Arguments) -> int:
    try:
        with _stoppable():
            return _extract(arguments)
    except KeyboardInterrupt:
        print("vokens: interrupted; finished shards are kept, the same command resumes", file=sys.stderr)
        return 130


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make the first SIGINT or SIGTERM raise KeyboardInterrupt, and ignore later ones during the clean-up."""

    def stop(*_: Any) -> None:
        for which in before:
            signal.signal(which, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        for which in before:
            signal.signal(which, stop)
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _extract(arguments: Arguments) -> int:
    from vokens.corpus.engine.local import Worker, extract
    from vokens.corpus.engine.torchrun import Layout
    from vokens.corpus.progress import check_metrics
    from vokens.corpus.run import Settings

    names = [item.name for item in fields(Settings) if hasattr(arguments, item.name)]
    options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    sinc = arguments.format == "cosyvoice"  # as in its own tools
    settings = Settings(**options, options=arguments.choice, dtype=arguments.compute.dtype, sinc=sinc)
    check_metrics(arguments.metrics)
    if arguments.workers is not None and arguments.workers < 0:
        raise ConfigError(f"--workers {arguments.workers}: give a number of processes, or 0 to decode inline")
    worker = Worker(workers=arguments.workers, retry_failed=arguments.retry_failed, metrics=arguments.metrics)
    if arguments.engine == "ray":
        from vokens.corpus.engine.ray import Cluster, extract_on

        cluster = Cluster(arguments.ray_address, arguments.encoders)
        summary = extract_on(settings, arguments.model, arguments.compute.dtype, worker, cluster)
        return _end(summary, arguments)
    layout = None if arguments.engine == "local" else Layout.from_environment()
    compute = arguments.compute
    if layout is not None:
        worker = replace(worker, rank=layout.rank, world=layout.world, feeders=layout.local_world)
        compute = replace(compute, device=layout.device(compute.device))
        if arguments.metrics is not None and layout.world > 1:
            stem = f"{arguments.metrics.stem}-{layout.rank}"
            worker = replace(worker, metrics=arguments.metrics.with_stem(stem))
    elif arguments.engine == "torchrun":
        raise ConfigError("--engine torchrun needs RANK and WORLD_SIZE: start torchrun -m vokens extract")
    summary = extract(settings, load_codec(arguments.model, compute), worker)
    return _end(summary, arguments, tell=worker.rank == 0)


def _end(summary: dict[str, Any], arguments: Arguments, tell: bool = True) -> int:
    """Print the summary; return 1 if all utterances failed, or any under --strict."""
    folder, done, failed = arguments.out, summary["utterances"], summary["failures"]
    where = f": see {folder / 'failures'}, and --retry-failed tries them again" if failed else ""
    if tell and done:
        size = f"{done} utterances, {summary['hours']:.2f} h, {summary['tokens']} tokens in {summary['shards']} shards"
        print(f"vokens: {folder} is complete: {size}; {failed} failed{where}", file=sys.stderr)
    elif tell:
        print(f"vokens: all {failed} utterances failed; {_first_failure(folder)}{where}", file=sys.stderr)
    return int(not done or (arguments.strict and failed > 0))


def _first_failure(folder: Path) -> str:
    first = json.loads(next(iter_lines(min((folder / "failures").glob("*.jsonl")))))
    return f"the first, {first['key']!r}: {first['reason']}"
