"""From results per file to one line per codec: means, pooled word error, rates; and the use of codebooks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vokens.bench.metrics import codebook_use
from vokens.tokens import Tokens

Result = dict[str, Any]
_MEANS = ("stoi", "estoi", "pesq", "si-sdr", "mel", "speaker")
_COLUMNS = {  # key of a row -> heading, digits after the point
    "files": ("files", 0),
    "kbps": ("kbit/s", 2),
    "stoi": ("STOI", 3),
    "estoi": ("ESTOI", 3),
    "pesq": ("PESQ-WB", 2),
    "si-sdr": ("SI-SDR dB", 1),
    "mel": ("mel distance", 3),
    "speaker": ("speaker sim.", 3),
    "wer": ("WER %", 1),
    "rtf": ("RTF", 3),
}


def summarise(results: Sequence[Result], rows: Sequence[str], tokens: Sequence[Tokens]) -> Result:
    """{"rows": one dict per row, in order, "codebooks": one dict per codebook}."""
    return {
        "rows": [_row(row, [result for result in results if result["row"] == row]) for row in rows],
        "codebooks": _codebooks(tokens),
    }


def _row(row: str, results: Sequence[Result]) -> Result:
    """Means over files, and how many files have no value; rates and word error are sums over sums."""
    seconds = sum(result["seconds"] for result in results)
    line: Result = {"row": row, "files": len(results), "seconds": round(seconds, 3), "undefined": {}}
    if not results:
        return line
    line["kbps"] = round(sum(result["bits"] for result in results) / seconds / 1000, 4)
    for name in _MEANS:
        if name not in results[0]:
            continue
        values = [result[name] for result in results if result.get(name) is not None]
        line[name] = round(float(np.mean(values)), 4) if values else None
        if len(values) < len(results):
            line["undefined"][name] = len(results) - len(values)
    words = sum(result.get("words", 0) for result in results)
    if words:
        edits = sum(result.get("edits", 0) for result in results)
        line |= {"wer": round(100 * edits / words, 2), "words": words, "edits": edits}
    line["rtf"] = round(sum(result["compute_seconds"] for result in results) / seconds, 4)
    return line


def _codebooks(tokens: Sequence[Tokens]) -> list[Result]:
    if not tokens:
        return []
    lines = []
    for number, size in enumerate(tokens[0].codebook_sizes):
        codes = np.concatenate([item.codes[0, number].numpy() for item in tokens])
        share, bits = codebook_use(codes, size)
        line = {"codebook": number + 1, "size": size, "frames": len(codes)}
        lines.append(line | {"used": round(share, 4), "entropy_bits": round(bits, 4)})
    return lines


def table(summary: Result) -> str:
    """The summary as Markdown: rows, codebooks, and what could not be measured."""
    columns = [key for key in _COLUMNS if any(row.get(key) is not None for row in summary["rows"])]
    lines = [["codec", *(_COLUMNS[key][0] for key in columns)]]
    for row in summary["rows"]:
        values = [(row.get(key), _COLUMNS[key][1]) for key in columns]
        lines.append(
            [row["row"], *("–" if value is None else f"{value:.{digits}f}" for value, digits in values)]
        )
    text = _markdown(lines)
    if summary["recogniser"]:
        text += f"\nWER: {summary['recogniser']}, greedy; definitions: docs/metrics.md.\n"
    for row in summary["rows"]:
        for name, count in row["undefined"].items():
            text += f"\n{row['row']}: {name} has no finite value for {count} of {row['files']} files.\n"
    if summary["codebooks"]:
        keys = ("codebook", "size", "frames", "used", "entropy_bits")
        text += "\n" + _markdown(
            [list(keys)] + [[str(line[key]) for key in keys] for line in summary["codebooks"]]
        )
    for name, reason in summary["notes"].items():
        text += f"\n{name}: not measured. {reason}\n"
    if summary["failed"]:
        text += f"\n{summary['failed']} files failed.\n"
    return text


def _markdown(lines: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |\n" for line in lines)
    rule = "|---" + "|---:" * (len(lines[0]) - 1) + "|\n"
    return head + rule + "".join(body)
