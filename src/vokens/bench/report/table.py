"""A summary of results as text: complete in Markdown, and compact within the width of a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vokens.bench.report.definitions import definition

Line = dict[str, Any]


def markdown(summary: Mapping[str, Any]) -> str:
    """A line per number with its unit and mode, a column per row of the results."""
    rows = summary["rows"]
    lines = [["number", "unit", "mode", *(row["row"] for row in rows)]]
    for name in _names(rows):
        known = definition(name)
        measures = [row["metric"].get(name) for row in rows]
        title = " ".join([known.title, *name.split("/")[1:]])
        mode = "; ".join(dict.fromkeys(value["mode"] for value in measures if value is not None))
        lines.append([title, known.unit, mode, *(_cell(row, name) for row in rows)])
    head, *body = (f"| {' | '.join(line)} |\n" for line in lines)
    text = f"# {summary['bench']}\n\n{head}|---|---|---{'|---:' * len(rows)}|\n{''.join(body)}"
    counts = ", ".join(f"{row['row']} {row['files']} ({row['seconds']:.0f} s)" for row in rows)
    text += f"\nRecordings: {counts}. In brackets: number of recordings, where not all."
    text += " Definitions: docs/jobs/metrics.md.\n"
    for name, reason in summary["notes"].items():
        text += f"\n{name}: not measured. {reason}\n"
    return text + (f"\n{summary['failed']} files failed.\n" if summary["failed"] else "")


def compact(summary: Mapping[str, Any], width: int) -> str:
    """Table of figures by rows of results; for figures with conditions, one table per row."""
    rows = summary["rows"]
    files, seconds = (max((row[name] for row in rows), default=0) for name in ("files", "seconds"))
    parts = [f"{summary['bench']}: {files} recording{'s' * (files != 1)}, {seconds:.0f} s of speech\n"]
    lines = [["", *(row["row"] for row in rows)]]
    for name in _names(rows):
        if "/" not in name:
            lines.append([f"{name} {definition(name).unit}", *(_cell(row, name) for row in rows)])
    parts += _blocks(lines, width) if len(lines) > 1 else []
    for row in rows:
        split = [name.partition("/") for name in row["metric"] if "/" in name]
        bases = list(dict.fromkeys(base for base, _, _ in split))
        lines = [[row["row"], *(f"{base} {definition(base).unit}".strip() for base in bases)]]
        for condition in dict.fromkeys(condition for _, _, condition in split):
            cells = (_cell(row, f"{base}/{condition}", "") for base in bases)
            lines.append([condition.replace("/", " "), *cells])
        parts += _blocks(lines, width) if bases else []
    return "\n".join(parts)


def _names(rows: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["metric"]))


def _cell(row: Line, name: str, absent: str = "–") -> str:
    value = row["metric"].get(name)
    if value is None or value["value"] is None:
        return absent if value is None else "–"
    count = f" ({value['n']})" if value["n"] < row["files"] else ""
    return f"{value['value']:.{definition(name).digits}f}{count}"


def _blocks(lines: list[list[str]], width: int) -> Iterator[str]:
    """A table split to fit the width, each part with the first column."""
    columns = [[cell.strip() for cell in column] for column in zip(*lines, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    first = 1
    while first < len(columns):
        last = first + 1
        while last < len(columns) and widths[0] + sum(w + 2 for w in widths[first : last + 1]) <= width:
            last += 1
        text = ""
        for i, name in enumerate(columns[0]):
            cells = [columns[k][i].rjust(widths[k]) for k in range(first, last)]
            if not any(map(str.strip, cells)):
                continue  # a condition without any of these figures
            text += "  ".join([name.ljust(widths[0]), *cells]).rstrip() + "\n"
        yield text
        first = last
