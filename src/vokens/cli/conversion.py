"""Conversion of many files by one network: read, group, convert, write; a bad file does not stop the rest.

Consecutive inputs of one kind form groups of a few batches, so that the codec can batch similar lengths. Where a
group fails, its items are retried one by one.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from vokens.cli.jobs import Job
from vokens.errors import ConfigError, VokensError

Item = TypeVar("Item")
Given = TypeVar("Given")
Made = TypeVar("Made")
_GROUP_BATCHES = 8  # enough to sort by length and pad little; audio in memory: 8 minutes by default


@dataclass(frozen=True)
class Loaded(Generic[Given]):
    """An input as it was read: its value, its share of a group's size, and its kind, equal within a group."""

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
    """Convert all jobs as `convert_each` and return the exit code: 1 if some of several failed, each with a line on
    stderr. The error of a single job is raised."""
    start = time.perf_counter()
    with progress(unit, len(jobs)) as bar:

        def fail(job: Job, error: Exception) -> None:
            if len(jobs) == 1 or isinstance(error, BrokenPipeError):
                raise error
            _tell(f"vokens: error: {_blame(job, error)}")

        done, seconds = convert_each(jobs, read, work, write, group_size, fail, bar)
    if len(jobs) > 1 or jobs[0].target is not None:
        what = f"wrote {jobs[0].target}" if len(jobs) == 1 else f"{done} of {len(jobs)} done"
        taken = time.perf_counter() - start
        print(f"vokens: {what}, {seconds:.1f} s of speech in {taken:.1f} s", file=sys.stderr)
    return 0 if done == len(jobs) else 1


def convert_each(
    items: Iterable[Item],
    read: Callable[[Item], Loaded[Given]],
    work: Callable[[list[Given]], Sequence[Made]],
    write: Callable[[Item, Made], float],
    group_size: float,
    fail: Callable[[Item, Exception], None],
    bar: tqdm,
) -> tuple[int, float]:
    """Read, group, convert and write all items; returns how many succeeded, and their seconds of speech.

    read: raises for an item that cannot be done. work: the results of one group's values. write: returns the seconds of
    speech. group_size: the most that a group's sizes add up to, unless one input alone is larger. fail: told of each
    item that failed, and its error.
    """
    done, seconds = 0, 0.0

    def failed(item: Item, error: Exception) -> None:
        fail(item, error)
        bar.update()

    groups: Iterator[list[tuple[Item, Loaded[Given]]]] = _groups(_read_all(items, read, failed), group_size)
    while group := next(groups, None):
        try:
            results = work([loaded.value for _, loaded in group])
        except VokensError as error:
            if len(group) == 1:
                failed(group[0][0], error)
            else:  # one of them is at fault: each alone
                groups = chain([[pair] for pair in group], groups)
            continue
        for (item, _), result in zip(group, results, strict=True):
            try:
                seconds += write(item, result)
            except (VokensError, OSError) as error:
                failed(item, error)
            else:
                done += 1
                bar.update()
    return done, seconds


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
    message = str(error)
    return message if str(job.source) in message else f"{job.source}: {message}"


def _read_all(
    items: Iterable[Item], read: Callable[[Item], Loaded[Given]], failed: Callable[[Item, Exception], None]
) -> Iterator[tuple[Item, Loaded[Given]]]:
    for item in items:
        try:
            loaded = read(item)
        except (VokensError, OSError) as error:
            failed(item, error)
        else:
            yield item, loaded


def _groups(
    pairs: Iterator[tuple[Item, Loaded[Given]]], limit: float
) -> Iterator[list[tuple[Item, Loaded[Given]]]]:
    """Consecutive inputs of one kind with sizes of at most `limit` together; a larger one is a group of its own."""
    group: list[tuple[Item, Loaded[Given]]] = []
    for item, loaded in pairs:
        total = loaded.size + sum(other.size for _, other in group)
        if group and (group[0][1].kind != loaded.kind or total > limit):
            yield group
            group = []
        group.append((item, loaded))
    if group:
        yield group
