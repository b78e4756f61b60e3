"""One process with one device: claim a shard, encode it, and let the decoders begin the next meanwhile.

Any number of such processes, on any machines that see the folder, work on one run: leases keep them apart.
"""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vokens.corpus.decode import Decoder, automatic_workers, open_decoder
from vokens.corpus.progress import Progress
from vokens.corpus.run import Run, Settings, open_run
from vokens.corpus.shard import encode_shard
from vokens.data.lease import Leases
from vokens.models.codec import Codec

_AHEAD = 2  # shards that a process holds: the one it encodes, and the one whose audio is being decoded
_POLL = 0.5  # seconds between looks at shards that others hold


@dataclass(frozen=True)
class Worker:
    """Settings of one process of a run; none changes the output.

    rank, world: it begins with shards rank, rank + world, … and then helps with the others.
    feeders: processes of the run on this machine, among which the cores are shared.
    workers: decode processes, None for a number that fits the machine, 0 for decoding in line.
    retry_failed: do shards with failures again. metrics: see Progress.
    """

    rank: int = 0
    world: int = 1
    feeders: int = 1
    workers: int | None = None
    retry_failed: bool = False
    metrics: Path | None = None


def extract(
    settings: Settings, codec: Codec, worker: Worker | None = None, decoder: Decoder | None = None
) -> dict[str, Any]:
    """Work on a run until all of it is done, by whomever; returns its summary.

    decoder: where audio is decoded, None for processes of this machine as `worker` says.

    Raises:
        ConfigError: another run's folder, or a source that cannot be planned.
        VokensError: files that cannot be written.
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
                    with suppress(FileNotFoundError):  # another process takes receipts back with retry_failed
                        run.output.finish(run)
                        return run.summarise()
    finally:
        with suppress(OSError):
            settings.out.rmdir()  # empty when the run could not begin


def _order(shards: int, worker: Worker) -> list[int]:
    own = range(worker.rank, shards, worker.world)
    return [*own, *(shard for shard in range(shards) if shard % worker.world != worker.rank)]


def _work(run: Run, codec: Codec, decoder: Decoder, progress: Progress, order: Sequence[int]) -> None:
    """Encode shards until each has a receipt."""
    done = run.finished()
    pending = deque(shard for shard in order if shard not in done)
    held: deque[int] = deque()
    while pending or held:
        while len(held) < _AHEAD and (shard := _claim(run, pending)) is not None:
            held.append(shard)
            decoder.expect(shard, run.utterances(shard))
        if held:
            shard = held.popleft()
            progress.shard(encode_shard(run, shard, codec, decoder, progress.timing))
            run.leases.release(f"{shard:06d}")
        elif pending:
            progress.beat()
            time.sleep(_POLL)  # others hold what is left; should they die, it is taken over


def _claim(run: Run, pending: deque[int]) -> int | None:
    """The next pending shard that is neither done nor held by another; what is done is dropped."""
    for _ in range(len(pending)):
        shard = pending.popleft()
        name = f"{shard:06d}"
        if run.done(shard):
            continue
        if run.leases.claim(name):
            if not run.done(shard):  # finished between the two questions
                return shard
            run.leases.release(name)
            continue
        pending.append(shard)
    return None
