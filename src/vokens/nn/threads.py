"""Independent pieces of one forward pass on several threads, each with one thread of its own inside.

torch splits single operations over threads and waits for all after each; whole spans of work side by side need no
such waiting, and a busy machine costs them little. The count is torch.get_num_threads(), so users keep control.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, Protocol, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Workers(Protocol):
    """Runs jobs in inference mode. A job may wait for jobs that were submitted before it, never for later ones."""

    def submit(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...


class _Here:
    """The calling thread, at once."""

    def submit(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        future: Future[R] = Future()
        future.set_result(job(*args, **kwargs))
        return future


class _Pool:
    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool = pool

    def submit(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        return self.pool.submit(torch.inference_mode()(job), *args, **kwargs)  # the mode is a thread's own


@contextmanager
def workers(device: torch.device) -> Iterator[Workers]:
    """Threads for work on the CPU; elsewhere, or where torch has one thread, the calling thread."""
    count = torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        yield _Here()
        return
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield _Pool(pool)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(count)  # a worker's setting is also the default of threads yet to come


def gather(jobs: list[Future[R]]) -> list[R]:
    """Wait for all; the first error is raised."""
    return [job.result() for job in jobs]
