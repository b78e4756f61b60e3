"""Data of a corpus run: an utterance to encode, a span of its source, a row of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Utterance:
    """One piece of speech to encode.

    Attributes:
        key: its name, different from all others of the corpus.
        audio: local path, fsspec address (s3://…, gs://…) or the bytes of an audio file.
        start, duration: the piece within the recording in seconds; duration None is up to the end.
        text, speaker, language: where the source knows them. instruct: how to speak, in words.
        listed: seconds of the whole file as its list says, where it does.
        channel: the only one that is meant of the recording; None is the mean of all.
        sinc: resample by torchaudio's windowed sinc instead of soxr.
    """

    key: str
    audio: str | bytes
    start: float = 0.0
    duration: float | None = None
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    listed: float | None = None
    channel: int | None = None
    instruct: str | None = None
    sinc: bool = False


@dataclass(frozen=True)
class Span:
    """A shard's worth of a source: `count` utterances from position `offset` of the file `where`.

    The meaning of `offset` (byte, row, member) is the source's own.
    """

    where: str
    offset: int
    count: int


class Source(Protocol):
    """A list of utterances that is never in memory as a whole."""

    def plan(self, size: int) -> Iterator[tuple[Span, list[str]]]:
        """Spans of at most `size` utterances in the order of the source, each with its keys. One cheap pass."""
        ...

    def read(self, span: Span) -> Iterator[Utterance]:
        """The utterances of a span, in order. Reads no audio but what the source's own file holds."""
        ...


@dataclass(frozen=True)
class Row:
    """The tokens of one utterance, and its labels.

    Attributes:
        key: of the utterance. codes: (K, T) int64. num_samples: at the codec's rate. duration: seconds.
        audio: where the audio was, None for bytes out of an archive.
        text, speaker, language, instruct: of the utterance.
        global_vector: (D,) float32 of codecs that have one.
        embedding: (192,) float32 of the speaker encoder, of runs that have one.
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
    """Facts of the codec that made the codes."""

    model: str
    fingerprint: str
    sample_rate: int
    frame_rate: float
    codebook_sizes: tuple[int, ...]
