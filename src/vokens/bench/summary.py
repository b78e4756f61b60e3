"""From lines per recording of the reconstruction benchmark to one row per codec: means, pooled word error, rates."""

from collections.abc import Sequence

from vokens.bench.definitions import metric
from vokens.bench.options import METRICS
from vokens.bench.table import Line


def summary_row(
    row: str, model: str, fingerprint: str, lines: Sequence[Line], recogniser: str | None = None
) -> Line:
    """A row of results. Means are over recordings, each counting once; rates and word error are sums over sums."""
    seconds = [line["seconds"] for line in lines]
    found = {"bitrate": metric("bitrate", [line["bits"] for line in lines], seconds, scale=1e-3)}
    for name in METRICS:
        if any(name in line for line in lines):
            found[name] = metric(name, [line.get(name) for line in lines])
    spoken = [line for line in lines if line.get("words")]
    if spoken:
        edits, words = ([line[key] for line in spoken] for key in ("edits", "words"))
        found["wer"] = metric("wer", edits, words, scale=100, mode=f"{recogniser}, greedy")
    found["rtf"] = metric("rtf", [line["compute_seconds"] for line in lines], seconds)
    return {
        **{"row": row, "model": model, "fingerprint": fingerprint, "files": len(lines)},
        **{"seconds": round(sum(seconds), 3), "metric": found},
    }
