"""Ray: encoders on the GPUs of a cluster, decoders on its CPUs, both coming and going with its machines.

Every encoder is a worker of `engine.local` on the run's shared folder; only its decoders are elsewhere, as Ray tasks
on any machine. What makes a shard exactly once is the folder, as under the other engines; Ray restarts what dies.
"""

import logging
import math
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vokens.corpus.decode import Decoded, decode
from vokens.corpus.engine.local import Worker, extract
from vokens.corpus.run import Plan, Settings, finished
from vokens.data.items import Utterance
from vokens.errors import ConfigError, MissingExtra, VokensError
from vokens.models.codec import Codec

AHEAD = 64  # recordings that are being decoded or wait, per encoder: 40 MB at 10 s and 16 kHz
_LOOK, _TELL = 2.0, 10.0  # seconds between looks at the cluster, and between lines
_ANSWER = 10.0  # seconds for a cluster to accept a connection
_DEATHS = 1000  # of encoders, after which it is not their machines that go


@dataclass(frozen=True)
class Cluster:
    """A cluster to run on.

    address: of a Ray cluster, "auto" for the one this machine belongs to, None for a cluster on this machine alone.
    encoders: at most so many; None for one per GPU of the cluster or, without any, one per machine.
    """

    address: str | None = None
    encoders: int | None = None


@dataclass(frozen=True)
class Room:
    """Resources of a cluster.

    slots: where encoders go, by name: the machine, and the cores and GPUs that one takes there.
    decoder_cpus: cores of a decoding task, which goes anywhere.
    """

    slots: dict[str, "Slot"]
    decoder_cpus: float


@dataclass(frozen=True)
class Slot:
    node: str
    cpus: float
    gpus: float


def extract_on(
    settings: Settings, model: str, dtype: str, worker: Worker, cluster: Cluster
) -> dict[str, Any]:
    """Work on a run with a cluster until all of it is done; returns its summary.

    Args:
        settings: as for `engine.local.extract`; out must be a folder that all machines see.
        model, dtype: what each encoder loads.
        worker: its `retry_failed` counts, the rest is the cluster's business.

    Raises:
        MissingExtra: ray is not installed.
        ConfigError: another run's folder, or a cluster that cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("ray", "ray", "the engine ray") from error
    started = not ray.is_initialized()
    if started:
        _refuse_silence(cluster.address)
        try:
            ray.init(address=cluster.address, log_to_driver=True, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            raise _nobody(cluster.address) from error
    try:
        return _drive(ray, settings, model, dtype, worker, cluster)
    finally:
        if started:
            ray.shutdown()


def _refuse_silence(address: str | None) -> None:
    """ConfigError at once where nobody answers at ip:port; Ray itself would ask for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=_ANSWER).close()
        except OSError as error:
            raise _nobody(address) from error


def _nobody(address: str | None) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers at {address!r}: give ip:port, or auto on a machine of the cluster"
    )


