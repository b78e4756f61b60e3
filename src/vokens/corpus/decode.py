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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from multiprocessing.connection import Connection
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


class InlineDecoder:
    """Decoder in the calling process; the same methods as `DecodePool`."""

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


class DecodeWorker(Protocol):
    """Decoder of one utterance at a time, elsewhere."""

    def decode(self, utterance: Utterance) -> Decoded: ...

    def kill(self) -> None: ...


class DecodePool:
    """Pool of workers, each fed by a thread of this process, so that they run while the device computes.

    `expect` announces the utterances of a shard, `take` yields them decoded, in order.
    """

    def __init__(self, sample_rate: int, workers: Sequence[DecodeWorker]) -> None:
        self.sample_rate = sample_rate
        self._changed = threading.Condition()  # guards the six attributes below
        self._shards: deque[tuple[int, Iterable[Utterance]]] = deque()
        self._ready: dict[tuple[int, int], Decoded] = {}
        self._sizes: dict[int, int] = {}  # number of utterances of shards that were read completely
        self._seconds = 0.0
        self._error: BaseException | None = None
        self._closing = False
        self._jobs, self._reading = self._all_jobs(), threading.Lock()
        self._workers = workers
        self._threads = [threading.Thread(target=self._feed, args=(one,), daemon=True) for one in workers]
        for thread in self._threads:
            thread.start()

    @property
    def ready_seconds(self) -> float:
        """Seconds of decoded audio in the queue."""
        return self._seconds

    def expect(self, shard: int, utterances: Iterable[Utterance]) -> None:
        with self._changed:
            self._shards.append((shard, utterances))
            self._changed.notify_all()

    def take(self, shard: int) -> Iterator[Decoded]:
        for place in count():
            with self._changed:
                while not ((shard, place) in self._ready or self._sizes.get(shard) == place or self._error):
                    self._changed.wait()
                if (shard, place) in self._ready:
                    item = self._ready.pop((shard, place))
                    self._seconds -= _seconds(item, self.sample_rate)
                    self._changed.notify_all()
                elif self._error is not None:
                    raise self._error
                else:
                    del self._sizes[shard]
                    return
            yield item

    def close(self) -> None:
        """End the workers at once."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for worker, thread in zip(self._workers, self._threads, strict=True):
            while thread.is_alive():
                worker.kill()
                thread.join(0.05)
            worker.kill()

    def _feed(self, worker: DecodeWorker) -> None:
        """Give jobs to a worker until the pool closes; an error ends the run."""
        try:
            while True:
                with self._reading:
                    job = next(self._jobs, None)
                if job is None:
                    return
                shard, place, utterance = job
                item = worker.decode(utterance)
                if isinstance(utterance.audio, bytes):  # no longer needed, and as large as the wave
                    item = replace(item, utterance=replace(utterance, audio=b""))
                with self._changed:
                    self._ready[shard, place] = item
                    self._seconds += _seconds(item, self.sample_rate)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _all_jobs(self) -> Iterator[tuple[int, int, Utterance]]:
        """Shard, place and utterance of all that is expected, in order; waits while the queue is full."""
        while self._wait(lambda: bool(self._shards)):
            shard, utterances = self._shards.popleft()
            reading, place = iter(utterances), 0
            while self._wait(lambda: self._seconds < AHEAD_SECONDS):
                utterance = next(reading, None)
                if utterance is None:
                    break
                yield shard, place, utterance
                place += 1
            with self._changed:
                self._sizes[shard] = place
                self._changed.notify_all()

    def _wait(self, until: Callable[[], bool]) -> bool:
        """Wait for a condition; False where the pool closes instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or until())
            return not self._closing


Decoder = InlineDecoder | DecodePool


def open_decoder(sample_rate: int, workers: int) -> Decoder:
    """A pool of `workers` processes, or inline decoding for 0."""
    if workers == 0:
        return InlineDecoder(sample_rate)
    return DecodePool(sample_rate, [WorkerProcess(sample_rate) for _ in range(workers)])


class WorkerProcess:
    """A process that decodes one utterance at a time; another takes over where it dies."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._pipe: Connection | None = None  # None where no process is ready
        self._killed = False
        self.process: BaseProcess | None = None
        self.utterance: Utterance | None = None  # at work on it

    def decode(self, utterance: Utterance) -> Decoded:
        """Decode an utterance, unless three processes die on it."""
        for _ in range(TRIES):
            pipe = self._pipe = self._pipe or self._start()
            self.utterance = utterance
            with suppress(EOFError, OSError):
                pipe.send(utterance)
                samples, silent, reason = pipe.recv()
                wave = None if reason else np.empty(samples, np.float32)
                if wave is not None:
                    pipe.recv_bytes_into(wave.data)
                return Decoded(utterance, wave, silent, reason)
            self._pipe = self.utterance = None
            if self._killed:
                break
        return Decoded(utterance, None, reason="the decoder died on it")

    def kill(self) -> None:
        self._killed = True
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def _start(self) -> Connection:
        """The pipe of a new process that is ready. Raises VokensError where five in a row end before that."""
        context = _context()
        for _ in range(_FALSE_STARTS):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._sample_rate), daemon=True)
            process.start()
            theirs.close()
            self.process = process
            with suppress(EOFError, OSError):
                ours.recv()
                return ours
            if self._killed:
                break
        process.join()
        raise VokensError(
            f"decode workers end before their first file (exit code {process.exitcode}): "
            "--workers 0 decodes inline and shows why"
        )


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
