"""Common form of the results of all parts of the benchmark, read by the report.

FOLDER/<bench>.jsonl   one line per row and recording, written at once: {"row", "model", "id",
                       "fingerprint", and the measures}; a stopped run resumes after the last complete
                       line. A running process holds a lock on it.
FOLDER/<bench>.json    {"bench", "settings", "selection", "machine", "rows", "notes", "failed"}, written atomically.
                       settings: shared by all lines of the jsonl; other settings are refused.
                       selection: models and filters of the last run, which the rows describe.
                       rows: in the order given, [] until the first run ends; each is {"row": label, "model",
                       "fingerprint", "files", "seconds", "metric": {name: {"value": number or null, "unit",
                       "mode", "n": recordings, "ci": [low, high]}}}; ci is optional. Names and titles:
                       `vokens.bench.report.definitions`; the condition follows a slash
                       ("agreement/white/20dB").
                       notes: {name: reason why it was not measured}. failed: number of unusable recordings.
FOLDER/<bench>.md      the same as a table; a compact one is printed
FOLDER/tokens/<model>/<id>.vok   the tokens, shared by all parts
"""

import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from tqdm import tqdm

from vokens._version import __version__
from vokens.atomic import atomic_write
from vokens.bench.options import Measure
from vokens.bench.report.table import Line, compact, markdown
from vokens.data.items import Clip
from vokens.errors import ConfigError, VokensError

try:
    import fcntl
except ImportError:  # Windows: no lock between processes there
    fcntl = None

Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """A row of results: its label, and the model and weights that it is of."""

    label: str
    model: str
    fingerprint: str = ""

    def summary(self, files: int, seconds: float, metrics: Line) -> Line:
        """The row as the summary has it, over `files` recordings of `seconds` in all."""
        about = {"row": self.label, "model": self.model, "fingerprint": self.fingerprint, "files": files}
        return about | {"seconds": round(seconds, 3), "metric": metrics}