def _drive(
    ray: Any, settings: Settings, model: str, dtype: str, worker: Worker, cluster: Cluster
) -> dict[str, Any]:
    """Keep an encoder at work in every slot of the cluster, until one reports that all is done."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(Encoder)
    at_work: dict[Any, tuple[str, Any]] = {}  # its result -> slot and encoder
    retry_failed, deaths, told = worker.retry_failed, 0, time.monotonic()
    while True:
        room = room_of(ray.nodes(), cluster.encoders)
        taken = {name for name, _ in at_work.values()}
        for rank, (name, slot) in enumerate(room.slots.items()):
            if name not in taken:
                encoder = actor.options(
                    num_cpus=slot.cpus,
                    num_gpus=slot.gpus,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node, soft=False),
                ).remote(model, dtype, room.decoder_cpus)
                result = encoder.work.remote(settings, rank, len(room.slots), retry_failed)
                at_work[result] = name, encoder
                retry_failed = False  # receipts are taken back once, not by each encoder that joins
        ready, _ = ray.wait(list(at_work), timeout=_LOOK)
        for result in ready:
            del at_work[result]
            try:
                return ray.get(result)
            except ray.exceptions.RayTaskError as error:
                raise _cause(error) from error
            except ray.exceptions.RayActorError as error:  # its machine is gone, or it was killed
                deaths += 1
                if deaths > _DEATHS:
                    raise VokensError(f"{deaths} encoders died, the last of: {error}") from error
        if time.monotonic() - told > _TELL and (settings.out / "plan.jsonl").exists():
            told = time.monotonic()
            done, total = len(finished(settings.out)), len(Plan(settings.out / "plan.jsonl"))
            print(f"vokens: {done} of {total} shards, {len(at_work)} encoders", file=sys.stderr)


def room_of(nodes: list[dict[str, Any]], most: int | None = None) -> Room:
    """Places for encoders in a cluster of these machines, `most` of them at most.

    Decoders must always find a core, else all wait for ever: an encoder on a GPU asks for none, and without GPUs
    there is one to a machine, on all of its cores but the one that decodes (half of the only one).
    """
    alive = [(node["NodeID"], node["Resources"]) for node in nodes if node["Alive"]]
    slots = {
        f"{name}/{gpu}": Slot(name, 0.0, 1.0)
        for name, resources in alive
        for gpu in range(int(resources.get("GPU", 0)))
    }
    machines = {name: resources["CPU"] for name, resources in alive if resources.get("CPU", 0)}
    decoder = 1.0 if slots or min(machines.values(), default=1.0) >= 2 else 0.5
    if not slots:
        slots = {name: Slot(name, cores - decoder, 0.0) for name, cores in machines.items()}
    return Room(dict(list(slots.items())[:most]), decoder)


class Encoder:
    """One device's worth of encoding, as a Ray actor."""

    def __init__(self, model: str, dtype: str, decoder_cpus: float) -> None:
        import ray
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
            torch.set_num_threads(max(1, math.floor(cpus)))
        self.codec = Codec.from_pretrained(model, device=device, dtype=dtype)
        self.decoder_cpus = decoder_cpus

    def work(self, settings: Settings, rank: int, world: int, retry_failed: bool) -> dict[str, Any]:
        """Until every shard of the run is done, by this encoder or another."""
        worker = Worker(rank=rank, world=world, retry_failed=retry_failed)
        decoder = RayDecoder(self.codec.sample_rate, self.decoder_cpus)
        return extract(settings, self.codec, worker, decoder)


class RayDecoder:
    """Decodes as Ray tasks, on whatever machine has a core free; a `vokens.corpus.decode.Decoder`."""

    def __init__(self, sample_rate: int, cpus: float, ahead: int = AHEAD) -> None:
        import ray

        self._ray = ray
        self._task = ray.remote(num_cpus=cpus, max_retries=3)(decode)
        self.sample_rate, self.ahead = sample_rate, ahead
        self._expected: deque[tuple[int, Iterator[Utterance]]] = deque()
        self._sent: deque[tuple[int, Utterance, Any]] = deque()  # shard, utterance, result to come

    @property
    def ready_seconds(self) -> float:
        """Not known: what is decoded waits in Ray's object store."""
        return 0.0

    def expect(self, shard: int, utterances: Iterable[Utterance]) -> None:
        self._expected.append((shard, iter(utterances)))
        self._fill()

    def take(self, shard: int) -> Iterator[Decoded]:
        while True:
            self._fill(shard)
            if not self._sent or self._sent[0][0] != shard:
                return
            _, utterance, result = self._sent.popleft()
            self._fill()
            try:
                item = self._ray.get(result)  # its wave lies in Ray's read-only memory
                yield item if item.wave is None else replace(item, wave=item.wave.copy())
            except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.OutOfMemoryError):
                yield Decoded(utterance, None, reason="the decoder died on it")

    def close(self) -> None:
        for _, _, result in self._sent:
            self._ray.cancel(result, force=True)
        self._sent.clear()
        self._expected.clear()

    def _fill(self, shard: int | None = None) -> None:
        """Send recordings until enough are under way; of `shard`, should none of it be, at least one."""
        while self._expected:
            number, utterances = self._expected[0]
            if len(self._sent) >= self.ahead and (shard is None or self._sent[0][0] == shard):
                return
            utterance = next(utterances, None)
            if utterance is None:
                self._expected.popleft()
                continue
            self._sent.append((number, utterance, self._task.remote(utterance, self.sample_rate)))


def _cause(error: Any) -> Exception:
    """The error of an encoder as it would look without Ray."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, VokensError) else VokensError(f"an encoder failed: {error}")
