"""One process with one device: claim a shard and encode it while the next one is decoded.

Any number of such processes, on all machines that share the folder, work on one run, coordinated by leases.
"""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from vokens.corpus.decode import Decoder, automatic_workers, open_decoder
from vokens.corpus.progress import Progress
from vokens.corpus.run import Run, Settings, Summary, finished, open_run
from vokens.corpus.shard import encode_shard
from vokens.data.lease import Leases
from vokens.models.codec import Codec

_AHEAD = 2  # shards per process: one being encoded, and one being decoded
_POLL = 0.5  # seconds between checks of shards that others hold


@dataclass(frozen=True)
class Worker:
    """Settings of one process of a run, without effect on the output."""

    rank: int = 0  # shards rank, rank + world, … come first, then all others
    world: int = 1
    feeders: int = 1  # processes of the run on this machine, which share its cores
    workers: int | None = None  # decode processes, None: automatic, 0: inline decoding
    retry_failed: bool = False  # encode shards with failures again
    metrics: Path | None = None  # see Progress


def extract(
    settings: Settings, codec: Codec, worker: Worker | None = None, decoder: Decoder | None = None
) -> Summary:
    """Work on a run until all its shards are done, also by others; returns its summary.

    decoder: None for local processes as set in `worker`. Raises ConfigError for another run's folder and a source that
    cannot be planned, VokensError for files that cannot be written.
    """
    worker = worker or Worker()
    workers = worker.workers
    if workers is None:
        workers = automatic_workers(codec.device.type, worker.feeders)
    try:
        with Leases(settings.out / "leases") as leases:
            run = open_run(settings, codec, leases)
            run.take_back_damaged()
            if worker.retry_failed:
                run.retry_failed()
            with (
                closing(decoder or open_decoder(codec.sample_rate, workers)) as decoder,
                Progress(run, decoder, show=worker.rank == 0, metrics=worker.metrics) as progress,
            ):
                while True:
                    _work(run, codec, decoder, progress, _order(len(run), worker))
                    with suppress(FileNotFoundError):  # another process removes receipts with retry_failed
                        run.output.finish(run)
                        return run.summarise()
    finally:
        with suppress(OSError):
            settings.out.rmdir()  # empty where the run could not begin


def _order(shards: int, worker: Worker) -> list[int]:
    own = range(worker.rank, shards, worker.world)
    return [*own, *(shard for shard in range(shards) if shard % worker.world != worker.rank)]


def _work(run: Run, codec: Codec, decoder: Decoder, progress: Progress, order: Sequence[int]) -> None:
    """Encode shards until each has a receipt."""
    done = finished(run.folder)
    pending = deque(shard for shard in order if shard not in done)
    claimed: deque[int] = deque()
    while pending or claimed:
        while len(claimed) < _AHEAD and (shard := _claim(run, pending)) is not None:
            claimed.append(shard)
            decoder.expect(shard, run.utterances(shard))
        if claimed:
            shard = claimed.popleft()
            progress.shard(encode_shard(run, shard, codec, decoder, progress.timing))
            run.leases.release(f"{shard:06d}")
        elif pending:
            progress.beat()
            time.sleep(_POLL)  # others hold the rest; expired leases are taken over


def _claim(run: Run, pending: deque[int]) -> int | None:
    """Claim the next pending shard that is neither done nor held by another; drop finished ones."""
    for _ in range(len(pending)):
        shard = pending.popleft()
        name = f"{shard:06d}"
        if run.done(shard):
            continue
        if run.leases.claim(name):
            if not run.done(shard):  # finished since the first check
                return shard
            run.leases.release(name)
            continue
        pending.append(shard)
    return None
