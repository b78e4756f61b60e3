"""A recording of any length, read on demand: an hour takes the memory of one slice."""

from collections.abc import Iterable

import numpy as np

from vokens.audio.io import blocks
from vokens.audio.source import ACCEPTED, Source, is_source
from vokens.errors import AudioError
from vokens.one_or_list import one_or_list

WHOLE_SECONDS = 120  # shorter recordings are read at once


class Recording:
    """Float32 mono samples of one recording at `sample_rate`, sliced like an array (T,), but forwards only.

    whole: all samples (T,), where the recording is no longer than two minutes or was an array; else None.

    Raises AudioError as `load` does; in longer recordings when the damage is reached.
    """

    def __init__(self, source: Source, sample_rate: int, source_rate: int | None = None) -> None:
        self.sample_rate = sample_rate
        self._blocks = blocks(source, sample_rate, source_rate)
        self._start, self._held = 0, np.zeros(0, np.float32)  # the samples that are in memory
        ended = self._read(WHOLE_SECONDS * sample_rate)
        self.whole = self._held if ended else None

    def __getitem__(self, span: slice) -> np.ndarray:
        """Samples start..stop (t,), fewer at the end; start may not be before that of an earlier slice."""
        if span.start < self._start:
            raise AudioError(
                f"samples from {span.start} were requested, but the recording is read from {self._start} on: "
                "slice forwards, or open it again"
            )
        self._read(span.stop)
        self._held, self._start = self._held[span.start - self._start :], span.start
        return self._held[: span.stop - span.start]

    @property
    def seconds(self) -> float:
        """Seconds read so far."""
        return (self._start + len(self._held)) / self.sample_rate

    def _read(self, stop: int) -> bool:
        """Hold samples up to `stop`; return True if the recording ends there or before."""
        pieces, end = [self._held], self._start + len(self._held)
        while end <= stop and (piece := next(self._blocks, None)) is not None:
            pieces.append(piece)
            end += len(piece)
        if len(pieces) > 1:
            self._held = np.concatenate(pieces)
        return end <= stop


def recordings(
    given: Source | Recording | Iterable[Source | Recording], sample_rate: int, source_rate: int | None = None
) -> Iterable[Recording]:
    """One recording or each of a list of them, opened one after the other. Raises AudioError for anything else."""
    items = one_or_list(given, lambda one: isinstance(one, Recording) or is_source(one), ACCEPTED, AudioError)
    return (one if isinstance(one, Recording) else Recording(one, sample_rate, source_rate) for one in items)
