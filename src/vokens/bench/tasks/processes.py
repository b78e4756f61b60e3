"""Fresh processes that measure; one that is ended from outside is an error in one line."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from vokens.errors import VokensError


@contextmanager
def pool(count: int, start: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """`count` processes, each begun with start(*arguments), which must not fail: its error could not be told."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with torch threads may hang
    try:
        with ProcessPoolExecutor(count, spawn, start, arguments) as executor:
            yield executor
    except BrokenProcessPool as error:
        raise VokensError(
            f"one of {count} processes that measure was ended from outside, probably for lack of memory: what was "
            "measured is kept, so run the same command again, with fewer --processes or a smaller model"
        ) from error
