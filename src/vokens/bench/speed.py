"""Speed and memory: times real time of encoding and decoding, by length and batch, in a process that does nothing else.

A codec is loaded in a process of its own, whose memory is then that of the codec and its work. Times are those of the
machine at that moment: the only numbers of the benchmark that are not the same twice.
"""

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vokens.audio import load
from vokens.bench.codecs import labels, open_codec
from vokens.bench.definitions import single
from vokens.bench.items import Item, find_items
from vokens.bench.options import Speed, split_list
from vokens.bench.results import Line, Results
from vokens.errors import ConfigError
from vokens.models.codec import Codec

RATE = 16000
MIB = 2**20


def run(options: Speed) -> int:
    """Measure, and write the results."""
    items = find_items(options)
    cases = [
        (seconds, batch) for seconds in _numbers(options.durations) for batch in _numbers(options.batches)
    ]
    rows = []
    with Results(options, "speed", threads=options.threads, repeats=options.repeats) as results:
        for label, source in labels(options).items():
            lines = {}
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, spawn, _start, (source, options, items)) as pool:
                loaded = pool.submit(_facts).result()
                fingerprint = str(loaded.pop("fingerprint"))
                for seconds, batch in tqdm(cases, desc=label, disable=None):
                    id = f"{seconds:g} s × {batch:g}"
                    line = results.get(label, id, fingerprint)
                    if line is None:
                        found = pool.submit(_time, seconds, int(batch)).result()
                        line = results.add(label, label, id, fingerprint, **found)
                    lines[id] = line
            rows.append(summary_row(label, fingerprint, loaded, lines, len(items)))
        return results.finish(rows)


def summary_row(label: str, fingerprint: str, loaded: Line, lines: dict[str, Line], files: int) -> Line:
    """A row of results: of each length and batch, and the memory; of `files` recordings, joined."""
    found = {"memory-load": single("memory-load", loaded["load_bytes"] / MIB, files)}
    for kind in ("encode", "decode"):
        for id, line in lines.items():
            times = line[f"{kind}_seconds"]
            if times:
                mode = f"median of {len(times)}, wall clock"
                found[f"{kind}/{id}"] = single(kind, line["seconds"] / statistics.median(times), files, mode)
    for kind in ("encode", "decode"):
        for id, line in lines.items():
            if line[f"{kind}_bytes"] is not None:
                found[f"memory-{kind}/{id}"] = single(f"memory-{kind}", line[f"{kind}_bytes"] / MIB, files)
    seconds = sum(line["seconds"] for line in lines.values())
    row = {"row": label, "model": label, "fingerprint": fingerprint, "files": files}
    return row | {"seconds": seconds, "metric": found}


class Bench:
    """The codec of one process."""

    def __init__(self, source: str, options: Speed, items: list[Item]) -> None:
        torch.set_num_threads(options.threads)
        self._device = torch.device(options.device)
        before = memory(self._device)
        self.codec: Codec = open_codec(source, options)
        self._loaded = memory(self._device)
        self.load_bytes = self._loaded - before
        self._options, self._items = options, items

    def time(self, seconds: float, batch: int) -> Line:
        """Wall seconds of each repeat, after one that does not count, and bytes above those of the loaded codec."""
        waves = self._waves(seconds, batch)
        found: Line = {"seconds": seconds * batch}
        found["encode_seconds"], found["encode_bytes"] = self._repeat(
            lambda: self.codec.encode(waves, sample_rate=RATE)
        )
        found["decode_seconds"], found["decode_bytes"] = [], None
        if self.codec.decodes:
            tokens = self.codec.encode(waves, sample_rate=RATE)
            found["decode_seconds"], found["decode_bytes"] = self._repeat(lambda: self.codec.decode(tokens))
        return found

    def _repeat(self, work: Callable[[], object]) -> tuple[list[float], int]:
        times = []
        _forget_peak(self._device)
        work()
        for _ in range(self._options.repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return times, max(0, peak_memory(self._device) - self._loaded)

    def _waves(self, seconds: float, batch: int) -> list[np.ndarray]:
        """`batch` waves of `seconds` at 16 kHz: the recordings one after another, again from the first if need be."""
        needed, held = round(seconds * RATE) * batch, 0
        parts: list[np.ndarray] = []
        while held < needed:
            for item in self._items:
                parts.append(load(item.path, RATE)[0])
                held += len(parts[-1])
                if held >= needed:
                    break
        return list(np.concatenate(parts)[:needed].reshape(batch, -1))


def memory(device: torch.device) -> int:
    """Bytes of memory: of this process (resident), or of its tensors on a CUDA device."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory(device)  # elsewhere than on Linux, the most so far


def peak_memory(device: torch.device) -> int:
    """The most bytes that it had, since `_forget_peak` where that can be said."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # proc(5): resets the peak; where it cannot, the peak is older


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in split_list(text)]
    except ValueError as error:
        raise ConfigError(f"{text!r} was given: numbers by commas are accepted, such as 1,5,20") from error


_bench: Bench  # of this process, set by `_start`


def _start(source: str, options: Speed, items: list[Item]) -> None:
    global _bench
    _bench = Bench(source, options, items)


def _facts() -> Line:
    return {"fingerprint": _bench.codec.fingerprint, "load_bytes": _bench.load_bytes}


def _time(seconds: float, batch: int) -> Line:
    return _bench.time(seconds, batch)
