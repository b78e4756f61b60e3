"""Conversion of many files by one network: read, group, convert, write; a bad file does not stop the rest.

Consecutive inputs of one kind form groups of a few batches, so that the codec can batch similar lengths. Where a
group fails, its items are retried one by one.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from vokens.cli import one_line
from vokens.cli.jobs import Job
from vokens.errors import ConfigError, VokensError

Given = TypeVar("Given")
Made = TypeVar("Made")
_GROUP_BATCHES = 8  # enough to sort by length and pad little; audio in memory: 8 minutes by default


@dataclass(frozen=True)
class Loaded(Generic[Given]):
    """The input of a job: its value, its share of a group's size, and its kind, equal within a group."""

    job: Job
    value: Given
    size: float
    kind: Any = None


def convert(
    jobs: Sequence[Job],
    read: Callable[[Job], Loaded[Given]],
    work: Callable[[list[Given]], Sequence[Made]],
    write: Callable[[Job, Made], float],
    group_size: float,
    unit: str = "file",
) -> int:
    """Convert all jobs and return the exit code: 1 if some of several failed, each with a line on stderr.

    read: raises for a job that cannot be done. work: the results of one group's values. write: returns the seconds of
    speech. group_size: the most that a group's sizes add up to, unless one input alone is larger.

    The error of a single job is raised.
    """
    done, seconds, start = 0, 0.0, time.perf_counter()
    with progress(unit, len(jobs)) as bar:

        def fail(job: Job, error: Exception) -> None:
            if len(jobs) == 1 or isinstance(error, BrokenPipeError):
                raise error
            _tell(f"vokens: error: {_blame(job, error)}")
            bar.update()

        groups: Iterator[list[Loaded[Given]]] = _groups(_read_all(jobs, read, fail), group_size)
        while group := next(groups, None):
            try:
                results = work([item.value for item in group])
            except VokensError as error:
                if len(group) == 1:
                    fail(group[0].job, error)
                else:  # one of them is at fault: each alone
                    groups = chain([[item] for item in group], groups)
                continue
            for item, result in zip(group, results, strict=True):
                try:
                    seconds += write(item.job, result)
                except (VokensError, OSError) as error:
                    fail(item.job, error)
                else:
                    done += 1
                    bar.update()
    if len(jobs) > 1 or jobs[0].target is not None:
        what = f"wrote {jobs[0].target}" if len(jobs) == 1 else f"{done} of {len(jobs)} done"
        taken = time.perf_counter() - start
        print(f"vokens: {what}, {seconds:.1f} s of speech in {taken:.1f} s", file=sys.stderr)
    return 0 if done == len(jobs) else 1


def group_seconds(batch_seconds: float) -> float:
    """Seconds of a group, for batches of so many. Raises ConfigError."""
    if not batch_seconds > 0:
        raise ConfigError(f"--batch-seconds {batch_seconds}: give seconds of audio, above 0")
    return _GROUP_BATCHES * batch_seconds


def progress(unit: str, total: int | None = None) -> tqdm:
    """A progress bar on a terminal; in a log a line every ten seconds, and none within three seconds."""
    if sys.stderr.isatty():
        return tqdm(total=total, unit=unit, file=sys.stderr, leave=False)
    line = f"{{n_fmt}} of {{total_fmt}} {unit}s, {{elapsed}} passed, {{remaining}} left\n"
    return tqdm(total=total, file=sys.stderr, leave=False, delay=3.0, mininterval=10.0, bar_format=line)


def _tell(text: str) -> None:
    """Print a line on stderr, above the progress bar if there is one."""
    if sys.stderr.isatty():
        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)


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
    """Consecutive items of one kind with sizes of at most `limit` together; a larger item is a group of its own."""
    group: list[Loaded[Given]] = []
    for item in items:
        total = item.size + sum(other.size for other in group)
        if group and (group[0].kind != item.kind or total > limit):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
