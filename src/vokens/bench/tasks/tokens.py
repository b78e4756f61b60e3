"""Token statistics: rates, use of the codebooks, and bits per second under language models."""

import zlib

import numpy as np
from tqdm import tqdm

from vokens.bench.options import TokenStatistics
from vokens.bench.report.definitions import single
from vokens.bench.report.table import Line
from vokens.bench.results import Results, Row
from vokens.bench.tasks import lm
from vokens.bench.tasks.codecs import all_tokens, labels, open_codec
from vokens.bench.tasks.items import find_items
from vokens.tokens import Tokens, codebook_use


def run(options: TokenStatistics) -> int:
    """Measure and write the results; returns 1 if some files failed."""
    items = find_items(options)
    rows = []
    with Results(options, "tokens", lm_steps=options.lm_steps) as results:
        for label, source in labels(options).items():
            codec = open_codec(source, options)
            row = Row(label, label, codec.fingerprint)
            tokens = all_tokens(codec, label, items, options, results)
            del codec  # the language models need its memory
            for id, one in tokens.items():
                if not results.get(row, id):
                    results.add(row, id, seconds=float(one.duration), frames=int(one.lengths))
            learnt = None
            if len(tokens) < lm.FEWEST or not options.lm_steps:
                reason = f"they need {lm.FEWEST} recordings, and --lm-steps above 0"
                results.leave_out({f"{label}: language models": reason})
            else:
                ids = "|".join(tokens).encode()
                name = f"language models of {len(tokens)} recordings, {zlib.crc32(ids):08x}"
                known = results.get(row, name)
                learnt = known or results.add(row, name, **_language_models(label, tokens, options))
            rows.append(summary_row(row, list(tokens.values()), learnt))
        return results.finish(rows)


def _language_models(label: str, tokens: dict[str, Tokens], options: TokenStatistics) -> Line:
    """Bits of these recordings under the language models."""
    every, parts = list(tokens.values()), lm.divide(list(tokens))
    with tqdm(total=options.lm_steps, desc=f"{label}, transformer", unit="step", disable=None) as bar:
        transformer = lm.transformer_bits(
            every, parts, options.lm_steps, options.seed, lambda step: bar.update(step - bar.n)
        )
    return {
        "test_recordings": len(parts.test),
        "test_frames": sum(int(every[i].lengths) for i in parts.test),
        "test_seconds": sum(float(every[i].duration) for i in parts.test),
        "ngram_bits": lm.ngram_bits(every, parts),
        "transformer_bits": transformer,
    }


def summary_row(row: Row, tokens: list[Tokens], learnt: Line | None) -> Line:
    """A row of results: over all recordings, in total and per codebook."""
    if not tokens:
        return row.summary(0, 0.0, {})
    seconds = sum(float(one.duration) for one in tokens)
    n, first = len(tokens), tokens[0]
    streams = lm.streams(tokens)
    frames = len(streams[0])
    used, entropy = zip(
        *(codebook_use(codes, size) for codes, size in zip(streams, first.codebook_sizes, strict=True)),
        strict=True,
    )
    over = f"over {frames} frames"
    measures = {
        "frame-rate": single("frame-rate", first.frame_rate, n),
        "token-rate": single("token-rate", frames * first.num_codebooks / seconds, n),
        "bitrate-nominal": single("bitrate-nominal", first.bitrate / 1000, n),
        "bitrate-effective": single("bitrate-effective", first.frame_rate * sum(entropy) / 1000, n, over),
        "used": single("used", 100 * float(np.mean(used)), n, over),
    }
    if learnt:
        for kind in ("ngram", "transformer"):
            rate = sum(learnt[f"{kind}_bits"]) / learnt["test_seconds"]
            measures[kind] = single(kind, rate, learnt["test_recordings"])
    for k, (share, bits) in enumerate(zip(used, entropy, strict=True)):
        book = f"codebook {k + 1}"
        measures[f"used/{book}"] = single("used", 100 * share, n, f"{over}, of {first.codebook_sizes[k]}")
        measures[f"entropy/{book}"] = single("entropy", bits, n, over)
        measures[f"perplexity/{book}"] = single("perplexity", 2**bits, n, over)
        if learnt:
            for kind in ("ngram", "transformer"):
                value = learnt[f"{kind}_bits"][k] / learnt["test_frames"]
                measures[f"{kind}-code/{book}"] = single(f"{kind}-code", value, learnt["test_recordings"])
    return row.summary(n, seconds, measures)
