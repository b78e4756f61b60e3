"""Many files through one network: read, group by length, convert, write; a bad file does not stop the rest.

Consecutive inputs of one kind are converted in groups of a few batches, so that the codec can put those of
similar length into one batch. When a group fails, its items are tried one by one.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from vokens.cli import one_line
from vokens.cli.jobs import Job
from vokens.errors import ConfigError, VokensError

Given = TypeVar("Given")
Made = TypeVar("Made")
_GROUP_BATCHES = 8  # enough to sort by length and pad little; audio held in memory: 8 minutes by default
_QUIET_SECONDS = 3.0  # without a terminal, no progress bar before this


@dataclass(frozen=True)
class Loaded(Generic[Given]):
    """What was read for a job: its value, its length in seconds, and what a group must have in common."""

    job: Job
    value: Given
    seconds: float
    kind: Any = None


def convert(
    jobs: Sequence[Job],
    read: Callable[[Job], Loaded[Given]],
    work: Callable[[list[Loaded[Given]]], list[Made]],
    write: Callable[[Job, Made], None],
    batch_seconds: float,
) -> int:
    """Convert all jobs and return the exit code: 1 when some of several failed, each with a line on stderr.

    The error of a single job is raised.
    """
    if not batch_seconds > 0:
        raise ConfigError(f"--batch-seconds {batch_seconds}: give seconds of audio, above 0")
    failed = 0
    with _progress(len(jobs)) as bar:

        def fail(job: Job, error: Exception) -> None:
            nonlocal failed
            if len(jobs) == 1 or isinstance(error, BrokenPipeError):
                raise error
            failed += 1
            bar.write(f"vokens: error: {_blame(job, error)}", file=sys.stderr)
            bar.update()

        for group in _groups(_read_all(jobs, read, fail), _GROUP_BATCHES * batch_seconds):
            for item, made in _work(group, work, fail):
                try:
                    write(item.job, made)
                    bar.update()
                except (VokensError, OSError) as error:
                    fail(item.job, error)
    if failed:
        print(f"vokens: {failed} of {len(jobs)} inputs failed", file=sys.stderr)
    return 1 if failed else 0


def _progress(total: int) -> tqdm:
    delay = 0.0 if sys.stderr.isatty() else _QUIET_SECONDS
    return tqdm(total=total, unit="file", file=sys.stderr, delay=delay, leave=False)


def _blame(job: Job, error: Exception) -> str:
    message = one_line(error)
    return message if str(job.source) in message else f"{job.source}: {message}"


def _read_all(
    jobs: Sequence[Job], read: Callable[[Job], Loaded[Given]], fail: Callable[[Job, Exception], None]
) -> Iterator[Loaded[Given]]:
    for job in jobs:
        try:
            loaded = read(job)
        except (VokensError, OSError) as error:
            fail(job, error)
        else:
            yield loaded


def _groups(items: Iterator[Loaded[Given]], limit: float) -> Iterator[list[Loaded[Given]]]:
    """Consecutive items of one kind with at most `limit` seconds in all; a longer item goes alone."""
    group: list[Loaded[Given]] = []
    for item in items:
        total = item.seconds + sum(other.seconds for other in group)
        if group and (group[0].kind != item.kind or total > limit):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _work(
    group: list[Loaded[Given]],
    work: Callable[[list[Loaded[Given]]], list[Made]],
    fail: Callable[[Job, Exception], None],
) -> list[tuple[Loaded[Given], Made]]:
    try:
        return list(zip(group, work(group), strict=True))
    except VokensError as error:
        if len(group) == 1:
            fail(group[0].job, error)
            return []
    return [pair for item in group for pair in _work([item], work, fail)]
