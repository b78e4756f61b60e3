"""Output of the verbs: aligned tables, and the figures of one trip through a codec."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from vokens.models.codec import Codec
    from vokens.tokens import Tokens

Result = TypeVar("Result")


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows as lines with aligned columns, two spaces apart; `right` names the columns of numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True)
class Trip:
    """A recording, its tokens, its resynthesis, and the time of both steps."""

    original: "np.ndarray"  # (T,) float32 at the codec's rate
    decoded: "np.ndarray"  # (T,)
    tokens: "Tokens"  # one item, with the decoded codebooks
    encode_seconds: float
    decode_seconds: float

    def summary(self) -> str:
        """A compact table: bitrate, frames, entropy by codebook, closeness to the original, speed."""
        from vokens.bench.metrics import closeness

        tokens = self.tokens
        seconds = len(self.original) / tokens.sample_rate
        books = range(tokens.first_codebook + 1, tokens.first_codebook + tokens.num_codebooks + 1)
        entropy = tokens.entropy().tolist()
        named = f"{books[0]}-{books[-1]}" if len(books) > 1 else f"{books[0]}"
        rows = [
            ("codec", f"{tokens.model}, {tokens.sample_rate} Hz"),
            ("speech", f"{seconds:.2f} s"),
            ("tokens", f"{int(tokens.lengths[0])} frames ({tokens.frame_rate:g} Hz) of codebooks {named}"),
            ("bitrate", f"{tokens.bitrate / 1000:.2f} kbit/s"),
            ("entropy", " ".join(f"{bits + 0.0:.1f}" for bits in entropy) + " bit per token, by codebook"),
            *closeness(self.original, self.decoded, tokens.sample_rate).items(),
            ("encode", _speed(self.encode_seconds, seconds)),
            ("decode", _speed(self.decode_seconds, seconds)),
        ]
        return table(rows)


def _speed(taken: float, seconds: float) -> str:
    return f"{taken:.3f} s, real-time factor {taken / seconds:.3f}"


def travel(codec: "Codec", wave: "np.ndarray", sample_rate: int, codebooks: str | None = None) -> Trip:
    """Encode and decode a wave (T,), with all codebooks or a range such as "1" or "2-8"."""
    from vokens import audio
    from vokens.cli.options import codebook_range

    start, stop = codebook_range(codebooks, 0, codec.num_codebooks)
    _ = codec.fingerprint  # computed once per codec: not timed
    tokens, encode_seconds = _timed(lambda: codec.encode(wave, sample_rate, num_codebooks=stop))
    tokens = tokens.select(start)
    (decoded,), decode_seconds = _timed(lambda: codec.decode(tokens))
    original = audio.resample(wave, sample_rate, codec.sample_rate)
    return Trip(original, decoded, tokens, encode_seconds, decode_seconds)


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start
