"""Options of the parts of `vokens bench`; without torch, so that --help is fast."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar, Self

from tyro.conf import Positional, arg

from vokens.errors import ConfigError

METRICS = (
    *("stoi", "estoi", "pesq-wb", "pesq-nb", "si-sdr", "mel", "stft", "mcd", "f0", "voicing"),
    *("speaker", "dnsmos", "dnsmos-sig", "dnsmos-bak", "distill-mos", "wer"),
)
ALWAYS = ("bitrate", "rtf")  # always measured
PEERS = "original,codec2-3200,codec2-1300,opus-6,lyra-3.2,lyra-6"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Options of all parts: models, recordings, and the folder of the results."""

    least: ClassVar[dict[str, int]] = {"min_seconds": 0, "max_seconds": 0, "threads": 1, "limit": 1}

    models: Annotated[str, arg(aliases=("--model", "-m"), metavar="NAME,...")] = "mini"
    """Comma-separated: names of `vokens models`, hub ids, folders, published files."""
    data: Path | None = None
    """A manifest (.jsonl with id, path, text, language, split, duration), or a folder of audio. Default: the two
    embedded recordings."""
    out: Annotated[Path, arg(aliases=("-o",))]
    """Folder of the results. Existing results are not measured again."""
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
    """Device of the codecs."""
    threads: int = 1
    """Number of torch threads."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        for name, least in self.least.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value} was given: {least} or more is accepted"
                )

    def model_names(self) -> list[str]:
        """The chosen models in order, without duplicates."""
        return list(dict.fromkeys(split_list(self.models)))

    def selection(self) -> dict[str, object]:
        """Filters of the recordings, as recorded in the results."""
        names = ("split", "language", "with_text", "min_seconds", "max_seconds", "limit")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Measure):
    """Quality of the resynthesis of codecs and of baselines over the files of a corpus."""

    least: ClassVar = Measure.least | {"processes": 1}

    codebooks: str | None = None
    """Rows of a codec: N for the first N codebooks, A-B for a range. Default: 1,2,4 ... all, 2-all."""
    peers: str = PEERS
    """Baselines with all codebooks, where installed: original (the recording itself) and names of `vokens models`;
    '' for none."""
    metrics: str | None = None
    """Metrics to compute, comma-separated: stoi, estoi, pesq-wb, pesq-nb, si-sdr, mel, stft, mcd, f0, voicing,
    speaker, dnsmos, dnsmos-sig, dnsmos-bak, distill-mos, wer. Default: all that this machine can compute. bitrate
    and rtf are always measured."""
    recogniser: str = "moonshine-tiny-en"
    """The ASR model: moonshine-tiny-en, moonshine-base-en, whisper-base, whisper:ID, wav2vec2:ID (hub id or folder)."""
    evaluators: Annotated[Path | None, arg(aliases=("--judges",))] = None  # --judges: deprecated
    """Folder of the evaluator models (default: $VOKENS_EVAL_MODELS, then ~/.cache/vokens-eval)."""
    processes: int = 2
    """Number of files measured in parallel."""

    def chosen_metrics(self) -> tuple[str, ...]:
        """The chosen metrics, in the order of METRICS; raises ConfigError for others."""
        if self.metrics is None:
            return METRICS
        names, known = split_list(self.metrics), (*METRICS, *ALWAYS)
        if unknown := sorted(set(names) - set(known)):
            raise ConfigError(f"unknown metrics {', '.join(unknown)}: there are {', '.join(known)}")
        return tuple(name for name in METRICS if name in names)


@dataclass(frozen=True, kw_only=True)
class TokenStatistics(Measure):
    """Rates, use of the codebooks, and how well language models predict the tokens."""

    least: ClassVar = Measure.least | {"lm_steps": 0}

    lm_steps: int = 200
    """Training steps of the transformer, of 16 s of audio each; 0 skips language models."""


@dataclass(frozen=True, kw_only=True)
class Robust(Measure):
    """Agreement of tokens under noise, gain, time shifts, other codecs, seams, batching and precision."""

    dtypes: str = "bfloat16"
    """Precisions to compare with float32, comma-separated: bfloat16, float16, int8 (S3Tokenizer); '' for none."""


@dataclass(frozen=True, kw_only=True)
class Speed(Measure):
    """Speed of encoding and decoding in × real time, and memory."""

    least: ClassVar = Measure.least | {"repeats": 1}

    durations: str = "1,5,20"
    """Seconds per recording, comma-separated."""
    batches: str = "1,8"
    """Batch sizes, comma-separated."""
    repeats: int = 3
    """Repeats, of which the median is reported."""


@dataclass(frozen=True, kw_only=True)
class Every(Measure):
    """Several parts in turn into one folder, with the shared options and each part's own defaults."""

    only: str | None = None
    """Parts to run, comma-separated. Default: all."""

    def of(self, options: type[Measure]) -> Measure:
        """The options of one part."""
        return options(**{field.name: getattr(self, field.name) for field in fields(Measure)})


