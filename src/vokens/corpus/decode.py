"""Audio decoding: inline, or by worker processes that prefetch in order, within bounds.

A crash ends only its own worker process: the utterance is retried in a fresh process, and quarantined when that
crashes too. Each worker has one job at a time, so the utterance is known.
"""

import io
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import torch

from vokens import audio
from vokens.corpus.health import silent_seconds
from vokens.data.fetch import open_audio
from vokens.data.items import Utterance
from vokens.data.sources.addresses import is_url
from vokens.errors import AudioError, VokensError
from vokens.processes import follow_parent

AHEAD_SECONDS = 1800.0  # seconds of decoded audio in the queue: 115 MB at 16 kHz
TRIES = 3  # attempts per utterance: a machine short of memory kills innocent workers too
_LEAST, _SHARE = 0.1, 0.1  # tolerance of a listed duration, absolute in seconds and relative
_FALSE_STARTS = 5  # consecutive workers that end before their first job, before the run gives up


@dataclass(frozen=True)
class Decoded:
    """An utterance and its wave (T,), float32 mono at the codec's rate; or None, and the reason."""

    utterance: Utterance
    wave: np.ndarray | None
    silent_seconds: float = 0.0
    reason: str = ""


class Decoder(Protocol):
    """Decoder of the utterances of shards: `expect` announces the next ones, `take` yields them in order."""

    def expect(self, shard: int, utterances: Iterable[Utterance]) -> None: ...

    def take(self, shard: int) -> Iterator[Decoded]: ...

    @property
    def ready_seconds(self) -> float:
        """Seconds of decoded audio in the queue."""
        ...

    def close(self) -> None: ...


