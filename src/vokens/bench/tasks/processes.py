"""Worker processes for measurements; one that is killed becomes a one-line error, and they end with the parent."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from vokens.errors import VokensError
from vokens.processes import follow_parent


@contextmanager
def pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Pool of `count` processes."""
    spawn = multiprocessing.get_context("spawn")  # forking a process with torch threads may hang
    try:
        with ProcessPoolExecutor(count, spawn, follow_parent) as executor:
            yield executor
    except BrokenProcessPool as error:
        raise VokensError(
            f"one of {count} worker processes was killed, probably for lack of memory: finished "
            "measurements are kept, so run the same command again, with fewer --processes or a smaller model"
        ) from error
