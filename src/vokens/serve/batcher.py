"""Dynamic batching of concurrent requests for one model.

One thread runs a model. While it computes, requests queue; the next batch takes as many of one kind as fit. Requests
of disconnected clients are dropped.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from vokens.serve.settings import Settings

Item = TypeVar("Item")


class Busy(Exception):
    """The queue of a model is full."""


@dataclass(frozen=True)
class Job:
    """One request: `run(items)` computes the results of items with equal `kind`."""

    kind: Hashable
    run: Callable[[Sequence[Any]], Sequence[Any]]
    item: Any
    seconds: float
    done: "asyncio.Future[Any]"


class Batcher:
    """The queue of one model and its thread. Use it inside one event loop.

    Attributes:
        batches, requests: passes computed, and requests in them. streams: replies being streamed.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.batches, self.requests, self.streams = settings, 0, 0, 0
        self._jobs: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, "model")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """End the thread after the current batch; queued requests are cancelled."""
        if self._worker is not None:
            self._worker.cancel()
        for job in self._jobs:
            job.done.cancel()
        await asyncio.to_thread(self.thread.shutdown)

    async def submit(
        self, kind: Hashable, run: Callable[[Sequence[Any]], Sequence[Any]], item: Any, seconds: float
    ) -> Any:
        """The result for `item`, batched with others of its kind; seconds: its share of the batch limit. Raises Busy.

        Cancelling the call removes the item from the queue.
        """
        self._make_room()
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.append(Job(kind, run, item, seconds, done))
        self._arrived.set()
        return await done

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    async def on_thread(self, function: Callable[[], Item]) -> Item:
        """The result of a function, run on the model's thread between batches."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, function)

    def _make_room(self) -> None:
        if len(self._jobs) >= self.settings.max_queue:
            self._jobs = deque(job for job in self._jobs if not job.done.done())
        if len(self._jobs) >= self.settings.max_queue:
            raise Busy

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if self.settings.batch_wait and len(self._jobs) < self.settings.max_batch:
                await asyncio.sleep(self.settings.batch_wait)
            batch = self._take()
            if not self._jobs:
                self._arrived.clear()
            if batch:
                await self._compute(batch)

    def _take(self) -> list[Job]:
        """Take the oldest job and those after it of its kind, as many as fit."""
        batch: list[Job] = []
        left: deque[Job] = deque()
        longest = 0.0
        for job in self._jobs:
            if job.done.done():
                continue
            padded = max(longest, job.seconds) * (len(batch) + 1)
            fits = len(batch) < self.settings.max_batch and padded <= self.settings.batch_seconds
            if not batch or (job.kind == batch[0].kind and fits):
                batch.append(job)
                longest = max(longest, job.seconds)
            else:
                left.append(job)
        self._jobs = left
        return batch

    async def _compute(self, batch: list[Job]) -> None:
        self.batches += 1
        self.requests += len(batch)
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self.thread, batch[0].run, [job.item for job in batch])
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0], error)
                return
            for job in batch:  # one of them is at fault: compute each alone
                await self._compute([job])
            return
        for job, result in zip(batch, results, strict=True):
            _settle(job, result)


def _settle(job: Job, result: Any) -> None:
    if job.done.done():  # its client has disconnected
        return
    if isinstance(result, BaseException):
        job.done.set_exception(result)
    else:
        job.done.set_result(result)
