"""Benchmark of tokenizers: a table of parts that share options and one form of results.

A part is added by a line of `BENCHES`; results in the form of `vokens.bench.results` can be reported.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Bench:
    """A part of the benchmark.

    module: below `vokens.bench`, has `run(options) -> int`, the exit code. options: its dataclass in
    `vokens.bench.options`, which does not import torch. `all` runs the parts whose options are `Measure`.
    """

    module: str
    options: str
    help: str

    def options_class(self) -> type[Any]:
        """The dataclass of the options."""
        return getattr(import_module("vokens.bench.options"), self.options)

    def run(self, options: Any) -> int:
        """Run the part; returns its exit code."""
        return import_module(f"vokens.bench.{self.module}").run(options)


BENCHES = {
    "reconstruct": Bench("tasks.reconstruct", "Reconstruct", "quality of the resynthesis"),
    "tokens": Bench("tasks.tokens", "TokenStatistics", "rates, use of codebooks, predictability"),
    "robust": Bench("tasks.robust", "Robust", "agreement of tokens when the audio changes"),
    "speed": Bench("tasks.speed", "Speed", "times real time, and memory"),
    "slmtok": Bench(
        "tasks.slmtok", "SlmTok", "SLMTokBench: text content of tokens, words and voice after resynthesis"
    ),
    "report": Bench("report.page", "Report", "a page of results: tables, plots, sounds"),
    "all": Bench("tasks.every", "Every", "several of these in turn, into one folder"),
}