def split_list(text: str) -> list[str]:
    """The comma-separated parts of a text, without blanks and empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def codebook_ranges(chosen: str | None, count: int) -> dict[str, tuple[int, int]]:
    """Rows of a codec with `count` codebooks: label ("1-4", "2-8") -> half-open range from 0.

    chosen: of --codebooks. Raises ConfigError for a range outside 1..count.
    """
    if not chosen:
        firsts = [2**power for power in range(count.bit_length()) if 2**power < count] + [count]
        chosen = ",".join(map(str, firsts)) + (f",2-{count}" if count > 1 else "")
    ranges = {}
    for text in split_list(chosen.replace("all", str(count))):
        match = re.fullmatch(r"(?:(\d+)-)?(\d+)", text)
        first, last = (int(match[1] or 1), int(match[2])) if match else (0, 0)
        if not 1 <= first <= last <= count:
            raise ConfigError(
                f"--codebooks has {text!r}: give N (the first N) or A-B, within 1 to {count}, comma-separated"
            )
        ranges[f"{first}-{last}" if last > first else f"{first}"] = (first - 1, last)
    return ranges


@dataclass(frozen=True, kw_only=True)
class SlmTok(Measure):
    """SLMTokBench: text content of the tokens, and preservation of text and voice in the resynthesis.

    Only transcribed recordings are used; the defaults are --split test and --language en.
    """

    least: ClassVar = Measure.least | {"probe_steps": 0, "resynthesised": 0}

    codebooks: str = "1,all"
    """Rows of a tokenizer: N for the first N codebooks, A-B for a range (3-3 for a single one), all."""
    train_split: str = "train"
    """Split that the probe is trained on."""
    train_hours: float = 1.0
    """Hours of it, evenly spaced in the order of ids."""
    probe_steps: int = 1500
    """Training steps of the probe; 0 skips it and mutual information."""
    probe_seconds: float = 20.0
    """Seconds of speech in a batch of the probe."""
    probe_width: int = 128
    """Width of the probe's LSTM per direction (the paper's: 1024)."""
    pairs: int = 16
    """Negative texts per recording for the upper bound of mutual information."""
    resynthesised: int = 300
    """Recordings to resynthesise, evenly spaced; 0 skips this."""
    recogniser: str = "moonshine-tiny-en"
    """The ASR model: moonshine-tiny-en, moonshine-base-en, whisper-base, whisper:ID, wav2vec2:ID (hub id or folder)."""
    speaker: str = "campplus-zh-en"
    """The speaker verification model: campplus-zh-en or wavlm:ID."""
    evaluators: Annotated[Path | None, arg(aliases=("--judges",))] = None  # --judges: deprecated
    """Folder of the evaluator models (default: $VOKENS_EVAL_MODELS, then ~/.cache/vokens-eval)."""

    def __post_init__(self) -> None:
        for name in ("train_hours", "probe_seconds", "probe_width", "pairs"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}: give more than 0")
        super().__post_init__()
        if not self.probe_steps and not self.resynthesised:
            raise ConfigError("--probe-steps 0 and --resynthesised 0 leave nothing to measure: give one")

    def measured(self) -> Self:
        """These options with the filters of the test recordings."""
        return replace(self, split=self.split or "test", language=self.language or "en", with_text=True)

    def trained_on(self) -> Self:
        """These options with the filters of the probe's training recordings."""
        return replace(self.measured(), split=self.train_split, limit=None)


@dataclass(frozen=True, kw_only=True)
class Report:
    """One page of the results in a folder: tables, plots, spectrograms and players, in a self-contained file."""

    folder: Positional[Path]
    """Folder of the results of `vokens bench`."""
    out: Annotated[Path | None, arg(aliases=("-o",))] = None
    """The page; .csv, .md and .json are written next to it. Default: report.html in the folder."""
    samples: int = 2
    """Recordings with players for every codec; 0 decodes nothing."""
    seconds: float = 6.0
    """Maximum seconds of each."""
    title: str = "Speech tokenizers, measured"
    """Heading of the page."""

    def __post_init__(self) -> None:
        if self.samples < 0 or not 0 < self.seconds <= 60:
            raise ConfigError(
                f"samples={self.samples}, seconds={self.seconds} were given: give samples >= 0 and 0 < seconds <= 60"
            )
