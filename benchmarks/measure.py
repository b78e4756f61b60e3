"""What the benchmarks share: best times, the processor and its peak, counted operations, one row, one table.

Every script prints a Markdown table whose rows say the product in use (`vokens.nn.product`), how many times as fast as
the package ours is, and which share of the processor's peak it reaches: the operations of ours, counted by torch, over
the rate of a large matrix product through the best library, measured in the same run.
"""

import argparse
import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vokens.errors import ConfigError
from vokens.nn import product

FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
COLUMNS = ("case", "product", "theirs (s)", "ours (s)", "faster", "of real time", "of the peak", "agreement")


@dataclass(frozen=True)
class Row:
    """One line: seconds of the package and of ours, of the audio; gflop of ours; what agrees and what is to be said."""

    case: str
    product: str
    theirs: float | None
    ours: float
    audio: float | None
    gflop: float | None
    note: str


clock = time.perf_counter  # `--cpu-time` makes it time.process_time


def best(call: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """Result and least time in seconds: other programs only ever add to it."""
    result, least = None, float("inf")
    for _ in range(repeats):
        start = clock()
        result = call()
        least = min(least, clock() - start)
    return result, least


def processor() -> dict[str, Any]:
    """Name and instructions that matter for products of matrices, of Linux; elsewhere what platform says."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    facts = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    flags = facts.get("flags", "").split()
    return {
        "name": facts.get("model name") or platform.processor() or platform.machine(),
        "features": [name for name in FEATURES if name in flags],
    }


def peak(dtype: torch.dtype = torch.float32, seconds: float = 1.5) -> tuple[float, str]:
    """GFLOP per second of a product of 2048 x 2048 matrices, and the library that reached it."""
    size = 2048
    x, weight = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    found = []
    for name in product.NAMES:
        with contextlib.suppress(ConfigError), product.using(name), torch.inference_mode():
            once = best(lambda: product.linear(x, weight), 2)[1]
            least = best(lambda: product.linear(x, weight), max(3, int(seconds / once)))[1]
            found.append((2e-9 * size**3 / least, name))
    return max(found)


def gflop(call: Callable[[], Any]) -> float:
    """Operations of products, convolutions and attention in one call, in 10^9; an LSTM's products count as such."""

    def recurrent(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
        (steps, rows, width), gates = x, weight[0]  # four gates of a state of gates / 4
        return 2 * steps * rows * gates * (width + gates // 4)

    counted: Any = {torch.ops.aten.mkldnn_rnn_layer: recurrent}
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # the counter sees its own thread alone, and an LSTM's directions run side by side
    with product.using("torch"), FlopCounterMode(display=False, custom_mapping=counted) as counter:
        call()
    torch.set_num_threads(threads)
    return counter.get_total_flops() / 1e9


def options(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with what all scripts accept."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2, help="of each call; the least time counts")
    parser.add_argument(
        "--product", nargs="+", choices=product.NAMES, help="of float32 matrices (default: this processor's)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of ours")
    parser.add_argument("--quick", action="store_true", help="small or short, each call once: does it run?")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count this process's CPU time: on a shared machine fair, and on one thread the wall time of an idle one",
    )
    parser.add_argument("--json", type=Path, help="file for the facts and rows")
    parser.set_defaults(**defaults)
    return parser


class Report:
    """The table of one run: printed row by row, and written as JSON at the end."""

    def __init__(self, args: argparse.Namespace, against: str) -> None:
        global clock
        torch.set_num_threads(args.threads)
        clock = time.process_time if args.cpu_time else time.perf_counter
        if args.cpu_time and args.threads > 1:
            raise SystemExit(
                f"--cpu-time with {args.threads} threads counts those that wait: give --threads 1"
            )
        self.file, self.repeats = args.json, 1 if args.quick else args.repeats
        self.products: Sequence[str] = args.product or [product.backend()]
        self.dtype: torch.dtype = getattr(torch, args.dtype)
        self.peak, library = peak(self.dtype, 0.2 if args.quick else 1.5)
        self.rows: list[Row] = []
        self.facts = {
            "against": against,
            "processor": processor(),
            "threads": args.threads,
            "clock": clock.__name__,
            "dtype": args.dtype,
            "torch": torch.__version__,
            "peak": self.peak,
            "peak_by": library,
        }
        cpu = self.facts["processor"]
        print(
            f"vokens beside {against}; {cpu['name']} ({' '.join(cpu['features'])}), {args.threads} threads, ours in "
            f"{args.dtype}, torch {torch.__version__}, {clock.__name__}; peak {self.peak:.0f} GFLOP/s by {library}\n"
        )
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)

    def each_product(self) -> Iterator[str]:
        """Names of the products asked for, each in use while it is the turn."""
        for name in self.products:
            with product.using(name):
                yield name

    def add(
        self,
        case: str,
        ours: float,
        theirs: float | None = None,
        *,
        audio: float | None = None,
        gflop: float | None = None,
        note: str = "",
    ) -> None:
        row = Row(case, product.backend(), theirs, ours, audio, gflop, note)
        self.rows.append(row)
        print(self.line(row), flush=True)
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            found = {"facts": self.facts, "rows": [asdict(row) for row in self.rows]}
            self.file.write_text(json.dumps(found, indent=2) + "\n")

    def line(self, row: Row) -> str:
        cells = [
            row.case,
            row.product,
            "" if row.theirs is None else f"{row.theirs:.4g}",
            f"{row.ours:.4g}",
            "" if row.theirs is None else f"{row.theirs / row.ours:.2f}",
            "" if not row.audio else f"{row.ours / row.audio:.3g}",
            "" if not row.gflop else f"{row.gflop / row.ours / self.peak:.0%}",
            row.note,
        ]
        return f"| {' | '.join(cells)} |"
