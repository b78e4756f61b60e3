"""All figures of the benchmark by name: title, unit, and exact mode of measurement.

docs/jobs/metrics.md has the definitions. A condition may follow the name after a slash: `agreement/white/20dB`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_DRAWS = 1000  # bootstrap samples of an interval
_VCLUB, _LOWER = "text information, vCLUB", "text information, lower bound"


@dataclass(frozen=True)
class Definition:
    """Definition of a number. better: "up", "down", or "". digits: after the point in tables."""

    title: str
    unit: str
    better: str
    digits: int
    mode: str


_TABLE = {
    "bitrate": ("bit rate", "kbit/s", "down", 2, "log2 of codebook sizes, all frames"),
    "stoi": ("STOI", "", "up", 3, "classic, 10 kHz, 150 to 4300 Hz, pystoi"),
    "estoi": ("ESTOI", "", "up", 3, "extended, 10 kHz, 150 to 4300 Hz, pystoi"),
    "pesq-wb": ("PESQ-WB", "MOS-LQO", "up", 2, "P.862.2, 16 kHz, 50 to 7000 Hz, pesq"),
    "pesq-nb": ("PESQ-NB", "MOS-LQO", "up", 2, "P.862.1, 16 kHz, 300 to 3400 Hz, pesq"),
    "si-sdr": ("SI-SDR", "dB", "up", 1, "16 kHz, mean-free"),
    "mel": ("mel distance", "neper", "down", 3, "16 kHz, 80 bands to 8 kHz, 1024/256"),
    "stft": ("STFT distance", "", "down", 3, "16 kHz, Hann 512, 1024, 2048, hop 1/4"),
    "mcd": ("MCD", "dB", "down", 2, "16 kHz, 24 cepstra of 80 bands, frame by frame"),
    "f0": ("F0 error", "cent", "down", 0, "RMS where both voiced, 60 to 500 Hz, each 10 ms"),
    "voicing": ("voicing error", "%", "down", 1, "frames of 10 ms, voiced in one alone"),
    "speaker": ("speaker similarity", "", "up", 3, "CAM++ zh-en, 16 kHz, cosine"),
    "dnsmos": ("DNSMOS", "MOS", "up", 2, "P.835 overall, 16 kHz, no reference"),
    "dnsmos-sig": ("DNSMOS, speech", "MOS", "up", 2, "P.835 signal, 16 kHz, no reference"),
    "dnsmos-bak": ("DNSMOS, noise", "MOS", "up", 2, "P.835 background, 16 kHz, no reference"),
    "distill-mos": ("Distill-MOS", "MOS", "up", 2, "version 7, 16 kHz, no reference"),
    "wer": ("word error", "%", "down", 1, "Moonshine, greedy"),
    "frame-rate": ("frame rate", "Hz", "", 3, "as the codec says"),
    "token-rate": ("tokens", "1/s", "down", 1, "codebooks × frames over seconds of audio"),
    "bitrate-nominal": ("bit rate, nominal", "kbit/s", "down", 3, "frame rate × sum of log2 of sizes"),
    "bitrate-effective": ("bit rate, effective", "kbit/s", "down", 3, "frame rate × sum of entropies"),
    "used": ("entries used", "%", "up", 1, "of a codebook, mean over codebooks"),
    "entropy": ("entropy", "bit", "", 2, "of a codebook's frequencies"),
    "perplexity": ("perplexity", "", "", 0, "2 to the entropy"),
    "ngram": ("n-gram LM", "bit/s", "down", 1, "3-gram Kneser-Ney, held-out, codebooks apart"),
    "ngram-code": ("n-gram LM", "bit", "down", 2, "of a code, 3-gram Kneser-Ney, held-out"),
    "transformer": ("transformer LM", "bit/s", "down", 1, "3 layers of 128, held-out, codebooks jointly"),
    "transformer-code": ("transformer LM", "bit", "down", 2, "of a code, 3 layers of 128, held-out"),
    "agreement": ("agreement", "%", "up", 1, "equal codes frame by frame, all codebooks"),
    "agreement-first": ("agreement, codebook 1", "%", "up", 1, "equal codes frame by frame"),
    "ued": ("unit edit distance", "%", "down", 1, "edits over codes, all codebooks"),
    "ued-first": ("unit edit distance, codebook 1", "%", "down", 1, "edits over codes"),
    "miss": ("miss rate", "%", "down", 3, "codes that differ, batch of 6 lengths or alone"),
    "miss-first": ("miss rate, codebook 1", "%", "down", 3, "codes that differ, batch of 6 lengths or alone"),
    "encode": ("encode", "× real time", "up", 1, "median of repeats, wall clock"),
    "decode": ("decode", "× real time", "up", 1, "median of repeats, wall clock"),
    "memory-load": ("memory, loaded", "MiB", "down", 0, "after loading less before, float32"),
    "memory-encode": ("memory, encode", "MiB", "down", 0, "highest, above that of the loaded codec"),
    "memory-decode": ("memory, decode", "MiB", "down", 0, "highest, above that of the loaded codec"),
    "mi-vclub": (_VCLUB, "nat", "up", 0, "of a recording, by the probe"),
    "mi-vclub-character": (_VCLUB, "bit", "up", 2, "each likelihood per character of its text"),
    "mi-lower": (_LOWER, "nat", "up", 0, "of a recording, by the probe"),
    "mi-lower-character": (_LOWER, "bit", "up", 2, "of a character, text bits − probe bits"),
    "text-bits": ("text bits", "bit", "", 2, "of a character without the audio, 6-gram Kneser-Ney"),
    "probe-bits": ("probe bits", "bit", "down", 2, "of a character, given the tokens"),
    "probe-cer": ("probe character error", "%", "down", 1, "BiLSTM with CTC, greedy"),
    "probe-wer": ("probe word error", "%", "down", 1, "BiLSTM with CTC, greedy"),
    "rtf": ("real-time factor", "s/s", "down", 3, "encode and decode, wall clock"),
}
DEFINITIONS = {name: Definition(*facts) for name, facts in _TABLE.items()}


def definition(name: str) -> Definition:
    """The definition of a metric, whatever the condition after the slash."""
    return DEFINITIONS[name.split("/")[0]]


def metric(
    name: str,
    parts: Sequence[float | None],
    wholes: Sequence[float] | None = None,
    *,
    scale: float = 1.0,
    mode: str = "",
) -> dict[str, Any]:
    """One number over recordings, as results hold it: {"value", "unit", "mode", "n", "ci"}.

    The value is the mean of `parts` (N,), or with `wholes` (N,) the sum of parts over the sum of wholes, times
    scale. Recordings whose part is None are left out; n counts the others. ci: the 95 % interval of 1000
    bootstrap samples over recordings (Efron 1979), seeded; none for fewer than 2. mode: of DEFINITIONS, unless
    given.
    """
    weights = [1.0] * len(parts) if wholes is None else wholes
    known = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part is not None]
    pairs = np.array(known, float).reshape(-1, 2)
    part, whole = pairs.sum(0)
    result = single(name, scale * part / whole if whole > 0 else None, len(pairs), mode)
    if len(pairs) > 1 and whole > 0:
        draws = np.random.default_rng(0).multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), _DRAWS)
        sums = draws @ pairs
        sums = sums[sums[:, 1] > 0]
        low, high = np.quantile(scale * sums[:, 0] / sums[:, 1], [0.025, 0.975])
        result["ci"] = [round(float(low), 6), round(float(high), 6)]
    return result


def single(name: str, value: float | None, n: int, mode: str = "") -> dict[str, Any]:
    """One number that belongs to all `n` recordings at once, without an interval."""
    known = definition(name)
    rounded = None if value is None or not np.isfinite(value) else round(float(value), 6)
    return {"value": rounded, "unit": known.unit, "mode": mode or known.mode, "n": n}
