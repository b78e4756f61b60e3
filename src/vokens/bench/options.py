"""What the parts of `vokens bench` are asked to do; without torch, so that help answers at once."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from vokens.errors import ConfigError

METRICS = (
    *("stoi", "estoi", "pesq-wb", "pesq-nb", "si-sdr", "mel", "stft", "mcd", "f0", "voicing"),
    *("speaker", "dnsmos", "dnsmos-sig", "dnsmos-bak", "distill-mos", "wer"),
)
ALWAYS = ("bitrate", "rtf")  # measured whatever is asked for
PEERS = "original,codec2-3200,codec2-1300,opus-6,lyra-3.2,lyra-6"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured, on which recordings, and where results go: options of all parts."""

    models: Annotated[str, arg(aliases=("--model", "-m"), metavar="NAME,...")] = "mini"
    """By commas: names of `vokens models`, hub ids, folders, published files."""
    data: Path | None = None
    """A manifest (.jsonl with id, path, text, language, split, duration), or a folder of audio. Default: the two
    recordings that the package brings."""
    out: Annotated[Path, arg(aliases=("-o",))]
    """Folder of the results. What it has already is not measured again."""
    split: str | None = None
    """Only lines of the manifest with this split."""
    language: str | None = None
    """Only lines of the manifest with this language, such as en."""
    with_text: bool = False
    """Only lines of the manifest with a transcript."""
    min_seconds: float = 0.0
    """Only files at least this long."""
    max_seconds: float = 30.0
    """Only files at most this long."""
    limit: int | None = None
    """Only N of these files, evenly spaced in the order of their ids."""
    device: str = "cpu"
    """Where the codecs run."""
    threads: int = 1
    """Threads that torch computes with."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        at_least(0, min_seconds=self.min_seconds, max_seconds=self.max_seconds)
        at_least(1, threads=self.threads, limit=1 if self.limit is None else self.limit)

    def model_names(self) -> list[str]:
        """The models asked for, in order, each once."""
        return list(dict.fromkeys(split_list(self.models)))

    def selection(self) -> dict[str, object]:
        """Which recordings are taken: the filters, as the results name them."""
        names = ("split", "language", "with_text", "min_seconds", "max_seconds", "limit")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Measure):
    """How good is the resynthesis of codecs, beside that of others, over the files of a corpus."""

    codebooks: str | None = None
    """Rows of a codec: N for the first N codebooks, A-B for a range. Default: 1,2,4 ... all, 2-all."""
    peers: str = PEERS
    """Codecs beside them, whole, where installed: original (the recording itself) and names of `vokens models`; ''
    for none."""
    metrics: str | None = None
    """Which numbers to compute, by commas: stoi, estoi, pesq-wb, pesq-nb, si-sdr, mel, stft, mcd, f0, voicing,
    speaker, dnsmos, dnsmos-sig, dnsmos-bak, distill-mos, wer. Default: all that this machine can. bitrate and rtf are
    always measured."""
    recogniser: str = "moonshine-tiny-en"
    """The ASR model: moonshine-tiny-en, moonshine-base-en, whisper-base, whisper:ID, wav2vec2:ID (hub id or folder)."""
    judges: Path | None = None
    """Folder of the evaluator models (default: $VOKENS_EVAL_MODELS, then ~/.cache/vokens-eval)."""
    processes: int = 2
    """Files measured at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, processes=self.processes)

    def wanted_metrics(self) -> tuple[str, ...]:
        """The metrics asked for, in the order of METRICS; raises ConfigError for others."""
        if self.metrics is None:
            return METRICS
        names = split_list(self.metrics)
        unknown = sorted(set(names) - {*METRICS, *ALWAYS})
        if unknown:
            raise ConfigError(
                f"unknown metrics {', '.join(unknown)}: there are {', '.join((*METRICS, *ALWAYS))}"
            )
        return tuple(name for name in METRICS if name in names)

    def codebook_ranges(self, count: int) -> dict[str, tuple[int, int]]:
        """Rows of a codec with `count` codebooks: label ("1-4", "2-8") -> half-open range from 0.

        Raises ConfigError for a range outside 1..count.
        """
        ranges = {}
        for text in split_list(self.codebooks or _default_codebooks(count)):
            match = re.fullmatch(r"(?:(\d+)-)?(\d+)", text)
            first, last = (int(match[1] or 1), int(match[2])) if match else (0, 0)
            if not 1 <= first <= last <= count:
                raise ConfigError(
                    f"--codebooks has {text!r}: give N (the first N) or A-B, within 1 to {count}, by commas"
                )
            ranges[f"{first}-{last}" if last > first else f"{first}"] = (first - 1, last)
        return ranges


@dataclass(frozen=True, kw_only=True)
class TokenStatistics(Measure):
    """Rates, use of the codebooks, and how well language models predict the tokens."""

    lm_steps: int = 200
    """Steps, of 16 s of audio each, that the transformer learns; 0 leaves language models out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, lm_steps=self.lm_steps)


@dataclass(frozen=True, kw_only=True)
class Robust(Measure):
    """Which tokens stay when noise, level, time, another codec, a seam, the batch or the precision change."""

    dtypes: str = "bfloat16"
    """Precisions to compare with float32, by commas: bfloat16, float16, int8 (S3Tokenizer); '' for none."""


@dataclass(frozen=True, kw_only=True)
class Speed(Measure):
    """Times real time of encoding and decoding, and memory."""

    durations: str = "1,5,20"
    """Seconds of a recording, by commas."""
    batches: str = "1,8"
    """Recordings at a time, by commas."""
    repeats: int = 3
    """Of each; the median counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, repeats=self.repeats)


@dataclass(frozen=True, kw_only=True)
class Every(Measure):
    """Several parts in turn into one folder, each with the options that all share and its own defaults."""

    only: str | None = None
    """Which parts, by commas; all of them, if not given."""

    def of(self, options: type[Measure]) -> Measure:
        """The options of one part."""
        return options(**{field.name: getattr(self, field.name) for field in fields(Measure)})


def at_least(least: int, **options: float) -> None:
    """Raise ConfigError for the first option below `least`."""
    for name, value in options.items():
        if not value >= least:
            raise ConfigError(f"--{name.replace('_', '-')} {value} was given: {least} or more is accepted")


def split_list(text: str) -> list[str]:
    """The parts of a text by commas, without blanks and empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _default_codebooks(count: int) -> str:
    firsts = [2**power for power in range(count.bit_length()) if 2**power < count] + [count]
    return ",".join(map(str, firsts)) + (f",2-{count}" if count > 1 else "")
