"""Ray: encoders on the GPUs of a cluster, decoders on its CPUs, elastic with its machines.

Every encoder is a worker of `engine.local` on the run's shared folder, with decoders as Ray tasks on any machine.
The folder ensures that each shard is made exactly once, as with the other engines; Ray restarts dead actors.
"""

import logging
import math
import socket
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from vokens.corpus.decode import Decoded, DecodePool, decode
from vokens.corpus.engine.local import Worker, extract
from vokens.corpus.run import Plan, Settings, Summary, finished
from vokens.data.items import Utterance
from vokens.errors import ConfigError, VokensError, needs_extra
from vokens.models.codec import Codec

AHEAD = 64  # recordings in flight per encoder, in addition to the queue
_LOOK, _TELL = 2.0, 10.0  # seconds between checks of the cluster, and between log lines
_ANSWER = 10.0  # connection timeout in seconds
_DEATHS = 1000  # dead encoders after which lost machines are not the cause


@dataclass(frozen=True)
class Cluster:
    """A cluster to run on."""

    address: str | None = None  # "auto" for that of this machine, None for a new one on this machine only
    encoders: int | None = (
        None  # at most; None for one per GPU of the cluster or, without any, one per machine
    )


@dataclass(frozen=True)
class Slot:
    """Place of an encoder: the machine, and the cores and GPUs of one."""

    node: str
    cpus: float
    gpus: float


def extract_on(settings: Settings, model: str, dtype: str, worker: Worker, cluster: Cluster) -> Summary:
    """Work on a run with a cluster until all its shards are done; returns its summary.

    settings: as for `engine.local.extract`; out must be a folder that all machines share. model, dtype: loaded by each
    encoder. worker: only `retry_failed` is used. Raises MissingExtra without ray, ConfigError for another run's folder
    and a cluster that cannot be reached.
    """
    with needs_extra("ray", "ray", "the engine ray"):
        import ray
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
    """Raise ConfigError at once where ip:port does not answer; Ray itself would retry for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=_ANSWER).close()
        except OSError as error:
            raise _nobody(address) from error


def _nobody(address: str | None) -> ConfigError:
    return ConfigError(f"no Ray cluster answers at {address!r}: give ip:port, or auto on one of its machines")


def _drive(ray: Any, settings: Settings, model: str, dtype: str, worker: Worker, cluster: Cluster) -> Summary:
    """Keep an encoder running in every slot of the cluster until one reports completion."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(Encoder)
    at_work: dict[Any, tuple[str, Any]] = {}  # future result -> slot and encoder
    retry_failed, deaths, reported = worker.retry_failed, 0, time.monotonic()
    while True:
        slots, decoder_cpus = room_of(ray.nodes(), cluster.encoders)
        taken = {name for name, _ in at_work.values()}
        for rank, (name, slot) in enumerate(slots.items()):
            if name not in taken:
                encoder = actor.options(
                    num_cpus=slot.cpus,
                    num_gpus=slot.gpus,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node, soft=False),
                ).remote(model, dtype, decoder_cpus)
                result = encoder.work.remote(settings, rank, len(slots), retry_failed)
                at_work[result] = name, encoder
                retry_failed = False  # receipts are removed once, not by each encoder that joins
        ready, _ = ray.wait(list(at_work), timeout=_LOOK)
        for result in ready:
            del at_work[result]
            try:
                return ray.get(result)
            except ray.exceptions.RayTaskError as error:
                cause = getattr(error, "cause", None)  # the encoder's own error
                if not isinstance(cause, VokensError):
                    cause = VokensError(f"an encoder failed: {error}")
                raise cause from error
            except ray.exceptions.RayActorError as error:  # its machine was lost, or it was killed
                deaths += 1
                if deaths > _DEATHS:
                    raise VokensError(f"{deaths} encoders died, the last of: {error}") from error
        if time.monotonic() - reported > _TELL and (settings.out / "plan.jsonl").exists():
            reported = time.monotonic()
            done, total = len(finished(settings.out)), len(Plan(settings.out / "plan.jsonl"))
            print(f"vokens: {done} of {total} shards, {len(at_work)} encoders", file=sys.stderr)


def room_of(nodes: list[dict[str, Any]], most: int | None = None) -> tuple[dict[str, Slot], float]:
    """Slots of at most `most` encoders in a cluster of these machines, by name; and the cores of a decoding task.

    Decoders must always get a core, or all would wait for ever: an encoder on a GPU reserves none; without GPUs
    there is one encoder per machine, on all cores but the one that decodes (half of a single core).
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
    return dict(list(slots.items())[:most]), decoder


class Encoder:
    """Encoder on one device, as a Ray actor."""

    def __init__(self, model: str, dtype: str, decoder_cpus: float) -> None:
        import ray
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1)
            torch.set_num_threads(max(1, math.floor(cpus)))
        self.codec = Codec.from_pretrained(model, device=device, dtype=dtype)
        self._task = ray.remote(num_cpus=decoder_cpus, max_retries=3)(decode)

    def work(self, settings: Settings, rank: int, world: int, retry_failed: bool) -> Summary:
        """Work until every shard of the run is done, by this encoder or another."""
        worker = Worker(rank=rank, world=world, retry_failed=retry_failed)
        rate = self.codec.sample_rate
        decoder = DecodePool(rate, [RayWorker(self._task, rate) for _ in range(AHEAD)])
        return extract(settings, self.codec, worker, decoder)


class RayWorker:
    """Decoding task on any machine with a free core; a `vokens.corpus.decode.DecodeWorker`."""

    def __init__(self, task: Any, sample_rate: int) -> None:
        self._task, self._sample_rate, self._result = task, sample_rate, None

    def decode(self, utterance: Utterance) -> Decoded:
        import ray

        self._result = self._task.remote(utterance, self._sample_rate)
        try:
            item = ray.get(self._result)  # its wave is in Ray's read-only memory
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            return Decoded(utterance, None, reason="the decoder died on it")
        return item if item.wave is None else replace(item, wave=item.wave.copy())

    def kill(self) -> None:
        import ray

        if self._result is not None:
            ray.cancel(self._result, force=True)
