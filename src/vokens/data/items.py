"""Data of a corpus run: an utterance to encode, a span of its source, a row of tokens."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Clip:
    """A whole recording on this machine, to train on or to measure; labels that are not known are None."""

    id: str
    path: Path
    text: str | None = None
    language: str | None = None
    speaker: str | None = None


@dataclass(frozen=True)
class Utterance:
    """One utterance to encode.

    Attributes:
        key: its name, unique in the corpus.
        audio: local path, fsspec address (s3://…, gs://…) or the bytes of an audio file.
        start, duration: segment of the recording in seconds; duration None: up to the end.
        text, speaker, language, split: labels, if known. instruct: style instruction.
        listed: duration of the whole file in seconds as stated by its list, if any.
        channel: the selected channel; None: the mean of all.
        sinc: resample by torchaudio's windowed sinc instead of soxr.
    """

    key: str
    audio: str | bytes
    start: float = 0.0
    duration: float | None = None
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    split: str | None = None
    instruct: str | None = None
    listed: float | None = None
    channel: int | None = None
    sinc: bool = False


@dataclass(frozen=True)
class Span:
    """The part of a source that becomes one shard: `count` utterances from position `offset` of the file `where`.

    The meaning of `offset` (byte, row, member) depends on the source.
    """

    where: str
    offset: int
    count: int


class Source(ABC):
    """A list of utterances that is streamed, never loaded as a whole. files: those whose parts are the spans."""

    files: Iterable[str]

    def plan(self, size: int) -> Iterator[tuple[Span, list[str]]]:
        """Spans of at most `size` utterances in the order of the source, each with its keys. One cheap pass."""
        for where in self.files:
            entries = iter(self.entries(where))
            while chunk := list(islice(entries, size)):
                yield Span(where, chunk[0][0], len(chunk)), [key for _, key in chunk]

    @abstractmethod
    def entries(self, where: str) -> Iterable[tuple[int, str]]:
        """Position and key of each utterance of a file; reads no audio."""

    @abstractmethod
    def read(self, span: Span) -> Iterator[Utterance]:
        """The utterances of a span, in order. Reads only audio that is inside the source's own file."""


@dataclass(frozen=True)
class Row:
    """The tokens of one utterance, and its labels.

    Attributes:
        key: of the utterance. codes: (K, T) int64. num_samples: at the codec's rate. duration: seconds.
        audio: address of the audio, None for bytes from an archive.
        text, speaker, language, instruct: of the utterance.
        global_vector: (D,) float32, for codecs that have one.
        embedding: (192,) float32 speaker embedding, for runs with a speaker encoder.
    """

    key: str
    codes: np.ndarray
    num_samples: int
    duration: float
    audio: str | None = None
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    instruct: str | None = None
    global_vector: np.ndarray | None = None
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class CodecInfo:
    """Properties of the codec of the codes."""

    model: str
    fingerprint: str
    sample_rate: int
    frame_rate: float
    codebook_sizes: tuple[int, ...]
