"""Measure codecs against each other on the same files.

vokens bench reconstruct --model mini --data corpus/manifest.jsonl --split test --out results/
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from vokens.bench.options import Reconstruct


@dataclass(frozen=True)
class Arguments:
    benchmark: Annotated[tyro.conf.Positional[Literal["reconstruct"]], tyro.conf.arg(help_behavior_hint="")]
    """reconstruct: how good is the resynthesis? (docs/metrics.md)"""
    options: Reconstruct


def run(arguments: Arguments) -> int:
    """Run the benchmark; results and table go to --out, the table also to standard output."""
    from vokens.bench.reconstruct import run as reconstruct

    return reconstruct(arguments.options)
