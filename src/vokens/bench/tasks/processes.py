"""Worker processes for measurements; one that is killed becomes a one-line error, and they end with the parent."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from vokens.errors import VokensError
from vokens.processes import follow_parent


@contextmanager
def pool(count: int, start: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Pool of `count` processes, each initialised by start(*arguments), whose error would be lost."""
    spawn = multiprocessing.get_context("spawn")  # forking a process with torch threads may hang
    try:
        with ProcessPoolExecutor(count, spawn, _start, (start, *arguments)) as executor:
            yield executor
    except BrokenProcessPool as error:
        raise VokensError(
            f"one of {count} worker processes was killed, probably for lack of memory: finished "
            "measurements are kept, so run the same command again, with fewer --processes or a smaller model"
        ) from error


def _start(start: Callable[..., None], *arguments: Any) -> None:
    follow_parent()
    start(*arguments)
