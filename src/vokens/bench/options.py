"""What `vokens bench reconstruct` is asked to do; without torch, so that help answers at once."""

import re
from dataclasses import dataclass
from pathlib import Path

from vokens.errors import ConfigError

METRICS = ("stoi", "estoi", "pesq", "si-sdr", "mel", "speaker", "wer")
PEERS = "original,codec2-3200,codec2-1300,opus-6,lyra-3.2,lyra-6"


@dataclass(frozen=True, kw_only=True)
class Reconstruct:
    """How good is the resynthesis of a codec, beside that of other codecs, over the files of a corpus."""

    data: Path
    """A manifest (.jsonl with id, path, text, language, split, duration), or a folder of audio."""
    out: Path
    """Folder of the results. Files that it has already are not measured again."""
    model: str | None = "mini"
    """A name of `vokens models`, a hub id, a folder, a published file; None measures the peers alone."""
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
    codebooks: str | None = None
    """Rows of the codec: N for the first N codebooks, A-B for a range. Default: 1,2,4 ... all, 2-all."""
    peers: str = PEERS
    """Codecs beside it: original, codec2-MODE, opus-KBPS, lyra-3.2, lyra-6, lyra-9.2; '' for none."""
    metrics: str = ",".join(METRICS)
    """Which numbers to compute."""
    recogniser: str = "moonshine-tiny-en"
    """The model that writes down what is said: moonshine-tiny-en or moonshine-base-en."""
    models: Path | None = None
    """Folder of the models that judge (default: $VOKENS_EVAL_MODELS, then ~/.cache/vokens-eval)."""
    device: str = "cpu"
    """Where the codec runs."""
    processes: int = 2
    """Files measured at once, each on one thread."""

    def wanted_metrics(self) -> tuple[str, ...]:
        """The metrics asked for, in the order of METRICS; raises ConfigError for others."""
        names = split_list(self.metrics)
        unknown = sorted(set(names) - set(METRICS))
        if unknown:
            raise ConfigError(f"unknown metrics {', '.join(unknown)}: there are {', '.join(METRICS)}")
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


def split_list(text: str) -> list[str]:
    """The parts of a text by commas, without blanks and empty ones."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _default_codebooks(count: int) -> str:
    firsts = [2**power for power in range(count.bit_length()) if 2**power < count] + [count]
    return ",".join(map(str, firsts)) + (f",2-{count}" if count > 1 else "")
