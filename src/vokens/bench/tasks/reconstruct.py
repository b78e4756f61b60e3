"""The reconstruction benchmark: every file through every codec, then all metrics of the resynthesis.

One worker measures one file at a time: it encodes once, decodes each range of codebooks, and runs the evaluators. The
parent writes a line per file and row, from which a stopped run resumes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from tqdm import tqdm

from vokens import registry
from vokens.audio import load, resample
from vokens.bench import metrics
from vokens.bench.evaluators import Likeness, unmeasurable
from vokens.bench.evaluators.distill_mos import DistillMOS
from vokens.bench.evaluators.mos import DNSMOS
from vokens.bench.options import METRICS, Reconstruct, codebook_ranges, split_list
from vokens.bench.report.definitions import metric
from vokens.bench.report.table import Line
from vokens.bench.results import Results, Row
from vokens.bench.tasks.codecs import labels, open_codec, save_tokens, token_path
from vokens.bench.tasks.items import find_items
from vokens.bench.tasks.processes import pool
from vokens.data.items import Clip
from vokens.errors import ConfigError, NotInstalled, VokensError
from vokens.evaluator_files import find_evaluator
from vokens.models.codec import Codec

RATE = metrics.SAMPLE_RATE
FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "stoi": metrics.stoi,
    "estoi": lambda a, b: metrics.stoi(a, b, extended=True),
    "pesq-wb": metrics.pesq_wb,
    "pesq-nb": metrics.pesq_nb,
    "si-sdr": metrics.si_sdr,
    "mel": metrics.log_mel_distance,
    "stft": metrics.stft_distance,
    "mcd": metrics.mel_cepstral_distortion,
}
# Non-intrusive MOS predictors by folder: the network and its ratings.
MOS_PREDICTORS = {
    "dnsmos": (DNSMOS, {"dnsmos", "dnsmos-sig", "dnsmos-bak"}),
    "distillmos": (DistillMOS, {"distill-mos"}),
}


@dataclass(frozen=True)
class System:
    """A codec and its rows of results: label -> half-open range of codebooks."""

    label: str
    source: str
    fingerprint: str
    rows: dict[str, tuple[int, int]]

    def row(self, name: str) -> Row:
        """One of the rows, as the results know it."""
        return Row(name, self.label, self.fingerprint)


# No codec: the metrics of the recording itself.
ORIGINAL = System("original", "", "", {"original": (0, 0)})


def run(options: Reconstruct) -> int:
    """Measure and write the results; returns 1 if some files failed."""
    items = find_items(options)
    options, left_out = _able(options)
    systems, notes = find_systems(options)
    if not systems:
        raise ConfigError(f"nothing to measure: {'; '.join(notes.values())}")
    chosen = options.chosen_metrics()
    recogniser = options.recogniser if "wer" in chosen else None
    with Results(options, "reconstruct", metrics=chosen, recogniser=recogniser) as results:
        results.leave_out(notes | left_out)
        jobs = []
        for system in systems:
            for item in items:
                rows = [row for row in system.rows if not results.get(system.row(row), item.id)]
                jobs += [(system, item, rows)] if rows else []
        for system, item, outcome in _measure_all(options, jobs):
            if isinstance(outcome, str):
                results.fail(item.id, outcome)
                continue
            for row, measures in outcome.items():
                results.add(system.row(row), item.id, **measures)
        rows = []
        for row in [system.row(name) for system in systems for name in system.rows]:
            lines = [results.get(row, item.id) for item in items]
            rows.append(summary_row(row, [line for line in lines if line], recogniser))
        return results.finish(rows, processes=options.processes)


def _able(options: Reconstruct) -> tuple[Reconstruct, dict[str, str]]:
    """The options with the computable metrics, and the reasons for the others.

    Raises NotInstalled for one that was requested by name.
    """
    chosen = options.chosen_metrics()
    notes = unmeasurable(chosen, options.recogniser, options.evaluators)
    if notes and options.metrics is not None:
        raise NotInstalled(f"--metrics {','.join(notes)}: {'; '.join(dict.fromkeys(notes.values()))}")
    return replace(options, metrics=",".join(name for name in chosen if name not in notes)), notes


def find_systems(options: Reconstruct) -> tuple[list[System], dict[str, str]]:
    """The systems to measure, and the reasons for those that cannot be."""
    systems, notes = [], {}
    for label, source in labels(options).items():
        codec = open_codec(source, options)
        rows = {label: (0, codec.num_codebooks)}
        packets = getattr(codec, "packets", False)  # which cannot be decoded in part
        if codec.num_codebooks > 1 and not packets:
            ranges = codebook_ranges(options.codebooks, codec.num_codebooks)
            rows = {f"{label} {part}": span for part, span in ranges.items()}
        if codec.decodes:
            systems.append(System(label, source, codec.fingerprint, rows))
        else:
            notes[label] = "it has no decoder: use bench tokens and robust for it"
    named = {system.label for system in systems}
    for name in split_list(options.peers):
        if name == ORIGINAL.label:
            systems.append(ORIGINAL)
        elif name not in named:
            if reason := registry.lacking(registry.get(name)):
                notes[name] = reason
                continue
            codec = open_codec(name, options)
            systems.append(System(name, name, codec.fingerprint, {name: (0, codec.num_codebooks)}))
    return systems, notes


class Worker:
    """Evaluators of one process, and its current codec."""

    def __init__(self, options: Reconstruct) -> None:
        torch.set_num_threads(options.threads)
        self._options, self._metrics = options, options.chosen_metrics()
        self._system: System | None = None
        self._codec: Codec | None = None
        self._likeness = Likeness(
            options.recogniser if "wer" in self._metrics else "",
            "campplus-zh-en" if "speaker" in self._metrics else "",
            options.evaluators,
            options.device,
        )
        self._predictors = [
            network(find_evaluator(folder, options.evaluators))
            for folder, (network, ratings) in MOS_PREDICTORS.items()
            if ratings & set(self._metrics)
        ]

    def measure(self, system: System, item: Clip, rows: list[str]) -> dict[str, Line]:
        """Measures of each of `rows`. Raises VokensError when the recording cannot be used."""
        wave, _ = load(item.path, RATE)
        spoken = item.text if item.language == "en" else None
        results: dict[str, Line] = {}
        for row, output, bits, seconds in self._resynthesise(system, item, wave, rows):
            figures = {name: f(wave, output) for name, f in FUNCTIONS.items() if name in self._metrics}
            if {"f0", "voicing"} & set(self._metrics):
                figures |= zip(("f0", "voicing"), metrics.pitch_error(wave, output), strict=True)
            for predictor in self._predictors:
                figures |= predictor.rate(output)
            results[row] = {"seconds": len(wave) / RATE, "bits": bits, "compute_seconds": seconds}
            results[row] |= {name: value for name, value in figures.items() if name in self._metrics}
            results[row] |= self._likeness.measure(item.id, wave, output, spoken)
        return results

    def _resynthesise(
        self, system: System, item: Clip, wave: np.ndarray, rows: Sequence[str]
    ) -> Iterator[tuple[str, np.ndarray, float, float]]:
        """Row, wave (T,) at 16 kHz, number of bits, seconds of computation."""
        if system == ORIGINAL:
            yield system.label, wave, 16 * len(wave), 0.0  # as 16-bit PCM
            return
        if self._codec is None or self._system != system:
            self._codec, self._system = None, system  # one codec in memory at a time
            self._codec = open_codec(system.source, self._options)
        codec = self._codec
        start = time.perf_counter()
        tokens = codec.encode([wave], sample_rate=RATE)
        encoding = time.perf_counter() - start
        save_tokens(tokens, token_path(self._options, system.label, item))
        for row in rows:
            chosen = tokens.select(*system.rows[row])
            start = time.perf_counter()
            output = codec.decode(chosen)[0]
            seconds = encoding + time.perf_counter() - start
            output = metrics.fit_length(resample(output, codec.sample_rate, RATE), len(wave))
            yield row, output, int(chosen.lengths.sum()) * chosen.bitrate / chosen.frame_rate, seconds


Job = tuple[System, Clip, list[str]]
Outcome = tuple[System, Clip, dict[str, Line] | str]
_worker = lru_cache(1)(Worker)  # of this process


def _measure(options: Reconstruct, job: Job) -> Outcome:
    system, item, rows = job
    worker = _worker(options)
    try:
        return system, item, worker.measure(system, item, rows)
    except (NotInstalled, ConfigError):  # would recur for every file
        raise
    except VokensError as error:
        return system, item, str(error)


def _measure_all(options: Reconstruct, jobs: list[Job]) -> Iterator[Outcome]:
    """Results in the order of the jobs, or an error message for an unusable file."""
    count, measure = min(options.processes, len(jobs)), partial(_measure, options)
    with pool(count) if count > 1 else nullcontext() as executor:
        outcomes = executor.map(measure, jobs) if executor else map(measure, jobs)
        yield from tqdm(outcomes, total=len(jobs), unit="file", disable=None)


def summary_row(row: Row, lines: Sequence[Line], recogniser: str | None = None) -> Line:
    """A row of results. Means are over recordings with equal weight; rates and word error are ratios of sums."""
    seconds = [line["seconds"] for line in lines]
    metrics = {"bitrate": metric("bitrate", [line["bits"] for line in lines], seconds, scale=1e-3)}
    for name in METRICS:
        if any(name in line for line in lines):
            metrics[name] = metric(name, [line.get(name) for line in lines])
    spoken = [line for line in lines if line.get("words")]
    if spoken:
        edits, words = ([line[key] for line in spoken] for key in ("edits", "words"))
        metrics["wer"] = metric("wer", edits, words, scale=100, mode=f"{recogniser}, greedy")
    metrics["rtf"] = metric("rtf", [line["compute_seconds"] for line in lines], seconds)
    return row.summary(len(lines), sum(seconds), metrics)
