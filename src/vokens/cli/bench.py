"""Measure tokenizers against each other on the same files (docs/jobs/metrics.md).

vokens bench reconstruct --models mini --data corpus/manifest.jsonl --split test --out results/
"""

from functools import reduce
from operator import or_
from typing import Annotated, Any

import tyro

from vokens.bench import BENCHES, Bench


def _subcommand(name: str, bench: Bench) -> Any:
    options: Any = bench.options_class()
    return Annotated[options, tyro.conf.subcommand(name, description=bench.help)]


Arguments: Any = reduce(or_, [_subcommand(name, bench) for name, bench in BENCHES.items()])


def run(arguments: Any) -> int:
    """Run the selected part; results and tables go to --out, tables also to standard output."""
    for bench in BENCHES.values():
        if type(arguments) is bench.options_class():
            return bench.run(arguments)
    raise TypeError(f"{type(arguments).__name__} belongs to no part of the benchmark")
