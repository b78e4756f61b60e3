"""Report of a folder of results of `vokens bench`: tables, plots and players.

One self-contained HTML file, and the same figures as CSV, Markdown and JSON. All are deterministic: the same results
give the same bytes.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vokens.atomic import atomic_write
from vokens.bench import BENCHES
from vokens.bench.options import Report
from vokens.bench.report.html import page
from vokens.bench.report.samples import Sample, samples_of
from vokens.bench.report.table import markdown
from vokens.errors import ConfigError

Summary = dict[str, Any]
_COLUMNS = ("bench", "row", "model", "number", "value", "unit", "n", "low", "high", "mode")


def run(options: Report) -> int:
    """Write the page and its CSV, Markdown and JSON."""
    summaries = read_summaries(options.folder)
    out = options.out or options.folder / "report.html"
    samples: list[Sample] = []
    for summary in summaries:
        if summary["bench"] == "reconstruct" and options.samples:
            samples = list(samples_of(options.folder, summary, options.samples, options.seconds))
    out.parent.mkdir(parents=True, exist_ok=True)
    texts = {
        out: page(options.title, summaries, samples),
        out.with_suffix(".csv"): as_csv(summaries),
        out.with_suffix(".md"): "\n".join(markdown(summary) for summary in summaries),
        out.with_suffix(".json"): json.dumps({"results": summaries}, indent=2) + "\n",
    }
    for path, text in texts.items():
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB)")
    return 0


def read_summaries(folder: Path) -> list[Summary]:
    """Results in a folder, in the order of the benchmark's parts. Raises ConfigError where there are none."""
    summaries = []
    for name in BENCHES:
        path = folder / f"{name}.json"
        if not path.is_file():
            continue
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}; measure again into another folder") from error
        if summary.get("bench") == name and summary.get("rows"):
            summaries.append(summary)
    if not summaries:
        raise ConfigError(f"{folder} has no finished results: run `vokens bench reconstruct --out {folder}`")
    return summaries


def as_csv(summaries: Sequence[Summary]) -> str:
    """One line for each number of each row."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for summary in summaries:
        for row in summary["rows"]:
            for name, value in row["metric"].items():
                low, high = value.get("ci", (None, None))
                facts = (value["value"], value["unit"], value["n"], low, high, value["mode"])
                writer.writerow((summary["bench"], row["row"], row["model"], name, *facts))
    return buffer.getvalue()
