"""Speed and memory: × real time of encoding and decoding, by length and batch, in a separate process.

Each codec has its own process, whose memory is that of the codec. Times are the only figures of the benchmark that are
not reproducible.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vokens.audio import load
from vokens.bench.options import Speed, split_list
from vokens.bench.report.definitions import single
from vokens.bench.report.table import Line
from vokens.bench.results import Results, Row
from vokens.bench.tasks.codecs import labels, open_codec
from vokens.bench.tasks.items import NoRecordings, find_items
from vokens.bench.tasks.processes import pool
from vokens.data.items import Clip
from vokens.errors import ConfigError, VokensError
from vokens.models.codec import Codec

RATE = 16000
MIB = 2**20


def run(options: Speed) -> int:
    """Measure and write the results."""
    items = find_items(options)
    durations, batches = _numbers(options.durations, 0.1), _numbers(options.batches, 1)
    cases = [(seconds, int(batch)) for seconds in durations for batch in batches]
    rows = []
    with Results(options, "speed", threads=options.threads, repeats=options.repeats) as results:
        speech, used = speech_of(items, max(seconds * batch for seconds, batch in cases), results)
        for label, source in labels(options).items():
            lines = {}
            with pool(1) as process:
                submit = process.submit
                fingerprint, load_bytes = submit(_open, source, options, speech).result()
                row = Row(label, label, fingerprint)
                for seconds, batch in tqdm(cases, desc=label, disable=None):
                    id = f"{seconds:g} s × {batch:g}"
                    known = results.get(row, id)
                    lines[id] = known or results.add(row, id, **submit(_time, seconds, batch).result())
            rows.append(summary_row(row, load_bytes, lines, used, len(speech) / RATE))
        return results.finish(rows)


def speech_of(items: list[Clip], seconds: float, results: Results) -> tuple[np.ndarray, int]:
    """Recordings at 16 kHz, concatenated (T,) up to `seconds`, and their number.

    Raises NoRecordings where none can be read.
    """
    waves: list[np.ndarray] = []
    for item in items:
        try:
            waves.append(load(item.path, RATE)[0])
        except VokensError as error:
            results.fail(item.id, error)
        if sum(map(len, waves)) >= seconds * RATE:
            break
    if not waves:
        raise NoRecordings(f"none of {len(items)} recordings can be read: give others as --data")
    return np.concatenate(waves), len(waves)


def summary_row(row: Row, load_bytes: int, lines: dict[str, Line], files: int, seconds: float) -> Line:
    """A row of results: speed of each length and batch, and memory; of `files` recordings of `seconds`, joined."""
    measures = {"memory-load": single("memory-load", load_bytes / MIB, files)}
    for kind in ("encode", "decode"):
        for id, line in lines.items():
            if times := line[f"{kind}_seconds"]:
                factor = line["seconds"] / statistics.median(times)
                mode = f"median of {len(times)}, wall clock"
                measures[f"{kind}/{id}"] = single(kind, factor, files, mode)
    for kind in ("encode", "decode"):
        for id, line in lines.items():
            if line[f"{kind}_bytes"] is not None:
                measures[f"memory-{kind}/{id}"] = single(f"memory-{kind}", line[f"{kind}_bytes"] / MIB, files)
    return row.summary(files, seconds, measures)


class Bench:
    """The codec of one process."""

    def __init__(self, source: str, options: Speed, speech: np.ndarray) -> None:
        torch.set_num_threads(options.threads)
        self._device = torch.device(options.device)
        before = memory(self._device)
        self.codec: Codec = open_codec(source, options)
        self._loaded = memory(self._device)
        self.load_bytes = self._loaded - before
        self._options, self._speech = options, speech

    def time(self, seconds: float, batch: int) -> Line:
        """Wall seconds of each repeat, after one warm-up, and bytes above those of the loaded codec."""
        waves = list(np.resize(self._speech, (batch, round(seconds * RATE))))  # repeated if needed
        line: Line = {"seconds": seconds * batch, "decode_seconds": [], "decode_bytes": None}
        encode = partial(self.codec.encode, waves, sample_rate=RATE)
        line["encode_seconds"], line["encode_bytes"] = self._repeat(encode)
        if self.codec.decodes:
            line["decode_seconds"], line["decode_bytes"] = self._repeat(partial(self.codec.decode, encode()))
        return line

    def _repeat(self, work: Callable[[], object]) -> tuple[list[float], int]:
        times = []
        _forget_peak(self._device)
        work()
        for _ in range(self._options.repeats):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return times, max(0, peak_memory(self._device) - self._loaded)


def memory(device: torch.device) -> int:
    """Bytes of memory: of this process (resident), or of its tensors on a CUDA device."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory(device)  # other systems than Linux: the peak so far


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes, since `_forget_peak` where supported."""
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
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak, if permitted


def _numbers(text: str, least: float) -> list[float]:
    with suppress(ValueError):
        numbers = [float(part) for part in split_list(text)]
        if numbers and all(least <= number < math.inf for number in numbers):
            return numbers
    raise ConfigError(f"{text!r} was given: give comma-separated numbers from {least:g}, such as 1,5,20")


_bench: Bench  # of this process, set by `_open`


def _open(source: str, options: Speed, speech: np.ndarray) -> tuple[str, int]:
    """Fingerprint of the codec, and bytes that loading it took."""
    global _bench
    _bench = Bench(source, options, speech)
    return _bench.codec.fingerprint, _bench.load_bytes


def _time(seconds: float, batch: int) -> Line:
    return _bench.time(seconds, batch)