def decode(utterance: Utterance, sample_rate: int) -> Decoded:
    """Decode an utterance; errors of its audio become the reason."""
    try:
        opened = _open(utterance)
        if utterance.channel is not None:
            _refuse_channels(opened, utterance.channel)
        target = None if utterance.sinc else sample_rate
        wave, rate = audio.load(opened, target, offset=utterance.start, duration=utterance.duration)
        wave = audio.sinc_resample(torch.from_numpy(wave), rate, sample_rate).numpy()  # where soxr has not
        _refuse_other_length(utterance, len(wave) / sample_rate)
    except (VokensError, OSError) as error:
        return Decoded(utterance, None, reason=" ".join(str(error).split()))
    except Exception as error:  # a decoder's bug must not end a run over a million files
        return Decoded(utterance, None, reason=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Decoded(utterance, wave, silent_seconds(wave, sample_rate))


def _refuse_channels(opened: bytes | Path, channel: int) -> None:
    """Raise AudioError for one of several channels: `audio.load` would average them."""
    file = soundfile.info(io.BytesIO(opened) if isinstance(opened, bytes) else opened)
    if file.channels > 1 or channel > 0:
        raise AudioError(
            f"channel {channel} of {file.channels} was chosen, and channels would be averaged: save it as a file of "
            "its own"
        )


def _refuse_other_length(utterance: Utterance, seconds: float) -> None:
    """Raise AudioError for audio much shorter than listed, or a whole file that is much longer."""
    piece = utterance.duration is not None
    listed = utterance.duration if piece else utterance.listed
    if listed is None:
        return
    allowed = max(_LEAST, _SHARE * listed)
    if seconds < listed - allowed or (not piece and seconds > listed + allowed):
        part = f" from {utterance.start:g} s on" if piece else ""
        raise AudioError(
            f"{seconds:.2f} s of audio are there{part}, and the list says {listed:.2f} s: fix the list, or fetch the "
            "whole recording"
        )


def _open(utterance: Utterance) -> bytes | Path:
    piece = utterance.start > 0 or utterance.duration is not None
    if piece and isinstance(utterance.audio, str) and is_url(utterance.audio):
        return _fetch(utterance.audio)
    return open_audio(utterance)


@lru_cache(maxsize=1)
def _fetch(url: str) -> bytes | Path:
    """The recording of a URL, cached for its next segment."""
    return open_audio(Utterance("", url))


def automatic_workers(device: str, feeders: int = 1) -> int:
    """Decode workers per device: all cores but those that feed devices; with a CPU codec, an eighth of them.

    feeders: processes of this run on this machine, one per device.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device == "cpu":
        return max(1, cores // 8) if cores > 1 else 0
    return max(1, (cores - feeders) // feeders)


def open_decoder(sample_rate: int, workers: int, ahead_seconds: float = AHEAD_SECONDS) -> Decoder:
    """A pool of `workers` processes, or inline decoding for 0."""
    return DecodePool(sample_rate, workers, ahead_seconds) if workers else InlineDecoder(sample_rate)


class InlineDecoder:
    """Decoder in the calling process."""

    ready_seconds = 0.0

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._expected: dict[int, Iterable[Utterance]] = {}

    def expect(self, shard: int, utterances: Iterable[Utterance]) -> None:
        self._expected[shard] = utterances

    def take(self, shard: int) -> Iterator[Decoded]:
        for utterance in self._expected.pop(shard):
            yield decode(utterance, self.sample_rate)

    def close(self) -> None:
        self._expected.clear()


@dataclass
class _Job:
    shard: int
    place: int
    utterance: Utterance
    tries: int = 0


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: _Job | None = None
    started: bool = False


class DecodePool:
    """Pool of worker processes, driven by a thread of the parent, so that they run while the device computes."""

    def __init__(self, sample_rate: int, workers: int, ahead_seconds: float = AHEAD_SECONDS) -> None:
        self.sample_rate = sample_rate
        self.ahead_seconds = ahead_seconds
        self._context = _context()
        self._changed = threading.Condition()  # guards the five attributes below
        self._shards: deque[tuple[int, Iterator[Utterance]]] = deque()
        self._ready: dict[tuple[int, int], Decoded] = {}
        self._sizes: dict[int, int] = {}  # number of utterances of shards that were read completely
        self._seconds = 0.0
        self._error: BaseException | None = None
        self._again: deque[_Job] = deque()
        self._reading: tuple[int, int, Iterator[Utterance]] | None = None
        self._false_starts = 0
        self._closing = False
        self._bell, self._ring = self._context.Pipe(duplex=False)
        self._workers = [self._start() for _ in range(workers)]
        self._thread = threading.Thread(target=self._run, daemon=True, name="vokens-decode")
        self._thread.start()

    @property
    def ready_seconds(self) -> float:
        return self._seconds

    def expect(self, shard: int, utterances: Iterable[Utterance]) -> None:
        with self._changed:
            self._shards.append((shard, iter(utterances)))
        self._wake()

    def take(self, shard: int) -> Iterator[Decoded]:
        place = 0
        while True:
            with self._changed:
                while not ((shard, place) in self._ready or self._sizes.get(shard) == place or self._error):
                    self._changed.wait()
                if (shard, place) in self._ready:
                    item = self._ready.pop((shard, place))
                    self._seconds -= _seconds(item, self.sample_rate)
                elif self._error is not None:
                    raise self._error
                else:
                    del self._sizes[shard]
                    return
            self._wake()
            place += 1
            yield item

    def close(self) -> None:
        """End the workers at once."""
        self._closing = True
        self._wake()
        self._thread.join()
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()
        self._bell.close()
        self._ring.close()

    # The thread ---------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        with suppress(OSError):
            self._ring.send_bytes(b"!")

    def _run(self) -> None:
        try:
            while not self._closing:
                self._hand_out()
                for pipe in wait([self._bell, *(worker.pipe for worker in self._workers)]):
                    if pipe is self._bell:
                        self._bell.recv_bytes()
                    else:
                        self._collect(next(worker for worker in self._workers if worker.pipe is pipe))
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.started and worker.job is None:
                job = self._again.popleft() if self._again else self._next_job()
                if job is None:
                    return
                worker.job = job
                try:
                    worker.pipe.send(job.utterance)
                except OSError:
                    self._replace(worker)

    def _next_job(self) -> _Job | None:
        """The next utterance of the expected shards; None where there is none, or the queue is full."""
        while self._seconds < self.ahead_seconds:
            if self._reading is None:
                with self._changed:
                    if not self._shards:
                        return None
                    shard, utterances = self._shards.popleft()
                self._reading = (shard, 0, utterances)
            shard, place, utterances = self._reading
            utterance = next(utterances, None)
            if utterance is not None:
                self._reading = (shard, place + 1, utterances)
                return _Job(shard, place, utterance)
            self._reading = None
            with self._changed:
                self._sizes[shard] = place
                self._changed.notify_all()
        return None

    def _collect(self, worker: _Worker) -> None:
        try:
            message = worker.pipe.recv()
            if message is None:
                worker.started, self._false_starts = True, 0
                return
            samples, silent, reason = message
            wave = None if reason else np.empty(samples, np.float32)
            if wave is not None:
                worker.pipe.recv_bytes_into(wave.data)
        except (EOFError, OSError):
            self._replace(worker)
            return
        job, worker.job = worker.job, None
        if job is not None:
            self._deliver(job, Decoded(job.utterance, wave, silent, reason))

    def _deliver(self, job: _Job, item: Decoded) -> None:
        if isinstance(item.utterance.audio, bytes):  # no longer needed, and as large as the wave
            item = replace(item, utterance=replace(item.utterance, audio=b""))
        with self._changed:
            self._ready[job.shard, job.place] = item
            self._seconds += _seconds(item, self.sample_rate)
            self._changed.notify_all()

    def _replace(self, worker: _Worker) -> None:
        """Replace a dead worker, and retry or give up its utterance."""
        worker.process.join()
        worker.pipe.close()
        job = worker.job
        if not worker.started:
            self._false_starts += 1
            if self._false_starts >= _FALSE_STARTS:
                raise VokensError(
                    f"decode workers end before their first file (exit code {worker.process.exitcode}): "
                    "--workers 0 decodes inline and shows why"
                )
        self._workers[self._workers.index(worker)] = self._start()
        if job is None:
            return
        job.tries += 1
        if job.tries < TRIES:
            self._again.append(job)
        else:
            self._deliver(job, Decoded(job.utterance, None, reason="the decoder died on it"))

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self.sample_rate), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _context() -> ForkServerContext | SpawnContext:
    """Fork server with everything imported: quick restarts, and safe with CUDA."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vokens.corpus.decode"])
    return context


def _seconds(item: Decoded, sample_rate: int) -> float:
    return 0.0 if item.wave is None else len(item.wave) / sample_rate


def _serve(pipe: Connection, sample_rate: int) -> None:
    """Main loop of a worker: utterances in, waves out, until the parent ends."""
    # Ctrl-C reaches all processes of a terminal; the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    follow_parent()
    with suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            item = decode(pipe.recv(), sample_rate)
            if item.wave is None:
                pipe.send((0, 0.0, item.reason))
            else:
                pipe.send((len(item.wave), item.silent_seconds, ""))
                pipe.send_bytes(np.ascontiguousarray(item.wave).data)
