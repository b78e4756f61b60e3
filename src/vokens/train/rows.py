"""Caches of training: ragged rows of all recordings (samples, teacher features, tokens, mels, voices) on disk.

An index (json) names the file of rows that belongs to it and, for each recording, the size and time of the file that
its rows were computed from. Changed files are computed again, failed ones retried, the rest copied.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vokens.atomic import atomic_write
from vokens.errors import VokensError
from vokens.train.config import DataConfig

Fact = list[int] | None  # size in bytes and mtime in ns of a file; None for one that gave no rows
NAMED = 10  # failures that are shown; the index names all


class Rows:
    """A ragged array on disk: one flat file of fixed-width rows, and where each recording's rows begin.

    Attributes:
        offsets: (recordings + 1,). facts: size and mtime of each recording's file when its rows were computed.
        failures: error messages of the recordings without rows. digest: of the files' paths.
    """

    def __init__(self, index: Path) -> None:
        self.index, content = index, json.loads(index.read_text())
        self.digest = index.stem.rpartition("-")[2]
        self.offsets = np.asarray(content["offsets"])
        self.facts: list[Fact] = content["facts"]
        self.failures: dict[str, str] = content["failures"]
        self.file = index.with_name(content["file"])
        shape, dtype = (int(self.offsets[-1]), content["width"]), np.dtype(content["dtype"])
        # An empty file cannot be mapped.
        self.data = np.memmap(self.file, dtype, "r", shape=shape) if shape[0] else np.zeros(shape, dtype)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, clip: int) -> np.ndarray:
        return self.data[self.offsets[clip] : self.offsets[clip + 1]]


def cached_rows(
    data: DataConfig,
    name: str,
    source: Sequence[Path] | Rows,
    compute: Callable[[Any], np.ndarray],
    what: str,
) -> Rows:
    """Rows of `compute` over all files, computed once for as long as each file keeps its size and time.

    Args:
        name: of the cache, by content and weights. what: the text of the progress bar.
        source: the files, or rows computed from them; recordings without rows there get none here.
        compute: rows (n, width) of a file's path, or of its rows. A file that it cannot read (VokensError) gets no
            rows, is retried in every run, and named in every run in which it fails.
    """
    folder = Path(data.cache)
    folder.mkdir(parents=True, exist_ok=True)
    derived = isinstance(source, Rows)
    digest = (
        source.digest if derived else hashlib.sha256("\n".join(map(str, source)).encode()).hexdigest()[:12]
    )
    index = folder / f"{name.replace('/', '-')}-{digest}.json"
    facts = source.facts if derived else list(map(_fact, source))
    old = _open(index)
    known: Sequence[Fact] = [None] * len(facts) if old is None else old.facts
    stale = [n for n, fact in enumerate(facts) if (not derived if fact is None else fact != known[n])]
    rank = os.environ.get("RANK", "0")  # of torchrun: rank 0 retries, the others take the cache that is there
    retried = (
        old is not None
        and all(known[n] is None for n in stale)
        and not any(before is not None and before != now for now, before in zip(facts, known, strict=True))
    )
    if old is not None and retried and (not stale or rank != "0"):
        return old

    def attempt(number: int) -> np.ndarray | VokensError:
        try:
            return compute(source[number])
        except VokensError as error:
            return error

    with ThreadPoolExecutor(data.workers) as pool:
        shown = tqdm(pool.map(attempt, stale), what, len(stale), unit="clip", disable=retried)
        results: Iterator[np.ndarray | VokensError] = iter(shown)
        if old is not None and retried:
            first = list(_until_one_succeeds(results))
            if isinstance(first[-1], VokensError):
                return _named(old, what)
            results = itertools.chain(first, results)
        fresh = dict.fromkeys(stale)
        rows = (
            next(results) if n in fresh else old[n] if old is not None and facts[n] is not None else None
            for n in range(len(facts))
        )
        return _named(_write(index, old, facts, rows), what)


def _fact(path: Path) -> Fact:
    try:
        status = path.stat()
    except OSError:
        return None  # reading it will say why
    return [status.st_size, status.st_mtime_ns]


def _open(index: Path) -> Rows | None:
    """The existing cache; None where there is none, or one that an older version or a crash left."""
    try:
        return Rows(index)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _until_one_succeeds(results: Iterator[Any]) -> Iterator[Any]:
    for result in results:
        yield result
        if not isinstance(result, VokensError):
            return


def _write(
    index: Path, old: Rows | None, facts: Sequence[Fact], computed: Iterator[np.ndarray | VokensError | None]
) -> Rows:
    """Write all rows in order. The index is replaced once its rows are complete, then older rows are removed."""
    offsets, kept, failures, width, dtype = [0], list(facts), {}, 1, "int16"
    version = json.dumps([facts, old.file.name if old else ""])
    file = index.with_name(f"{index.stem}.{hashlib.sha256(version.encode()).hexdigest()[:8]}.bin")
    with atomic_write(file) as partial, partial.open("wb") as out:
        for number, rows in enumerate(computed):
            if isinstance(rows, np.ndarray):
                width, dtype = rows.shape[1], str(rows.dtype)
                out.write(np.ascontiguousarray(rows).data)
            else:
                kept[number] = None
            if isinstance(rows, VokensError):
                failures[str(number)] = str(rows)
            offsets.append(offsets[-1] + (len(rows) if isinstance(rows, np.ndarray) else 0))
    content = {"width": width, "dtype": dtype, "offsets": offsets, "file": file.name}
    with atomic_write(index) as partial:
        partial.write_text(json.dumps(content | {"failures": failures, "facts": kept}))
    for older in [index.with_suffix(".bin"), *([old.file] if old else [])]:
        older.unlink(missing_ok=True)
    return Rows(index)


def _named(rows: Rows, what: str) -> Rows:
    """Report the recordings without rows, and return the rows."""
    if rows.failures:
        reasons = list(rows.failures.values())
        more = [f"and {len(reasons) - NAMED} more, all named in {rows.index}"] * (len(reasons) > NAMED)
        head = f"{what}: {len(reasons)} of {len(rows)} recordings cannot be read and are left out"
        tqdm.write("\n  ".join([head, *reasons[:NAMED], *more]))
    return rows