class Results:
    """The results of one part of the benchmark in one folder; a context manager that locks it.

    settings: everything that affects the figures besides models and recordings.
    """

    _file: IO[str]  # of lines, open inside `with`

    def __init__(self, options: Measure, bench: str, **settings: Any) -> None:
        self._options, self._bench = options, bench
        data = "the samples of the package" if options.data is None else str(options.data.resolve())
        common = {"vokens": __version__, "data": data, "device": options.device, "seed": options.seed}
        self._settings = json.loads(json.dumps(common | settings))  # as they are read again: no tuples
        self._lines: dict[tuple[str, str], Line] = {}
        self._notes: dict[str, str] = {}
        self._failed: dict[str, list[str]] = {}  # of recordings

    def __enter__(self) -> Self:
        self._options.out.mkdir(parents=True, exist_ok=True)
        self._file = self._path(".jsonl").open("a+", encoding="utf-8")
        try:
            _lock(self._file, self._path(".jsonl"))
            self._same_settings()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None and not self._lines:  # a run that failed before its first line leaves no files
            for suffix in (".jsonl", ".json"):
                self._path(suffix).unlink(missing_ok=True)
            with suppress(OSError):  # other parts have results there
                self._options.out.rmdir()
        self._file.close()  # releases the lock

    def get(self, row: Row, id: str) -> Line | None:
        """The line of a row and a recording, or None.

        Raises ConfigError where it was measured with other weights.
        """
        line = self._lines.get((row.label, id))
        if line is not None and line["fingerprint"] != row.fingerprint:
            raise ConfigError(
                f"{self._path('.jsonl')} holds results of {row.label} with weights "
                f"{line['fingerprint'] or 'unknown'}, now they are {row.fingerprint or 'unknown'}: give another --out"
            )
        return line

    def add(self, row: Row, id: str, **measures: Any) -> Line:
        """Write one line at once. NaN and infinity become null, floats are rounded to 6 decimals."""
        about = {"row": row.label, "model": row.model, "id": id, "fingerprint": row.fingerprint}
        line = about | _plain(measures)
        self._lines[row.label, id] = line
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        return line

    def measure(self, row: Row, items: Sequence[Clip], compute: Callable[[Clip], Line]) -> list[Line]:
        """The lines of a row, in the order of the usable recordings; those it lacks are measured and written."""

        def line(item: Clip) -> Line:
            return self.get(row, item.id) or self.add(row, item.id, **compute(item))

        return list(self.usable(items, line, row.label).values())

    def usable(self, items: Sequence[Clip], use: Callable[[Clip], Result], title: str) -> dict[str, Result]:
        """Results of `use` for each recording, by id; those that it cannot use are counted as failed.

        Raises the ConfigErrors of `use`, which would recur for every recording.
        """
        results: dict[str, Result] = {}
        for item in tqdm(items, desc=title, unit="file", disable=None):
            try:
                results[item.id] = use(item)
            except ConfigError:
                raise
            except VokensError as error:
                self.fail(item.id, error)
        return results

    def leave_out(self, notes: Mapping[str, str]) -> None:
        """Record and print what is not measured and why, in one line, grouped by reason."""
        self._notes |= notes
        reasons: dict[str, list[str]] = {}
        for name, reason in notes.items():
            reasons.setdefault(reason, []).append(name)
        if reasons:
            said = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
            print(f"vokens: {self._bench} leaves out: {said}", file=sys.stderr)

    def fail(self, id: str, reason: object) -> None:
        """Count an unusable recording, and print each of its reasons once."""
        reasons = self._failed.setdefault(id, [])
        if str(reason) not in reasons:
            reasons.append(str(reason))
            print(f"vokens: {id}: {reason}", file=sys.stderr)

    def finish(self, rows: Sequence[Line], **machine: Any) -> int:
        """Write the summary and its table, print a compact one; returns 1 if recordings failed, else 0."""
        options = self._options
        summary = {
            "bench": self._bench,
            "settings": self._settings,
            "selection": {"models": options.model_names()} | options.selection(),
            "machine": _machine(options) | machine,
            "rows": list(rows),
            "notes": self._notes,
            "failed": len(self._failed),
        }
        self._write(".json", json.dumps(summary, indent=2) + "\n")
        self._write(".md", markdown(summary))
        print(compact(summary, shutil.get_terminal_size().columns))
        print(f"{self._path('.md')} has exact modes; docs/jobs/metrics.md defines the figures")
        return 1 if self._failed else 0

    def _same_settings(self) -> None:
        """Raise ConfigError for results with other settings; else record the settings before the first line."""
        path = self._path(".json")
        if not path.is_file():
            begun = {"bench": self._bench, "settings": self._settings, "rows": []}
            self._write(".json", json.dumps(begun) + "\n")
            return
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
        differ = [key for key in self._settings if before.get(key) != self._settings[key]]
        if differ:
            was, now = ({key: values.get(key) for key in differ} for values in (before, self._settings))
            raise ConfigError(f"{self._options.out} holds results with {was}, not {now}: give another --out")

    def _read(self) -> None:
        """The existing lines; a truncated last one is removed."""
        self._file.seek(0)
        text = self._file.read()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._file.truncate(len(whole.encode()))
        self._lines = {(line["row"], line["id"]): line for line in map(json.loads, whole.splitlines())}

    def _path(self, suffix: str) -> Path:
        return self._options.out / f"{self._bench}{suffix}"

    def _write(self, suffix: str, text: str) -> None:
        with atomic_write(self._path(suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _lock(file: IO[str], path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(f"another process is writing {path}: wait for it, or give another --out") from error


def _machine(options: Measure) -> Line:
    import torch

    from vokens.nn.product import cpuinfo

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": cpuinfo("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(options.device) if "cuda" in options.device else options.device,
        "threads": options.threads,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(float(value), 6) if math.isfinite(value) else None
    return value
