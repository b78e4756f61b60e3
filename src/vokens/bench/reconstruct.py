"""The reconstruction benchmark: every file through every codec, then all metrics of what comes out.

One worker measures one file at a time on one thread: it encodes once, decodes each range of codebooks, and
asks the judges. The parent appends a line per file and row to results.jsonl: a stopped run resumes from it.
"""

import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from tqdm import tqdm

from vokens import __version__
from vokens.atomic import atomic_write
from vokens.audio import load, resample
from vokens.bench import metrics
from vokens.bench.items import Item, find_items
from vokens.bench.judges import NotInstalled, find_judge
from vokens.bench.options import Reconstruct, split_list
from vokens.bench.peers import Peer, peer
from vokens.bench.recognise import Moonshine
from vokens.bench.speaker import SpeakerJudge
from vokens.bench.summary import summarise, table
from vokens.errors import ConfigError, MissingExtra, VokensError
from vokens.tokens import Tokens

RATE = metrics.SAMPLE_RATE
Result = dict[str, Any]


def run(options: Reconstruct) -> int:
    """Measure and write results.jsonl, tokens/*.vok, summary.json and table.md; 1 if some files failed."""
    items = find_items(options)
    peers, notes = find_peers(options)
    rows, facts = _codec_rows(options)
    rows += [peer.name for peer in peers]
    if not rows:
        raise ConfigError("nothing to measure: --model None and no peer that is installed")
    options.out.mkdir(parents=True, exist_ok=True)
    _same_settings(options, facts)
    results = _read_results(options.out / "results.jsonl")
    jobs = [(item, [row for row in rows if (row, item.id) not in results]) for item in items]
    failed = 0
    with (options.out / "results.jsonl").open("a", encoding="utf-8") as file:
        for item, outcome in _measure_all(options, [job for job in jobs if job[1]]):
            if isinstance(outcome, str):
                print(f"vokens: {item.id}: {outcome}", file=sys.stderr)
                failed += 1
                continue
            for result in outcome:
                results[result["row"], result["id"]] = result
                file.write(json.dumps(result) + "\n")
            file.flush()
    kept = [results[row, item.id] for row in rows for item in items if (row, item.id) in results]
    summary = facts | summarise(kept, rows, _all_tokens(options, items)) | {"failed": failed, "notes": notes}
    summary["machine"] = {"device": options.device, "threads": 1, "processes": options.processes}
    _write(options.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    _write(options.out / "table.md", table(summary))
    print(table(summary))
    return 1 if failed else 0


def find_peers(options: Reconstruct) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run here, and for the others the reason why not."""
    found, notes = [], {}
    for name in split_list(options.peers):
        try:
            found.append(peer(name, options.models))
        except (NotInstalled, MissingExtra) as error:
            notes[name] = str(error)
    return found, notes


@dataclass(frozen=True)
class Heard:
    """A resynthesis: wave (T,) at 16 kHz, the bits it took, the seconds of computing."""

    row: str
    wave: np.ndarray
    bits: float
    seconds: float


class Worker:
    """Codec, peers and judges of one process."""

    def __init__(self, options: Reconstruct) -> None:
        torch.set_num_threads(1)
        self._options = options
        self._metrics = options.wanted_metrics()
        self._peers = find_peers(options)[0]
        self._codec = _load_codec(options)
        self._speaker = self._ears = None
        if "speaker" in self._metrics:
            self._speaker = SpeakerJudge(find_judge("campplus-zh-en", options.models))
        if "wer" in self._metrics:
            self._ears = Moonshine(find_judge(options.recogniser, options.models), threads=1)

    def measure(self, item: Item, rows: list[str]) -> list[Result]:
        """One result for each of `rows`. Raises VokensError when the recording cannot be used."""
        wave, _ = load(item.path, RATE)
        voice = self._speaker.embed(wave) if self._speaker else None
        results = []
        for heard in self._resynthesise(item, wave, rows):
            result: Result = {"row": heard.row, "id": item.id, "seconds": len(wave) / RATE}
            result |= {"bits": heard.bits, "compute_seconds": round(heard.seconds, 6)}
            result |= self._compare(wave, heard.wave)
            if self._speaker is not None and voice is not None:
                result["speaker"] = metrics.cosine(voice, self._speaker.embed(heard.wave))
            if self._ears is not None and item.text and item.language == "en":
                result |= _word_error(self._ears.transcribe(heard.wave), item.text)
            results.append({key: _plain(value) for key, value in result.items()})
        return results

    def _resynthesise(self, item: Item, wave: np.ndarray, rows: list[str]) -> Iterator[Heard]:
        if self._codec is not None:
            ranges = self._options.codebook_ranges(self._codec.num_codebooks)
            named = {f"{self._codec.name} {label}": span for label, span in ranges.items()}
            named = {row: span for row, span in named.items() if row in rows}
            if named:
                yield from self._ours(item, wave, named)
        for other in self._peers:
            if other.name in rows:
                start = time.perf_counter()
                heard, bits = other.roundtrip(wave, RATE)
                yield Heard(other.name, heard, bits, time.perf_counter() - start)

    def _ours(self, item: Item, wave: np.ndarray, rows: dict[str, tuple[int, int]]) -> Iterator[Heard]:
        start = time.perf_counter()
        tokens = self._codec.encode([wave], sample_rate=RATE)
        encoding = time.perf_counter() - start
        path = _token_path(self._options, item)
        path.parent.mkdir(exist_ok=True)
        tokens.save(path)
        for row, (first, last) in rows.items():
            chosen = tokens.select(first, last)
            start = time.perf_counter()
            heard = self._codec.decode(chosen)[0]
            seconds = encoding + time.perf_counter() - start
            heard = resample(heard, self._codec.sample_rate, RATE)[: len(wave)]
            heard = np.pad(heard, (0, len(wave) - len(heard)))
            bits = int(chosen.lengths.sum()) * chosen.bitrate / chosen.frame_rate
            yield Heard(row, heard, bits, seconds)

    def _compare(self, wave: np.ndarray, heard: np.ndarray) -> Result:
        functions = {
            "stoi": metrics.stoi,
            "estoi": lambda a, b: metrics.stoi(a, b, extended=True),
            "pesq": metrics.pesq_wb,
            "si-sdr": metrics.si_sdr,
            "mel": metrics.log_mel_distance,
        }
        return {name: f(wave, heard) for name, f in functions.items() if name in self._metrics}


def _word_error(transcript: str, text: str) -> Result:
    words = metrics.normalise_text(text)
    edits = metrics.word_edits(words, metrics.normalise_text(transcript))
    return {"transcript": transcript, "edits": edits, "words": len(words)}


_worker: Worker  # of this process, set by `_start`


def _start(options: Reconstruct) -> None:
    global _worker
    _worker = Worker(options)


def _measure(job: tuple[Item, list[str]]) -> tuple[Item, list[Result] | str]:
    item, rows = job
    try:
        return item, _worker.measure(item, rows)
    except (MissingExtra, ConfigError):  # the same for every file
        raise
    except VokensError as error:
        return item, str(error)


def _measure_all(
    options: Reconstruct, jobs: list[tuple[Item, list[str]]]
) -> Iterator[tuple[Item, list[Result] | str]]:
    """Results in the order of the jobs, an error message in place of those of a file that cannot be used."""
    bar = tqdm(total=len(jobs), unit="file", disable=None)
    if not jobs:
        return
    if options.processes == 1:
        _start(options)
        pool = nullcontext()
        outcomes = map(_measure, jobs)
    else:
        spawn = multiprocessing.get_context("spawn")  # a fork of a process with torch threads may hang
        pool = ProcessPoolExecutor(options.processes, spawn, _start, (options,))
        outcomes = pool.map(_measure, jobs)
    with pool, bar:
        for outcome in outcomes:
            bar.update()
            yield outcome


def _load_codec(options: Reconstruct) -> Any:
    if options.model is None:
        return None
    import vokens

    return vokens.load(options.model, device=options.device)


def _codec_rows(options: Reconstruct) -> tuple[list[str], Result]:
    """The rows of the codec, and what identifies the results: codec, judges, metrics."""
    codec = _load_codec(options)
    facts: Result = {
        "vokens": __version__,
        "model": codec.name if codec else None,
        "fingerprint": codec.fingerprint if codec else None,
        "recogniser": options.recogniser if "wer" in options.wanted_metrics() else None,
        "metrics": list(options.wanted_metrics()),
    }
    if codec is None:
        return [], facts
    return [f"{codec.name} {label}" for label in options.codebook_ranges(codec.num_codebooks)], facts


def _same_settings(options: Reconstruct, facts: Result) -> None:
    """Refuse to add to results that were measured by another codec or other judges."""
    path = options.out / "settings.json"
    settings = facts | {"data": str(options.data.resolve())}
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        differ = [key for key in settings if before.get(key) != settings[key]]
        if differ:
            was, now = ({key: values.get(key) for key in differ} for values in (before, settings))
            raise ConfigError(f"{options.out} holds results with {was}, not {now}: give another --out")
    _write(path, json.dumps(settings, indent=2) + "\n")


def _read_results(path: Path) -> dict[tuple[str, str], Result]:
    """Results so far by row and id; a last line that was cut off by the end of its run is removed."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        _write(path, whole)
    results = [json.loads(line) for line in whole.splitlines()]
    return {(result["row"], result["id"]): result for result in results}


def _token_path(options: Reconstruct, item: Item) -> Path:
    return options.out / "tokens" / f"{quote(item.id, safe='')}.vok"


def _all_tokens(options: Reconstruct, items: list[Item]) -> list[Tokens]:
    paths = [_token_path(options, item) for item in items] if options.model else []
    return [Tokens.load(path) for path in paths if path.is_file()]


def _plain(value: Any) -> Any:
    """As JSON has it: not-a-number and infinity become null, floats have 6 digits after the point."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
