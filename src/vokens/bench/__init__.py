"""Benchmark of tokenizers: a table of parts that share options and one form of results.

A part is added by a line of `BENCHES`; results in the form of `vokens.bench.results` can be reported.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Bench:
    """A part of the benchmark.

    module: has `run(options) -> int`, the exit code. options: its options dataclass as "module:Class", in a module
    that does not import torch. `all` runs the parts with `vokens.bench.options.Measure` options.
    """

    module: str
    options: str
    help: str

    def options_class(self) -> type[Any]:
        """The dataclass of the options."""
        module, name = self.options.split(":")
        return getattr(import_module(module), name)


BENCHES = {
    "reconstruct": Bench(
        "vokens.bench.tasks.reconstruct", "vokens.bench.options:Reconstruct", "quality of the resynthesis"
    ),
    "tokens": Bench(
        "vokens.bench.tasks.tokens",
        "vokens.bench.options:TokenStatistics",
        "rates, use of codebooks, predictability",
    ),
    "robust": Bench(
        "vokens.bench.tasks.robust",
        "vokens.bench.options:Robust",
        "agreement of tokens when the audio changes",
    ),
    "speed": Bench("vokens.bench.tasks.speed", "vokens.bench.options:Speed", "times real time, and memory"),
    "slmtok": Bench(
        "vokens.bench.tasks.slmtok",
        "vokens.bench.options:SlmTok",
        "SLMTokBench: text content of tokens, words and voice after resynthesis",
    ),
    "report": Bench(
        "vokens.bench.report.page",
        "vokens.bench.options:Report",
        "a page of results: tables, plots, sounds",
    ),
    "all": Bench(
        "vokens.bench.tasks.every", "vokens.bench.options:Every", "several of these in turn, into one folder"
    ),
}
