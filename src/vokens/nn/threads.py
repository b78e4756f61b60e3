"""Independent pieces of one forward pass on several threads, each with one thread of its own inside.

torch splits single operations over threads and waits for all after each; whole spans of work side by side need no
such waiting, and a busy machine costs them little. The count is torch.get_num_threads(), so users keep control.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

R = TypeVar("R")


class _Here(Executor):
    """The calling thread, at once."""

    def submit(self, job: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        future: Future[R] = Future()
        future.set_result(job(*args, **kwargs))
        return future


class _Pool(ThreadPoolExecutor):
    """Threads in inference mode, which is a thread's own."""

    def submit(self, job: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        return super().submit(torch.inference_mode()(job), *args, **kwargs)


@contextmanager
def workers(device: torch.device) -> Iterator[Executor]:
    """Threads for work on the CPU; elsewhere, or where torch has one thread, the calling thread.

    A job may wait for jobs that were submitted before it, never for later ones.
    """
    count = torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        yield _Here()
        return
    with _Pool(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(count)  # a worker's setting is also the default of threads yet to come


def gather(jobs: list[Future[R]]) -> list[R]:
    """Wait for all; the first error is raised."""
    return [job.result() for job in jobs]
