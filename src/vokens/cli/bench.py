"""Measure tokenizers against each other on the same files (docs/metrics.md).

vokens bench reconstruct --models mini --data corpus/manifest.jsonl --split test --out results/
"""

from importlib import import_module
from typing import Annotated, Any, Union

import tyro

from vokens.bench import BENCHES

# One subcommand for each part of the benchmark.
Arguments: Any = Union[  # noqa: UP007
    tuple(
        Annotated[bench.options_class(), tyro.conf.subcommand(name, description=bench.help)]
        for name, bench in BENCHES.items()
    )
]


def run(arguments: Any) -> int:
    """Run the part that was asked for; results and tables go to --out, tables also to standard output."""
    for bench in BENCHES.values():
        if type(arguments) is bench.options_class():
            return import_module(bench.module).run(arguments)
    raise TypeError(f"{type(arguments).__name__} belongs to no part of the benchmark")
