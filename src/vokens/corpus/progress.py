"""Progress of a run: a line on a terminal, occasional lines in a log, and a metrics file.

Times and rates are of this process; finished shards are counted in the folder, including those of other workers.
"""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from vokens.atomic import atomic_write
from vokens.corpus.decode import Decoder
from vokens.corpus.health import Drift
from vokens.corpus.run import Receipt, Run, finished, receipt_path
from vokens.corpus.shard import ShardTiming
from vokens.errors import ConfigError

METRICS = (".json", ".prom")
_TERMINAL, _LOG, _FILE = 0.2, 30.0, 5.0  # seconds between lines, and between updates of the metrics file
_SAMPLE = 50  # earlier receipts as reference for drift
_MEANING = {
    "shards_done": "shards with a receipt, of all workers",
    "shards_total": "shards of the run",
    "utterances_done": "utterances of those shards",
    "utterances_total": "utterances of the run",
    "hours": "hours of audio encoded by this process",
    "x_real_time": "seconds of audio per second of wall time, this process",
    "eta_seconds": "seconds until the end at the current rate",
    "queue_seconds": "seconds of decoded audio in the queue",
    "decode_wait_seconds": "seconds that the model waited for audio",
    "model_seconds": "seconds in the model",
    "write_seconds": "seconds writing shards",
    "padding": "share of padding in the batches",
    "failures": "utterances that this process put in quarantine",
    "entropy": "bits per token of the first codebook, last shard",
    "drifting_shards": "shards of this process whose tokens differ from the run's",
}


class Progress:
    """Progress display of a run; a context manager, updated by `beat` and `shard`.

    show: write to standard error (one of several processes does). metrics: a .json or .prom file to keep up to date.
    """

    def __init__(self, run: Run, decoder: Decoder, *, show: bool = True, metrics: Path | None = None) -> None:
        check_metrics(metrics)
        self.run = run
        self.decoder = decoder
        self.timing = ShardTiming(beat=self.beat)
        self._show, self._metrics = show, metrics
        self._terminal = sys.stderr.isatty()
        self._drift = Drift()
        self._failures, self._drifting, self._entropy = 0, 0, 0.0
        self._begun = self._told = self._wrote = time.monotonic()
        self._done = finished(run.folder)
        self._first = self._count(self._done)
        self._looked, self._look_took = self._begun, 0.0
        for shard in sorted(self._done)[:: max(1, len(self._done) // _SAMPLE)]:
            with suppress(FileNotFoundError):  # removed by another process with --retry-failed
                receipt = run.receipt(shard)
                self._drift.check(receipt.health["histogram"], receipt.utterances)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._print("", end="")
        if self._metrics is not None:
            self._write(self._metrics)

    def shard(self, receipt: Receipt) -> None:
        """A shard is done."""
        self._done.add(receipt.shard)
        self._failures += receipt.failures
        if receipt.utterances:
            self._entropy = receipt.health["entropy"][0]
            distance = self._drift.check(receipt.health["histogram"], receipt.utterances)
            if distance is not None:
                self._drifting += 1
                self._print(
                    f"vokens: warning: the tokens of shard {receipt.shard} differ from the run's by {distance:.2f} "
                    f"bits (0 to 1): other speech, or damaged audio? See {receipt_path(self.run.folder, receipt.shard)}"
                )
        self.beat()

    def beat(self) -> None:
        """Update whatever is due."""
        now = time.monotonic()
        if now - self._looked > max(10.0, 50 * self._look_took):  # at most 2 % of the time
            self._done |= finished(self.run.folder)
            self._looked, self._look_took = now, time.monotonic() - now
        if self._show and now - self._told > (_TERMINAL if self._terminal else _LOG):
            self._told = now
            self._print(self.line(), end="" if self._terminal else "\n")
        if self._metrics is not None and now - self._wrote > _FILE:
            self._wrote = now
            self._write(self._metrics)

    def line(self) -> str:
        """The state in one line."""
        state = self.state()
        eta = state["eta_seconds"]
        return (
            f"vokens: {state['shards_done']} of {state['shards_total']} shards, {state['hours']:.2f} h here, "
            f"{state['x_real_time']:.1f} x real time, {'?' if eta is None else _span(eta)} left, "
            f"{state['failures']} failed"
        )

    def state(self) -> dict[str, Any]:
        """The figures, by the names of the metrics file."""
        timing, elapsed = self.timing, max(1e-9, time.monotonic() - self._begun)
        utterances, total = self._count(self._done), int(self.run.plan.counts.sum())
        rate = (utterances - self._first) / elapsed
        return {
            "shards_done": len(self._done),
            "shards_total": len(self.run),
            "utterances_done": utterances,
            "utterances_total": total,
            "hours": round(timing.audio / 3600, 4),
            "x_real_time": round(timing.audio / elapsed, 2),
            "eta_seconds": round((total - utterances) / rate, 1) if rate else None,
            "queue_seconds": round(self.decoder.ready_seconds, 1),
            "decode_wait_seconds": round(timing.decode, 2),
            "model_seconds": round(timing.model, 2),
            "write_seconds": round(timing.write, 2),
            "padding": round(1 - timing.audio / timing.padded, 4) if timing.padded else 0.0,
            "failures": self._failures,
            "entropy": self._entropy,
            "drifting_shards": self._drifting,
        }

    def _count(self, shards: set[int]) -> int:
        return int(self.run.plan.counts[np.fromiter(shards, np.int64, len(shards))].sum())

    def _print(self, text: str, end: str = "\n") -> None:
        if self._show:
            print(f"\r\x1b[K{text}" if self._terminal else text, end=end, file=sys.stderr, flush=True)

    def _write(self, path: Path) -> None:
        state = self.state()
        text = json.dumps(state, indent=2) + "\n" if path.suffix == ".json" else prometheus(state)
        with atomic_write(path) as partial:
            partial.write_text(text)


def check_metrics(path: Path | None) -> None:
    """Raise ConfigError for a metrics file that cannot be written."""
    if path is not None and path.suffix not in METRICS:
        raise ConfigError(f"--metrics {path}: end its name in .json, or in .prom for Prometheus text")
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"--metrics {path}: there is no folder {path.parent}; make it")


def prometheus(state: dict[str, Any]) -> str:
    """The figures in Prometheus' text format, as gauges; unknown ones are left out."""
    lines = []
    for name, value in state.items():
        if value is not None:
            metric = f"vokens_extract_{name}"
            lines += [f"# HELP {metric} {_MEANING[name]}", f"# TYPE {metric} gauge", f"{metric} {value}"]
    return "\n".join(lines) + "\n"


def _span(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return (
        f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    )
