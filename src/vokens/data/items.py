"""Data of a corpus run: an utterance to encode, a span of its source, a row of tokens."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from vokens.errors import ConfigError


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
    """One utterance to encode; labels that are not known are None."""

    key: str  # unique in the corpus
    audio: str | bytes  # local path, fsspec address (s3://…, gs://…) or the bytes of an audio file
    start: float = 0.0  # of a segment of the recording, in seconds
    duration: float | None = None  # of the segment; None: up to the end
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    split: str | None = None
    instruct: str | None = None  # style instruction
    listed: float | None = None  # duration of the whole file in seconds as stated by its list, if any
    channel: int | None = None  # the selected one; None: the mean of all
    sinc: bool = False  # resample by torchaudio's windowed sinc instead of soxr


@dataclass(frozen=True)
class Span:
    """The part of a source that becomes one shard: `count` utterances from position `offset` of the file `where`."""

    where: str
    offset: int  # byte, row or member, as the source has it
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

    def read(self, span: Span) -> Iterator[Utterance]:
        """The utterances of a span, in order. Raises ConfigError where there are fewer than were planned."""
        missing = span.count
        for utterance in islice(self.follow(span), span.count):
            missing -= 1
            yield utterance
        if missing:
            raise ConfigError(
                f"{self.given(span.where)} is {missing} utterances shorter than when planned: restore it"
            )

    @abstractmethod
    def follow(self, span: Span) -> Iterator[Utterance]:
        """The utterances from the start of a span on. Reads only audio that is inside the source's own file."""

    def given(self, where: str) -> str:
        """The user's name of a file."""
        return where


@dataclass(frozen=True)
class Row:
    """The tokens of one utterance, and its labels."""

    key: str
    codes: np.ndarray  # (K, T) int64
    num_samples: int  # at the codec's rate
    duration: float  # seconds
    audio: str | None = None  # its address; None for bytes from an archive
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    instruct: str | None = None
    global_vector: np.ndarray | None = None  # (D,) float32, for codecs that have one
    embedding: np.ndarray | None = None  # (192,) float32, for runs with a speaker encoder


@dataclass(frozen=True)
class CodecInfo:
    """Properties of the codec of the codes."""

    model: str
    fingerprint: str
    sample_rate: int
    frame_rate: float
    codebook_sizes: tuple[int, ...]
